"""AudioMAE, VideoMAE and HiCMAE: losses against transformers, torchvision, or clip by clip and token by token."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.swin_transformer import shifted_window_attention

from mmssl.objectives.methods.audio_mae import audio_mae
from mmssl.objectives.methods.hicmae import hicmae
from mmssl.objectives.methods.video_mae import video_mae
from mmssl.objectives.objective import Objective
from mmssl.objectives.patch_decoders import HierarchicalDecoder
from mmssl.objectives.types import Encoded, Examples
from mmssl.objectives.window_attention import WindowAttention
from mmssl.types import Inputs, Padded
from mmssl.upstreams.audio_mae import AudioMAE
from mmssl.upstreams.hicmae import HiCMAE
from mmssl.upstreams.video_mae import VideoMAE

SIZES = {"hidden_size": 24, "num_heads": 2, "feed_forward_size": 32}


def drawn(module: nn.Module, seed: int = 0) -> None:
    """Weights of which none is zero or one, so that nothing cancels by chance."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def video_pairs(ours: Objective, theirs: transformers.VideoMAEForPreTraining) -> list[tuple[Tensor, Tensor]]:
    """Weights of the one beside those of the other; queries, keys and values are rows of one matrix here."""
    encoder, decoder = ours.encoder.upstream.encoder, ours.terms[0].head
    projection = theirs.videomae.embeddings.patch_embeddings.projection
    pairs = [
        (encoder.patch_embed.proj.weight, projection.weight),
        (encoder.patch_embed.proj.bias, projection.bias),
        (decoder.embed.weight, theirs.encoder_to_decoder.weight),
        (decoder.mask_token, theirs.mask_token[0, 0]),
    ]
    modules = [
        (encoder.norm, theirs.videomae.layernorm),
        (decoder.norm, theirs.decoder.norm),
        (decoder.output, theirs.decoder.head),
    ]
    blocks = [
        *zip(encoder.blocks, theirs.videomae.encoder.layer, strict=True),
        *zip(decoder.blocks, theirs.decoder.decoder_layers, strict=True),
    ]
    for block, layer in blocks:
        modules += [(block.norm1, layer.layernorm_before), (block.norm2, layer.layernorm_after)]
        modules += [(block.attn.proj, layer.attention.output.dense)]
        modules += [(block.mlp.fc1, layer.intermediate.dense), (block.mlp.fc2, layer.output.dense)]
        attention = layer.attention.attention
        q, _, v = block.attn.qkv.bias.chunk(3)
        pairs += [(q, attention.query.bias), (v, attention.value.bias)]
        names = (attention.query, attention.key, attention.value)
        pairs += [(w, m.weight) for w, m in zip(block.attn.qkv.weight.chunk(3), names, strict=True)]
    for one, other in modules:
        pairs += [(one.weight, other.weight), (one.bias, other.bias)]
    return pairs


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("towards", ["ours", "theirs"])
def test_video_mae_equals_transformers(normalize: bool, towards: str) -> None:
    config = transformers.VideoMAEConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        num_frames=6,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=64,
        norm_pix_loss=normalize,
        use_mean_pooling=False,
        layer_norm_eps=1e-6,
    )
    theirs = transformers.VideoMAEForPreTraining(config)
    theirs.decoder.norm.eps = 1e-6  # as the authors have it
    upstream = VideoMAE("tiny", num_layers=2, image_size=32, patch_size=8, **SIZES)
    ours = video_mae(
        upstream, mask_ratio=0.75, decoder_size=16, decoder_layers=2, decoder_heads=2, normalize_patches=normalize
    )
    drawn(ours, 1)
    drawn(theirs, 2)
    with torch.no_grad():
        for block in [*upstream.encoder.blocks, *ours.terms[0].head.blocks]:
            size = block.attn.proj.weight.shape[0]
            block.attn.qkv.bias[size : 2 * size] = 0  # transformers has no bias of the keys: it has no effect
        for one, other in video_pairs(ours, theirs):
            (one if towards == "ours" else other).copy_(other if towards == "ours" else one)
    video = torch.rand(3, 6, 3, 32, 32)
    examples = Examples(Inputs(video=Padded(video, torch.full((3,), 6))))
    view = ours.views(examples, ours.encoder, torch.Generator().manual_seed(4))[0]
    mean, std = (torch.tensor(v)[:, None, None] for v in (upstream.image_mean, upstream.image_std))
    expected = theirs((video - mean) / std, bool_masked_pos=view.hidden["video"].mask).loss
    output = ours(examples, 0, torch.Generator().manual_seed(4))
    assert output.count == 3 * 3 * 12
    assert float(output.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    output.loss.backward()
    expected.backward()
    first, last = ours.encoder.upstream.encoder.patch_embed.proj.weight.grad, ours.terms[0].head.output.weight.grad
    assert torch.allclose(first, theirs.videomae.embeddings.patch_embeddings.projection.weight.grad, atol=1e-4)
    assert torch.allclose(last, theirs.decoder.head.weight.grad, atol=1e-4)


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (12, 4)])
def test_window_attention_equals_torchvision(shift: int, rows: int, columns: int) -> None:
    attention = WindowAttention(16, 4, columns, shift)
    drawn(attention)
    x = torch.randn(2, rows * columns, 16)
    expected = shifted_window_attention(
        x.unflatten(1, (rows, columns)),
        attention.qkv.weight,
        attention.proj.weight,
        attention.bias[attention.offsets].permute(2, 0, 1)[None],
        [4, 4],
        4,
        [shift, 0],
        qkv_bias=attention.qkv.bias,
        proj_bias=attention.proj.bias,
    )
    assert torch.allclose(attention(x), expected.flatten(1, 2), atol=1e-6)


