from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmssl import load_upstream
from mmssl.errors import CheckpointError, ConfigError, InputError
from mmssl.upstreams.av_hubert import AvHubert

WAVEFORMS = torch.randn(2, 12800, generator=torch.Generator().manual_seed(0)) * 0.1
VIDEO = torch.rand(2, 20, 3, 26, 26, generator=torch.Generator().manual_seed(1))


def tiny(**values: Any) -> AvHubert:
    upstream = load_upstream("av_hubert", **({"preset": "tiny"} | values))
    assert isinstance(upstream, AvHubert)
    return upstream


def test_streams_of_one_and_of_both_modalities() -> None:
    upstream = tiny()
    both, audio, video = upstream(WAVEFORMS, video=VIDEO), upstream(WAVEFORMS), upstream(video=VIDEO)
    assert set(both) == {"fusion", "audio", "video"}
    assert set(audio) == {"fusion", "audio"}
    assert set(video) == {"fusion", "video"}
    for found in (both, audio, video):
        assert found["fusion"].lengths[0].tolist() == [20, 20]
    fused = [found["fusion"].hidden_states[-1] for found in (both, audio, video)]
    assert not any(torch.allclose(a, b, atol=1e-2) for a, b in ((fused[0], fused[1]), (fused[1], fused[2])))
    assert torch.equal(both["audio"].hidden_states[1], audio["audio"].hidden_states[1])


def test_a_missing_modality_is_zeros_after_its_projection() -> None:
    upstream = tiny()
    audio = upstream.audio_frames(WAVEFORMS.unbind())
    projected = audio.replace(upstream.audio_projection(audio.data))
    zeros = audio.replace(torch.zeros_like(projected.data))
    for alone, with_zeros in (
        (upstream.fuse(projected, None), upstream.fuse(projected, zeros)),
        (upstream.fuse(None, projected), upstream.fuse(zeros, projected)),
    ):
        assert torch.equal(alone.data, with_zeros.data)


@pytest.mark.parametrize("frames", [18, 19, 20, 21, 22])
def test_a_frame_or_two_of_difference_is_cut_off(frames: int) -> None:
    upstream = tiny()
    video = torch.rand(2, frames, 1, 26, 26)
    found = upstream(WAVEFORMS, video=video)
    short = min(frames, 20)
    assert found["fusion"].lengths[0].tolist() == [short, short]
    assert found["audio"].lengths[0].tolist() == [20, 20]
    assert found["video"].lengths[0].tolist() == [frames, frames]
    projected = torch.cat([found[s].hidden_states[1][:, :short] for s in ("audio", "video")], dim=-1)
    expected = upstream.fusion_projection(upstream.fusion_norm(projected))
    states = upstream.encoder.forward_packed(upstream.fuse(*_packed(found)))
    assert torch.allclose(states[0].pad().data, found["fusion"].hidden_states[0])
    assert torch.allclose(upstream.fuse(*_packed(found)).pad().data, expected, atol=1e-5)


def _packed(found: Any) -> list[Any]:
    from mmssl.nn.packed import Packed

    return [Packed.from_padded(found[stream][1]) for stream in ("audio", "video")]


def test_lengths_that_do_not_belong_together_are_refused() -> None:
    upstream = tiny()
    with pytest.raises(InputError, match=r"Clip 0 has 20 frames of audio \(0\.80 s\) and 23 of video"):
        upstream(WAVEFORMS, video=torch.rand(2, 23, 1, 26, 26))
    with pytest.raises(InputError, match="Clip 1 has 20 frames of audio"):
        upstream(WAVEFORMS, video=VIDEO, video_lengths=torch.tensor([20, 17]))
    with pytest.raises(InputError, match="2 waveforms and 1 videos"):
        upstream(WAVEFORMS, video=VIDEO[:1])
    with pytest.raises(InputError, match="got 2 channels"):
        upstream(video=VIDEO[:, :, :2])


def test_grey_pictures_give_what_their_coloured_copies_give() -> None:
    upstream, grey = tiny(), VIDEO[:, :, :1]
    a = upstream(video=grey)["fusion"].hidden_states[-1]
    b = upstream(video=grey.expand(-1, -1, 3, -1, -1))["fusion"].hidden_states[-1]
    assert torch.allclose(a, b, atol=1e-4)


