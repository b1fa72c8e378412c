"""Masked autoencoders against transformers, and against a plain computation from files in the authors' layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmssl import load_upstream
from mmssl.nn.patch import sincos_2d

transformers = pytest.importorskip("transformers")

WIDTH, LAYERS, HEADS, INNER = 32, 3, 4, 48
HF_SIZES = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
    "layer_norm_eps": 1e-6,
}
State = dict[str, Tensor]


def norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}


def linear(name: str, inputs: int, outputs: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


def attention(name: str, cross: bool = False, split: bool = False) -> dict[str, tuple[int, ...]]:
    shapes = linear(f"{name}.proj", WIDTH, WIDTH)
    if cross:
        shapes |= linear(f"{name}.q", WIDTH, WIDTH, False) | linear(f"{name}.kv", WIDTH, 2 * WIDTH, False)
    else:
        shapes |= linear(f"{name}.qkv", WIDTH, 3 * WIDTH, bias=not split)
    return shapes | ({f"{name}.q_bias": (WIDTH,), f"{name}.v_bias": (WIDTH,)} if cross or split else {})


def block(name: str, split: bool = False, cross: bool = False, suffixes: tuple[str, ...] = ("",)) -> dict[str, Any]:
    shapes = attention(f"{name}.attn", split=split)
    shapes |= linear(f"{name}.mlp.fc1", WIDTH, INNER) | linear(f"{name}.mlp.fc2", INNER, WIDTH)
    for suffix in suffixes:
        shapes |= norm(f"{name}.norm1{suffix}") | norm(f"{name}.norm2{suffix}")
    if cross:
        shapes |= (
            attention(f"{name}.cross_attn", cross=True) | norm(f"{name}.cross_norm1") | norm(f"{name}.cross_norm2")
        )
    return shapes


def draw(shapes: dict[str, tuple[int, ...]]) -> State:
    """Weights at which everything that a layer does shows, norms far from the identity."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        scale = 0.3 if len(shape) == 1 else 0.5 * (shape[-1] ** -0.5 if len(shape) == 2 else 0.1)
        noise = scale * torch.randn(shape, generator=generator)
        state[name] = 1 + noise if "norm" in name and name.endswith("weight") else noise
    return state


def mae_layout(channels: int, rows: int, columns: int) -> State:
    shapes: dict[str, Any] = {"cls_token": (1, 1, WIDTH), "patch_embed.proj.weight": (WIDTH, channels, 16, 16)}
    shapes |= {"patch_embed.proj.bias": (WIDTH,)} | norm("norm")
    for i in range(LAYERS):
        shapes |= block(f"blocks.{i}")
    # of pretraining, to be left out
    shapes |= {"mask_token": (1, 1, 8), "decoder_pos_embed": (1, 5, 8), "decoder_blocks.0.attn.qkv.weight": (24, 8)}
    positions = torch.cat([torch.zeros(1, WIDTH), sincos_2d(WIDTH, rows, columns)])[None]
    return draw(shapes) | {"pos_embed": positions}


def hf_vit_state(state: State) -> State:
    """The authors' names -> those of a ViT in transformers."""
    found = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.position_embeddings": state["pos_embed"],
        "layernorm.weight": state["norm.weight"],
        "layernorm.bias": state["norm.bias"],
    }
    for part in ("weight", "bias"):
        found[f"embeddings.patch_embeddings.projection.{part}"] = state[f"patch_embed.proj.{part}"]
        for i in range(LAYERS):
            theirs, ours = f"layers.{i}", f"blocks.{i}"
            split = state[f"{ours}.attn.qkv.{part}"].chunk(3)
            found |= {f"{theirs}.attention.{q}_proj.{part}": value for q, value in zip("qkv", split, strict=True)}
            found[f"{theirs}.attention.o_proj.{part}"] = state[f"{ours}.attn.proj.{part}"]
            found[f"{theirs}.layernorm_before.{part}"] = state[f"{ours}.norm1.{part}"]
            found[f"{theirs}.layernorm_after.{part}"] = state[f"{ours}.norm2.{part}"]
            for fc in ("fc1", "fc2"):
                found[f"{theirs}.mlp.{fc}.{part}"] = state[f"{ours}.mlp.{fc}.{part}"]
    return found


def assert_equal_layers(ours: Any, expected: Any) -> None:
    assert len(ours) == len(expected)
    for layer, (a, b) in enumerate(zip(ours, expected, strict=True)):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= 1e-5 * b.abs().mean(), f"layer {layer}"