def plain_window_attention(attention: WindowAttention, x: Tensor, shift: int) -> Tensor:
    """One clip (N, D): each token looks at those of its window, which are told by the numbers of rows and columns."""
    columns, heads = attention.columns, attention.num_heads
    q, k, v = attention.qkv(x).chunk(3, dim=-1)
    size = q.shape[1] // heads
    places = [divmod(n, columns) for n in range(len(x))]
    window = [((row - shift) // 4, column // 4) for row, column in places]
    out = torch.zeros_like(q)
    for n, (row, column) in enumerate(places):
        others = [m for m in range(len(x)) if window[m] == window[n]]
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            bias = [(row - places[m][0] + 3) * (2 * min(4, columns) - 1) + column - places[m][1] for m in others]
            bias = attention.bias[torch.tensor(bias) + min(4, columns) - 1, head]
            weights = ((k[others][:, part] @ q[n, part]) / math.sqrt(size) + bias).softmax(0)
            out[n, part] = weights @ v[others][:, part]
    return attention.proj(out)


@pytest.mark.parametrize("attention", ["local", "global"])
@pytest.mark.parametrize("normalize", [True, False])
def test_audio_mae_equals_a_clip_by_clip_computation(attention: str, normalize: bool) -> None:
    upstream = AudioMAE("tiny", num_layers=1, num_mel_bins=64, **SIZES)
    objective = audio_mae(
        upstream,
        decoder_size=16,
        decoder_layers=2,
        decoder_heads=2,
        decoder_attention=attention,
        normalize_patches=normalize,
    )
    drawn(objective)
    samples = (16000, 9000, 12345)  # 6, 3 and 4 rows of 4 patches
    clips = [torch.randn(n) * 0.1 for n in samples]
    data = nn.utils.rnn.pad_sequence(clips, batch_first=True, padding_value=7.0)
    examples = Examples(Inputs(waveforms=Padded(data, torch.tensor(samples))), seeds=(5, 6, 7))
    output = objective(examples, 0)
    masks = objective.views(examples, objective.encoder, torch.Generator())[0].hidden["audio"].mask
    encoder, decoder = upstream.encoder, objective.terms[0].head
    total, count = 0.0, 0
    for clip, mask in zip(clips, masks, strict=True):
        frames = upstream.frames(Padded(clip[None], torch.tensor([len(clip)])), torch.float32).data[0].numpy()
        rows = len(frames) // 16
        patches = np.stack([frames[16 * (n // 4) :][:16, 16 * (n % 4) :][:, :16].ravel() for n in range(rows * 4)])
        hidden = mask[: rows * 4]
        assert int((~hidden).sum()) == int(rows * 4 * (1 - 0.8))
        assert not mask[rows * 4 :].any()
        kernel, bias = encoder.patch_embed.proj.weight.flatten(1), encoder.patch_embed.proj.bias
        tokens = torch.from_numpy(patches) @ kernel.T + bias + encoder.positions.fixed(rows)
        seen = torch.cat([encoder.cls_token[0], tokens[~hidden]])
        seen = decoder.embed(encoder.norm(encoder.blocks[0](seen[None]))[0])
        filled = decoder.mask_token.expand(rows * 4, -1).clone()
        filled[~hidden] = seen[1:]
        filled = filled + decoder.positions.fixed(rows)
        if attention == "global":
            filled = torch.cat([seen[:1], filled])
        for number, block in enumerate(decoder.blocks):
            if attention == "global":
                filled = block(filled[None])[0]
                continue
            filled = filled + plain_window_attention(block.attn, block.norm1(filled), 2 * (number % 2))
            filled = filled + block.mlp(block.norm2(filled))
        restored = decoder.output(decoder.norm(filled))[-rows * 4 :].detach().numpy()
        if normalize:
            mean, variance = patches.mean(1, keepdims=True), patches.var(1, ddof=1, keepdims=True)
            patches = (patches - mean) / np.sqrt(variance + 1e-6)
        total += float(np.square(restored - patches).mean(1)[hidden.numpy()].sum())
        count += int(hidden.sum())
    assert output.count == count
    assert float(output.loss.detach()) == pytest.approx(total / count, rel=1e-4)


def plain_decoder(decoder: HierarchicalDecoder, encoded: Encoded, clip: int, levels: list[int]) -> Tensor:
    """Values of one clip's patches, with the skip connections named from the deepest on."""
    hidden, kept = encoded.hidden[clip], encoded.output.lengths[clip]
    table = decoder.positions.fixed(len(hidden) // decoder.positions.columns)
    tokens = decoder.mask_token + table
    tokens[~hidden] = encoded.output.data[clip, :kept] @ decoder.embed.weight.T + table[~hidden]
    state = decoder.blocks[0](tokens[None])
    for level, block in zip(levels, list(decoder.blocks)[1:], strict=True):
        context = encoded.taps[f"layer.{level}"].data[clip, :kept] @ decoder.embed.weight.T + table[~hidden]
        state = block(state, context[None])
    return decoder.output(decoder.norm(state))[0]


def test_hicmae_equals_its_equations_written_out() -> None:
    upstream = HiCMAE("tiny", num_layers=3, image_size=64, pad_last=True, **SIZES)
    objective = hicmae(upstream, levels=(1, 2, 3), decoder_size=16, decoder_heads=2)
    drawn(objective)
    audio, video = torch.randn(3, 16000) * 0.1, torch.rand(3, 6, 3, 64, 64)
    inputs = Inputs(waveforms=Padded(audio, torch.full((3,), 16000)), video=Padded(video, torch.full((3,), 6)))
    examples = Examples(inputs, seeds=(1, 2, 3))
    output = objective(examples, 0)
    view = objective.views(examples, objective.encoder, torch.Generator())[0]
    encoded = objective.encoder.encode(view)
    with torch.no_grad():
        layers = {stream: [] for stream in encoded}
        for stream, encoder in (("audio", upstream.audio), ("video", upstream.video)):
            for clip in range(3):
                single = Inputs(
                    waveforms=Padded(audio[clip : clip + 1], torch.tensor([16000])),
                    video=Padded(video[clip : clip + 1], torch.tensor([6])),
                )
                first = upstream.extract(single)[stream].hidden_states[0][0]
                state = first[~view.hidden[stream].mask[clip]][None]
                found = []
                for block in encoder.blocks:
                    state = block(state)
                    found.append(encoder.norm(state)[0])
                layers[stream].append(found)
        contrasts = []
        for level in range(3):
            a, v = (F.normalize(torch.stack([f[level].mean(0) for f in layers[s]]), dim=-1) for s in encoded)
            logits = (a @ v.T / 0.07).double().numpy()
            one, other = (np.log(np.exp(x).sum(1)) - np.diag(x) for x in (logits, logits.T))
            contrasts.append(one.mean() / 2 + other.mean() / 2)
            assert float(output.logs[f"contrast_{level + 1}/loss"]) == pytest.approx(contrasts[-1], rel=1e-4)
        squares = {}
        for term in list(objective.terms)[:2]:
            errors = []
            for clip in range(3):
                hidden = encoded[term.stream].hidden[clip]
                values = encoded[term.stream].taps["patches"].data[clip].double().numpy()
                if term.stream == "audio":
                    variance = values.var(1, ddof=1, keepdims=True)
                    truth = (values - values.mean(1, keepdims=True)) / np.sqrt(variance + 1e-6)
                else:
                    pixels = values.reshape(len(values), 2, 16 * 16, 3)
                    flat = pixels.reshape(len(values), -1, 3)
                    mean, std = flat.mean(1)[:, None, None], flat.std(1, ddof=1)[:, None, None]
                    pixels = (pixels - mean) / std
                    truth = np.stack([pixels[:, 0], pixels[:, 1] - pixels[:, 0]], 1).reshape(len(values), -1)
                restored = plain_decoder(term.head, encoded[term.stream], clip, [3, 2, 1]).numpy()
                errors.append(np.square(restored - truth)[hidden.numpy()].mean())
            squares[term.name] = np.mean(errors)
            assert float(output.logs[f"{term.name}/loss"]) == pytest.approx(squares[term.name], rel=1e-4)
    expected = squares["audio"] + squares["video"] + 0.0025 * sum(contrasts)
    assert float(output.loss.detach()) == pytest.approx(expected, rel=1e-4)