def test_sizes_of_the_published_models() -> None:
    for preset, width, layers, millions in (("base", 768, 12, 103), ("large", 1024, 24, 325)):
        with torch.device("meta"):
            upstream = AvHubert(preset)
        assert upstream.spec.streams["fusion"].hidden_sizes == (width,) * (layers + 1)
        assert upstream.spec.streams["fusion"].hop_lengths[0] == 640
        assert upstream.spec.streams["audio"].hidden_sizes == (104, width)
        assert upstream.spec.streams["video"].hidden_sizes == (512, width)
        assert upstream.spec.image_size == (96, 96)
        assert upstream.mouth.stem[0].weight.shape == (64, 1, 5, 7, 7)
        assert upstream.fusion_projection.weight.shape == (width, 2 * width)
        # the paper's counts, section 4.1
        assert round(sum(p.numel() for p in upstream.parameters()) / 1e6) == pytest.approx(millions, abs=1)


def fairseq_state(upstream: AvHubert) -> dict[str, Tensor]:
    """The weights by the names of the authors' file."""
    state: dict[str, Tensor] = {"mask_emb": torch.zeros(104), "final_proj.weight": torch.zeros(4, 32)}
    state["label_embs_concat"] = torch.zeros(5, 4)
    simple = {
        "audio_projection": "feature_extractor_audio.proj",
        "video_projection": "feature_extractor_video.proj",
        "fusion_norm": "layer_norm",
        "fusion_projection": "post_extract_proj",
        "encoder.positions": "encoder.pos_conv.0",
        "encoder.layer_norm": "encoder.layer_norm",
        "mouth.stem": "feature_extractor_video.resnet.frontend3D",
        "mouth.trunk": "feature_extractor_video.resnet.trunk",
    }
    inside = {
        "attention.output": "self_attn.out_proj",
        "attention_norm": "self_attn_layer_norm",
        "expand": "fc1",
        "contract": "fc2",
        "feed_forward_norm": "final_layer_norm",
    }
    for name, tensor in upstream.state_dict().items():
        ours = next((o for o in simple if name.startswith(f"{o}.")), None)
        if ours is not None:
            state[simple[ours] + name.removeprefix(ours)] = tensor
            continue
        _, _, number, rest = name.split(".", 3)
        module, part = rest.rsplit(".", 1)
        if module == "attention.qkv":
            for letter, piece in zip("qkv", tensor.chunk(3), strict=True):
                state[f"encoder.layers.{number}.self_attn.{letter}_proj.{part}"] = piece
        else:
            state[f"encoder.layers.{number}.{inside[module]}.{part}"] = tensor
    return state


MODEL = {
    "_name": "av_hubert",
    "encoder_layers": 2,
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 48,
    "encoder_attention_heads": 4,
    "layer_norm_first": True,
    "conv_pos": 8,
    "conv_pos_groups": 16,
    "resnet_relu_type": "prelu",
    "modality_fuse": "concat",
    "audio_feat_dim": 104,
    "dropout": 0.1,
}
TASK = {"image_crop_size": 24, "image_mean": 0.421, "image_std": 0.165, "normalize": True, "stack_order_audio": 4}


def save(path: Path, state: dict[str, Tensor], **content: Any) -> str:
    defaults = {"cfg": {"model": MODEL, "task": TASK}, "args": None, "task_state": {}}
    torch.save(defaults | {"model": state} | content, path)
    return str(path)


def perturbed() -> AvHubert:
    upstream = tiny()
    with torch.no_grad():
        for name, tensor in [*upstream.named_parameters(), *upstream.named_buffers()]:
            if tensor.dim() == 1:
                tensor.add_(torch.rand_like(tensor) * (0.5 if "running_var" in name else 0.2))
    return upstream


def assert_same(a: AvHubert, b: AvHubert) -> None:
    first, second = a(WAVEFORMS, video=VIDEO), b(WAVEFORMS, video=VIDEO)
    for stream, layers in first.items():
        assert len(second[stream]) == len(layers)
        assert all(torch.equal(x, y) for x, y in zip(layers.hidden_states, second[stream].hidden_states, strict=True))