def save(path: Path, state: State, wrapper: str | None = None) -> str:
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, path)
    return str(path)


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_mae_equals_vitmae(tmp_path: Path) -> None:
    state = mae_layout(3, 3, 3)
    config = transformers.ViTMAEConfig(**HF_SIZES, image_size=48, mask_ratio=0.0)
    model = transformers.ViTMAEModel(config).eval()
    model.load_state_dict(hf_vit_state(state))
    up = load_upstream("mae", checkpoint=save(tmp_path / "mae.pth", state, "model"), num_heads=HEADS)
    assert up.spec.image_size == (48, 48)
    images = noise(2, 3, 48, 48)
    mean, std = (torch.tensor(v)[:, None, None] for v in (up.image_mean, up.image_std))
    with torch.no_grad():
        # a mask ratio of 0 still shuffles, unless the noise ascends
        expected = model((images - mean) / std, noise=torch.arange(9.0).repeat(2, 1), output_hidden_states=True)
    ours = up(images=images)["image"].hidden_states
    assert_equal_layers(ours, expected.hidden_states)
    assert_equal_layers([up.encoder.finish(ours[-1])], [expected.last_hidden_state])


def test_mae_tokens_are_parts_of_the_whole() -> None:
    kwargs = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "feed_forward_size": 24, "image_size": 32}
    images = noise(2, 3, 32, 32)
    every, patches, token = (
        load_upstream("mae", tokens=kind, **kwargs)(images=images)["image"].hidden_states[-1]
        for kind in ("all", "patches", "class")
    )
    assert torch.equal(every[:, 1:], patches)
    assert torch.equal(every[:, :1], token)