def test_the_authors_layout_loads_and_its_licence_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    upstream = perturbed()
    state = fairseq_state(upstream)
    assert state["feature_extractor_audio.proj.weight"].shape == (32, 104)
    assert "feature_extractor_video.resnet.trunk.layer2.0.downsample.0.weight" in state
    assert_same(upstream, tiny(checkpoint=save(tmp_path / "base.pt", state)))
    assert any("biometric" in message for message in caplog.messages)


def test_a_fine_tuned_file_loads_without_its_decoder(tmp_path: Path) -> None:
    upstream = perturbed()
    state = {f"encoder.w2v_model.{n}": t for n, t in fairseq_state(upstream).items()}
    state["decoder.embed_tokens.weight"] = torch.zeros(3, 4)
    inner = argparse.Namespace(model=argparse.Namespace(**MODEL), task=TASK)
    options = {"model": {"_name": "av_hubert_seq2seq", "w2v_args": inner}, "task": {"normalize": True}}
    assert_same(upstream, tiny(checkpoint=save(tmp_path / "tuned.pt", state, cfg=options)))


def test_the_first_layers_of_a_checkpoint(tmp_path: Path) -> None:
    upstream = perturbed()
    path = save(tmp_path / "base.pt", fairseq_state(upstream))
    fewer = tiny(checkpoint=path, num_layers=1)
    whole = upstream(WAVEFORMS)["fusion"].hidden_states
    assert all(torch.equal(a, b) for a, b in zip(fewer(WAVEFORMS)["fusion"].hidden_states, whole[:2], strict=True))
    for wrong in ({"num_layers": 3}, {"hidden_size": 64}):
        with pytest.raises(CheckpointError, match="was asked for"):
            tiny(checkpoint=path, **wrong)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    state = fairseq_state(tiny())
    with pytest.raises(CheckpointError, match=r"Missing \(1\): layer_norm\.weight"):
        tiny(checkpoint=save(tmp_path / "a.pt", {n: t for n, t in state.items() if n != "layer_norm.weight"}))
    with pytest.raises(CheckpointError, match=r"Unused \(1\): surprise"):
        tiny(checkpoint=save(tmp_path / "b.pt", state | {"surprise": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match="fuses by 'add'"):
        tiny(checkpoint=save(tmp_path / "c.pt", state, cfg={"model": MODEL | {"modality_fuse": "add"}, "task": TASK}))
    with pytest.raises(CheckpointError, match="expected the entries 'cfg' and 'model'"):
        tiny(checkpoint=save(tmp_path / "d.pt", state, cfg=None))
    lost = "feature_extractor_video.resnet.trunk.layer3.1.conv2.weight"
    with pytest.raises(CheckpointError, match=r"mouth\.trunk\.layer3\.1\.conv2\.weight"):
        tiny(checkpoint=save(tmp_path / "e.pt", {n: t for n, t in state.items() if n != lost}))


def test_sizes_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'large'"):
        tiny(preset="larg")
    with pytest.raises(ConfigError, match="at least 24 pixels"):
        tiny(image_size=20)
    with pytest.raises(ConfigError, match="multiple of 16"):
        tiny(hidden_size=40)


def test_the_clip_ends_where_its_last_whole_40_ms_end() -> None:
    upstream = tiny()
    long, whole = WAVEFORMS[:, :1000], WAVEFORMS[:, :640]
    assert upstream(long)["fusion"].lengths[0].tolist() == [1, 1]
    # samples beyond the last frame may reach into that frame's last window only
    a, b = (upstream(x)["audio"].hidden_states[0] for x in (long, whole))
    assert a.shape == b.shape == (2, 1, 104)


def test_gradients_reach_both_front_ends_in_training() -> None:
    upstream = tiny().requires_grad_(True).train()
    layers = upstream(WAVEFORMS, video=VIDEO)["fusion"]
    layers.hidden_states[-1].pow(2).sum().backward()
    idle = {n for n, p in upstream.named_parameters() if p.grad is None or not bool(p.grad.any())}
    assert idle <= {"encoder.layer_norm.weight", "encoder.layer_norm.bias"}