def test_audio_mae_equals_a_vit_on_the_features_of_transformers(tmp_path: Path) -> None:
    state = mae_layout(1, 5, 8)
    extractor = transformers.ASTFeatureExtractor(max_length=80)
    waveform = 0.1 * noise(16000 * 4 // 5 + 345) - 0.05
    mel = torch.from_numpy(extractor(waveform.numpy(), sampling_rate=16000, return_tensors="np")["input_values"])
    assert mel.shape == (1, 80, 128)
    config = transformers.ViTConfig(**HF_SIZES, image_size=[64, 128], num_channels=1)
    model = transformers.ViTModel(config, add_pooling_layer=False).eval()
    up = load_upstream("audio_mae", checkpoint=save(tmp_path / "audio.pth", state, "model"), num_heads=HEADS)
    model.load_state_dict(hf_vit_state(state | {"pos_embed": state["pos_embed"][:, : 1 + 4 * 8]}))
    with torch.no_grad():
        expected = model(mel[:, None, :64], output_hidden_states=True).hidden_states
    (samples,) = (400 + 160 * 63,)
    ours = up(waveform[None, :samples])["audio"]
    assert_equal_layers(ours.hidden_states, [h[:, 1:] for h in expected])
    # longer than the positions that the file holds
    assert up(waveform[None].repeat(1, 3))["audio"].hidden_states[0].shape[1] > 5 * 8


def test_padded_rows_are_those_of_the_feature_extractor(tmp_path: Path) -> None:
    state = mae_layout(1, 2, 8)
    waveform = 0.1 * noise(400 + 160 * 19) - 0.05
    extractor = transformers.ASTFeatureExtractor(max_length=32)
    mel = torch.from_numpy(extractor(waveform.numpy(), sampling_rate=16000, return_tensors="np")["input_values"])
    up = load_upstream("audio_mae", checkpoint=save(tmp_path / "a.pth", state), num_heads=HEADS, pad_last=True)
    tokens = up(waveform[None])["audio"].hidden_states[0]
    projected = F.conv2d(mel[:, None], state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=16)
    assert_equal_layers([tokens], [projected.flatten(2).transpose(1, 2) + state["pos_embed"][:, 1:]])


def test_blocks_equal_those_of_ast() -> None:
    config = transformers.ASTConfig(**HF_SIZES, max_length=64, frequency_stride=16, time_stride=16)
    model = transformers.ASTModel(config).eval()
    state = mae_layout(1, 4, 8)
    model.load_state_dict({k: v for k, v in hf_vit_state(state).items() if "embeddings" not in k}, strict=False)
    up = load_upstream("audio_mae", hidden_size=WIDTH, num_layers=LAYERS, num_heads=HEADS, feed_forward_size=INNER)
    up.encoder.blocks.load_state_dict({k.removeprefix("blocks."): v for k, v in state.items() if k[:7] == "blocks."})
    with torch.no_grad():
        expected = model(noise(2, 64, 128), output_hidden_states=True).hidden_states
    up.encoder.cls_token = None  # the two tokens of AST are among its input
    assert_equal_layers(up.encoder.encode_tokens(expected[0]), expected)


def video_layout(prefix: str = "encoder.") -> State:
    shapes: dict[str, Any] = {f"{prefix}patch_embed.proj.weight": (WIDTH, 3, 2, 16, 16)}
    shapes |= {f"{prefix}patch_embed.proj.bias": (WIDTH,)} | norm(f"{prefix}norm")
    for i in range(LAYERS):
        shapes |= block(f"{prefix}blocks.{i}", split=True)
    shapes |= {"decoder.blocks.0.attn.qkv.weight": (24, 8), "encoder_to_decoder.weight": (8, WIDTH)}
    return draw(shapes | {"mask_token": (1, 1, 8)})


def test_video_mae_equals_transformers(tmp_path: Path) -> None:
    state = video_layout()
    config = transformers.VideoMAEConfig(**HF_SIZES, image_size=32, num_frames=6, use_mean_pooling=True)
    model = transformers.VideoMAEModel(config).eval()
    found: State = {}
    for part in ("weight", "bias"):
        found[f"embeddings.patch_embeddings.projection.{part}"] = state[f"encoder.patch_embed.proj.{part}"]
        for i in range(LAYERS):
            theirs, ours = f"encoder.layer.{i}", f"encoder.blocks.{i}"
            found[f"{theirs}.attention.output.dense.{part}"] = state[f"{ours}.attn.proj.{part}"]
            found[f"{theirs}.layernorm_before.{part}"] = state[f"{ours}.norm1.{part}"]
            found[f"{theirs}.layernorm_after.{part}"] = state[f"{ours}.norm2.{part}"]
            found[f"{theirs}.intermediate.dense.{part}"] = state[f"{ours}.mlp.fc1.{part}"]
            found[f"{theirs}.output.dense.{part}"] = state[f"{ours}.mlp.fc2.{part}"]
            if part == "weight":
                split = state[f"{ours}.attn.qkv.weight"].chunk(3)
                for name, value in zip(("query", "key", "value"), split, strict=True):
                    found[f"{theirs}.attention.attention.{name}.weight"] = value
            else:
                found[f"{theirs}.attention.attention.query.bias"] = state[f"{ours}.attn.q_bias"]
                found[f"{theirs}.attention.attention.value.bias"] = state[f"{ours}.attn.v_bias"]
    model.load_state_dict(found)
    up = load_upstream(
        "video_mae", checkpoint=save(tmp_path / "video.pth", state, "module"), num_heads=HEADS, image_size=32
    )
    video = noise(2, 7, 3, 32, 32)
    mean, std = (torch.tensor(v)[:, None, None] for v in (up.image_mean, up.image_std))
    with torch.no_grad():
        expected = model((video[:, :6] - mean) / std, output_hidden_states=True).hidden_states
    assert_equal_layers(up(video=video)["video"].hidden_states, expected)


def plain_attention(state: State, name: str, x: Tensor, context: Tensor | None = None) -> Tensor:
    """One clip (N, D), head by head, from weights by the authors' names."""
    if context is None:
        q, k, v = (x @ state[f"{name}.qkv.weight"].T).chunk(3, dim=-1)
        if f"{name}.qkv.bias" in state:
            q, k, v = (a + b for a, b in zip((q, k, v), state[f"{name}.qkv.bias"].chunk(3), strict=True))
    else:
        q = x @ state[f"{name}.q.weight"].T
        k, v = (context @ state[f"{name}.kv.weight"].T).chunk(2, dim=-1)
    if f"{name}.q_bias" in state:
        q, v = q + state[f"{name}.q_bias"], v + state[f"{name}.v_bias"]
    heads = []
    for h in range(HEADS):
        part = slice(h * WIDTH // HEADS, (h + 1) * WIDTH // HEADS)
        weights = torch.softmax(q[:, part] @ k[:, part].T / (WIDTH // HEADS) ** 0.5, dim=-1)
        heads.append(weights @ v[:, part])
    return torch.cat(heads, dim=-1) @ state[f"{name}.proj.weight"].T + state[f"{name}.proj.bias"]


def plain_norm(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def plain_block(state: State, name: str, x: Tensor, eps: float, suffix: str = "") -> Tensor:
    x = x + plain_attention(state, f"{name}.attn", plain_norm(state, f"{name}.norm1{suffix}", x, eps))
    hidden = plain_norm(state, f"{name}.norm2{suffix}", x, eps) @ state[f"{name}.mlp.fc1.weight"].T
    hidden = F.gelu(hidden + state[f"{name}.mlp.fc1.bias"])
    return x + hidden @ state[f"{name}.mlp.fc2.weight"].T + state[f"{name}.mlp.fc2.bias"]


def plain_cross_block(state: State, name: str, x: Tensor, context: Tensor, eps: float) -> Tensor:
    q, kv = plain_norm(state, f"{name}.cross_norm1", x, eps), plain_norm(state, f"{name}.cross_norm2", context, eps)
    return plain_block(state, name, x + plain_attention(state, f"{name}.cross_attn", q, kv), eps)


def sinusoid(count: int) -> Tensor:
    table = np.array([[p / 10000 ** (2 * (j // 2) / WIDTH) for j in range(WIDTH)] for p in range(count)])
    table[:, 0::2], table[:, 1::2] = np.sin(table[:, 0::2]), np.cos(table[:, 1::2])
    return torch.tensor(table, dtype=torch.float32)


def kaldi_mel(waveform: Tensor) -> Tensor:
    import torchaudio

    return torchaudio.compliance.kaldi.fbank(
        waveform[None] - waveform.mean(),
        htk_compat=True,
        sample_frequency=16000,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=128,
        dither=0.0,
        frame_shift=10,
    )


def imagenet(pictures: Tensor) -> Tensor:
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    return (pictures - mean) / std


def hicmae_layout() -> State:
    shapes: dict[str, Any] = {"encoder.patch_embed.proj.weight": (WIDTH, 3, 2, 16, 16)}
    shapes |= {"encoder_audio.patch_embed.proj.weight": (WIDTH, 1, 16, 16)}
    for encoder in ("encoder", "encoder_audio"):
        shapes |= {f"{encoder}.patch_embed.proj.bias": (WIDTH,)} | norm(f"{encoder}.norm")
        for i in range(LAYERS):
            shapes |= block(f"{encoder}.blocks.{i}", split=True)
    for i in range(2):
        for stack in ("blocks", "blocks_audio"):
            shapes |= block(f"encoder_fusion.{stack}.{i}", split=True, cross=True)
    shapes |= norm("encoder_fusion.norm") | norm("encoder_fusion.norm_audio")
    for suffix in ("", "_audio"):
        shapes |= {f"encoder_to_decoder{suffix}.weight": (8, WIDTH), f"mask_token{suffix}": (1, 1, 8)}
        shapes |= {f"decoder{suffix}.blocks.1.cross_attn.q.weight": (8, 8)}
    return draw(shapes)


def test_hicmae_equals_a_plain_computation(tmp_path: Path) -> None:
    state = hicmae_layout()
    path = save(tmp_path / "hicmae.pth", state, "model")
    up = load_upstream("hicmae", checkpoint=path, num_heads=HEADS, image_size=32, pad_last=True)
    waveform, video = 0.1 * noise(40960) - 0.05, noise(16, 3, 32, 32)
    # 2.56 s: 254 frames and two of zeros, as the authors have it
    mel = F.pad(kaldi_mel(waveform), (0, 0, 0, 2))
    assert mel.shape == (256, 128)
    mel = (mel + 4.2677393) / (2 * 4.5689974)
    states = {}
    for encoder, x, conv in (
        ("encoder_audio", mel[None, None], F.conv2d),
        ("encoder", imagenet(video).transpose(0, 1)[None], F.conv3d),
    ):
        weight = state[f"{encoder}.patch_embed.proj.weight"]
        tokens = conv(x, weight, state[f"{encoder}.patch_embed.proj.bias"], stride=weight.shape[2:])
        tokens = tokens.flatten(2)[0].T
        states[encoder] = [tokens + sinusoid(len(tokens))]
        for i in range(LAYERS):
            states[encoder].append(plain_block(state, f"{encoder}.blocks.{i}", states[encoder][-1], 1e-6))
    a, v = (plain_norm(state, f"{e}.norm", states[e][-1], 1e-6) for e in ("encoder_audio", "encoder"))
    fusion = [torch.cat([a, v])]
    for i in range(2):
        a, v = (
            plain_cross_block(state, f"encoder_fusion.blocks_audio.{i}", a, v, 1e-6),
            plain_cross_block(state, f"encoder_fusion.blocks.{i}", v, a, 1e-6),
        )
        fusion.append(torch.cat([a, v]))
    found = up(waveform[None], video=video[None])
    assert found["audio"].hidden_states[0].shape[1] == 128
    assert_equal_layers([h[0] for h in found["audio"].hidden_states], states["encoder_audio"])
    assert_equal_layers([h[0] for h in found["video"].hidden_states], states["encoder"])
    assert_equal_layers([h[0] for h in found["fusion"].hidden_states], fusion)


def cav_layout(rows: int, side: int) -> State:
    shapes: dict[str, Any] = {"modality_a": (1, 1, WIDTH), "modality_v": (1, 1, WIDTH)} | norm("norm")
    for modality, channels in (("a", 1), ("v", 3)):
        shapes |= {f"patch_embed_{modality}.proj.weight": (WIDTH, channels, 16, 16)} | norm(f"norm_{modality}")
        shapes |= {f"patch_embed_{modality}.proj.bias": (WIDTH,)}
        for i in range(LAYERS):
            shapes |= block(f"blocks_{modality}.{i}", suffixes=("", "_a", "_v"))
    shapes |= block("blocks_u.0", suffixes=("", "_a", "_v"))
    shapes |= {"decoder_pred_a.weight": (256, 8), "decoder_modality_a": (1, 1, 8), "mask_token": (1, 1, 8)}
    # (frequency, time) and (row, column), each with the second axis in the first half of the features
    positions = {"pos_embed_a": sincos_2d(WIDTH, 8, rows)[None], "pos_embed_v": sincos_2d(WIDTH, side, side)[None]}
    return draw(shapes) | positions


def test_cav_mae_equals_a_plain_computation(tmp_path: Path) -> None:
    state = cav_layout(rows=6, side=2)
    path = save(tmp_path / "cav.pth", {f"module.{name}": value for name, value in state.items()})
    up = load_upstream("cav_mae", checkpoint=path, num_heads=HEADS)
    assert up.spec.image_size == (32, 32)
    waveform, video = 0.1 * noise(400 + 95 * 160) - 0.05, noise(2, 3, 32, 32)
    mel = (kaldi_mel(waveform) + 5.081) / 4.4849
    streams: dict[str, list[Tensor]] = {"a": [], "v": [], "v2": []}
    for stream, picture in (("a", mel.T[None]), ("v", imagenet(video[0])), ("v2", imagenet(video[1]))):
        m = stream[0]
        tokens = F.conv2d(picture[None], state[f"patch_embed_{m}.proj.weight"], state[f"patch_embed_{m}.proj.bias"], 16)
        x = tokens.flatten(2)[0].T + state[f"pos_embed_{m}"][0] + state[f"modality_{m}"][0]
        streams[stream].append(x)
        for i in range(LAYERS):
            streams[stream].append(plain_block(state, f"blocks_{m}.{i}", streams[stream][-1], 1e-5))
    joint = [plain_block(state, "blocks_u.0", torch.cat([streams["a"][-1], streams[v][-1]]), 1e-5) for v in ("v", "v2")]
    for stream, states in streams.items():
        states.append(plain_block(state, "blocks_u.0", states[-1], 1e-5, f"_{stream[0]}"))

    def time_major(tokens: Tensor) -> Tensor:
        return tokens.unflatten(0, (8, 6)).transpose(0, 1).flatten(0, 1)

    found = up(waveform[None], video=video[None])
    assert_equal_layers([h[0] for h in found["audio"].hidden_states], [time_major(h) for h in streams["a"]])
    both = [torch.cat(pair) for pair in zip(streams["v"], streams["v2"], strict=True)]
    assert_equal_layers([h[0] for h in found["video"].hidden_states], both)
    audio = time_major((joint[0][:48] + joint[1][:48]) / 2)
    expected = torch.cat([audio, joint[0][48:], joint[1][48:]])
    assert_equal_layers([found["fusion"].hidden_states[1][0]], [expected])


@pytest.mark.parametrize("rows", [3, 64])
def test_audio_positions_of_cav_mae_extend_to_any_length(tmp_path: Path, rows: int) -> None:
    up = load_upstream("cav_mae", checkpoint=save(tmp_path / "c.pth", cav_layout(rows, 2)), num_heads=HEADS)
    assert up.audio.positions.table is None
    assert up.spec.max_length is None
