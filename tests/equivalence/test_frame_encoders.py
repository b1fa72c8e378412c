"""The convolutional and recurrent encoders against explicit loops, from weights in their authors' layout.

Each test draws weights under the published names, computes the layers from them step by step, writes them to a file and
loads that file: names, order of gates and norms, paddings and front ends are checked together.
"""

from __future__ import annotations

import math
import runpy
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmssl import load_upstream

torchaudio = pytest.importorskip("torchaudio")
kaldi = pytest.importorskip("torchaudio.compliance.kaldi")
DRAWN = runpy.run_path(str(Path(__file__).with_name("drawn_weights.py")))
speech, Draw, conv, check = (DRAWN[name] for name in ("speech", "Draw", "conv", "check"))


def test_cpc(tmp_path: Path) -> None:
    weights, size, levels = Draw(), 6, 2
    convs = ((10, 5, 3), (8, 4, 2), (4, 2, 1), (4, 2, 1), (4, 2, 1))
    for index, (kernel, _, _) in enumerate(convs):
        weights.layer(f"gEncoder.conv{index}", size, size if index else 1, kernel)
        weights.affine(f"gEncoder.batchNorm{index}", size, (1, size, 1))
    for level in range(levels):
        for part in ("ih", "hh"):
            weights.layer(f"gAR.x_{part}_l{level}", 4 * 5, size if part == "ih" and not level else 5)
            for kind in ("weight", "bias"):
                weights[f"gAR.baseNet.{kind}_{part}_l{level}"] = weights.pop(f"gAR.x_{part}_l{level}.{kind}")
    weights.tensor("gAR.unused_head", 3)
    waveform = speech(3000)
    x = waveform[None]
    for index, (_, stride, padding) in enumerate(convs):
        x = conv(
            F.pad(x, (padding, padding)),
            weights[f"gEncoder.conv{index}.weight"],
            weights[f"gEncoder.conv{index}.bias"],
            stride,
        )
        deviation = torch.sqrt(x.var(dim=0, unbiased=True) + 1e-5)
        norm = f"gEncoder.batchNorm{index}"
        x = (x - x.mean(dim=0)) / deviation * weights[f"{norm}.weight"][0] + weights[f"{norm}.bias"][0]
        x = x.clamp(min=0)
    layers = [x.t()]
    for level in range(levels):
        w = {k: weights[f"gAR.baseNet.{k}_l{level}"] for k in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
        hidden, cell, out = torch.zeros(5), torch.zeros(5), []
        for frame in layers[-1]:
            i, f, g, o = (w["weight_ih"] @ frame + w["bias_ih"] + w["weight_hh"] @ hidden + w["bias_hh"]).split(5)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * cell.tanh()
            out.append(hidden)
        layers.append(torch.stack(out))
    del weights["gAR.unused_head"]
    content = {"config": {"hiddenEncoder": size}, "weights": dict(weights) | {"cpcCriterion.w": torch.ones(2)}}
    check(tmp_path / "cpc.pt", content, "cpc", waveform, layers)


@pytest.mark.parametrize(("skip", "zero_pad", "log"), [(True, False, True), (False, True, False), (True, True, True)])
def test_wav2vec1(tmp_path: Path, skip: bool, zero_pad: bool, log: bool) -> None:
    weights = Draw()
    front, context = [(4, 10, 5), (4, 8, 4), (4, 4, 2), (6, 1, 1)], [(6, 2, 1), (8, 3, 1), (8, 4, 1)]
    inputs = 1
    for index, (channels, kernel, _) in enumerate(front):
        weights.tensor(f"feature_extractor.conv_layers.{index}.0.weight", channels, inputs, kernel)
        weights.affine(f"feature_extractor.conv_layers.{index}.2", channels)
        inputs = channels
    for index, (channels, kernel, _) in enumerate(context):
        weights.layer(f"feature_aggregator.conv_layers.{index}.1", channels, inputs, kernel)
        weights.affine(f"feature_aggregator.conv_layers.{index}.3", channels)
        if skip and inputs != channels:
            weights.tensor(f"feature_aggregator.residual_proj.{index}.weight", channels, inputs, 1)
        inputs = channels
    weights.layer("wav2vec_predictions.project_to_steps", 3, 2)

    def normed(x: Tensor, name: str) -> Tensor:
        x = (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-5)
        return (x * weights[f"{name}.weight"][:, None] + weights[f"{name}.bias"][:, None]).relu()

    waveform = speech(2500)
    x = waveform[None]
    for index, (_, _, stride) in enumerate(front):
        name = f"feature_extractor.conv_layers.{index}"
        x = normed(conv(x, weights[f"{name}.0.weight"], None, stride), f"{name}.2")
    x = torch.log(1 + x.abs()) if log else x
    layers = [x.t()]
    for index, (_, kernel, _) in enumerate(context):
        name = f"feature_aggregator.conv_layers.{index}"
        before = torch.zeros(len(x), kernel - 1) if zero_pad else x[:, :1].repeat(1, kernel - 1)
        y = conv(torch.cat([before, x], dim=1), weights[f"{name}.1.weight"], weights[f"{name}.1.bias"])
        y = normed(y, f"{name}.3")
        if skip:
            projection = weights.get(f"feature_aggregator.residual_proj.{index}.weight")
            y = (y + (x if projection is None else projection[:, :, 0] @ x)) * math.sqrt(0.5)
        x = y
        layers.append(x.t())
    options = Namespace(
        conv_feature_layers="[(4, 10, 5)] + [(4, 8, 4), (4, 4, 2)] + [(6, 1, 1)] * 1",
        conv_aggregator_layers=str(context),
        skip_connections_agg=skip,
        residual_scale=0.5,
        log_compression=log,
        agg_zero_pad=zero_pad,
        aggregator="cnn",
        vq_type="none",
    )
    check(tmp_path / "wav2vec.pt", {"args": options, "model": dict(weights)}, "wav2vec1", waveform, layers)


def test_apc(tmp_path: Path) -> None:
    weights, size, bins = Draw(), 7, 30
    for level in range(3):
        for part in ("ih", "hh"):
            weights.tensor(
                f"rnn_layers.{level}.weight_{part}_l0", 3 * size, bins if part == "ih" and not level else size
            )
            weights.tensor(f"rnn_layers.{level}.bias_{part}_l0", 3 * size, scale=0.1)
    weights.layer("postnet", bins, size)
    waveform = speech(4000)
    mel = kaldi.fbank(waveform[None], num_mel_bins=bins, window_type="hamming", sample_frequency=16000)
    layers = [(mel - mel.mean(0)) / (1e-10 + mel.std(0))]
    for level in range(3):
        w = {k: weights[f"rnn_layers.{level}.{k}_l0"] for k in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
        hidden, out = torch.zeros(size), []
        for frame in layers[-1]:
            ri, zi, ni = (w["weight_ih"] @ frame + w["bias_ih"]).split(size)
            rh, zh, nh = (w["weight_hh"] @ hidden + w["bias_hh"]).split(size)
            gate = torch.sigmoid(zi + zh)
            hidden = (1 - gate) * torch.tanh(ni + torch.sigmoid(ri + rh) * nh) + gate * hidden
            out.append(hidden)
        layers.append(torch.stack(out) + (layers[-1] if level else 0))
    config = {
        "data": {"audio": {"feat_type": "fbank", "feat_dim": bins, "decode_wav": False, "frame_length": 25}},
        "model": {"paras": {"hidden_size": size, "num_layers": 3, "dropout": 0.1, "residual": True}},
    }
    check(tmp_path / "apc.ckpt", {"config": config, "model": dict(weights)}, "apc", waveform, layers[1:])


def transformer_layers(weights: Draw, x: Tensor, blocks: int, heads: int) -> list[Tensor]:
    """BERT's layers of (T, D) frames that are already projected."""

    def normed(v: Tensor, name: str) -> Tensor:
        mean = v.mean(-1, keepdim=True)
        v = (v - mean) / torch.sqrt((v - mean).pow(2).mean(-1, keepdim=True) + 1e-12)
        return v * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(v: Tensor, name: str) -> Tensor:
        return v @ weights[f"{name}.weight"].t() + weights[f"{name}.bias"]

    size = x.shape[1]
    positions = torch.zeros_like(x)
    for time in range(len(x)):
        for feature in range(size):
            angle = time / np.power(10000, 2 * (feature // 2) / size)
            positions[time, feature] = math.cos(angle) if feature % 2 else math.sin(angle)
    layers = [normed(x + positions, "input_representations.LayerNorm")]
    for block in range(blocks):
        name, x = f"encoder.layer.{block}", layers[-1]
        q, k, v = (linear(x, f"{name}.attention.self.{part}") for part in ("query", "key", "value"))
        joined = []
        for head in range(heads):
            part = slice(head * size // heads, (head + 1) * size // heads)
            logits = q[:, part] @ k[:, part].t() / math.sqrt(size // heads)
            joined.append(torch.softmax(logits, dim=-1) @ v[:, part])
        x = normed(
            x + linear(torch.cat(joined, dim=1), f"{name}.attention.output.dense"), f"{name}.attention.output.LayerNorm"
        )
        inner = linear(x, f"{name}.intermediate.dense")
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        layers.append(normed(x + linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm"))
    return layers


@pytest.mark.parametrize(("delta", "limit"), [(0, 1500), (1, 1500), (0, 20)])
def test_tera(tmp_path: Path, delta: int, limit: int) -> None:
    weights, size, inner, bins, blocks, heads = Draw(), 12, 20, 16, 2, 3
    weights.layer("input_representations.spec_transform", size, bins * (1 + delta))
    weights.affine("input_representations.LayerNorm", size)
    for block in range(blocks):
        name = f"encoder.layer.{block}"
        for part in ("query", "key", "value"):
            weights.layer(f"{name}.attention.self.{part}", size, size)
        weights.layer(f"{name}.attention.output.dense", size, size)
        weights.affine(f"{name}.attention.output.LayerNorm", size)
        weights.layer(f"{name}.intermediate.dense", inner, size)
        weights.layer(f"{name}.output.dense", size, inner)
        weights.affine(f"{name}.output.LayerNorm", size)
    waveform = speech(8100)
    scaled = waveform * 10 ** (-25 / 20) / waveform.pow(2).mean().sqrt()
    spectrum = torch.stft(scaled, 400, 160, 400, torch.hann_window(400), center=True, return_complex=True)
    mel = (torchaudio.transforms.MelScale(bins, 16000, n_stft=201)(spectrum.abs() ** 2) + 1e-10).log()
    if delta:
        mel = torch.cat([mel, torchaudio.functional.compute_deltas(mel)])
    mel = ((mel - mel.mean(1, keepdim=True)) / (mel.std(1, keepdim=True) + 1e-10)).t()
    weight, bias = (weights[f"input_representations.spec_transform.{kind}"] for kind in ("weight", "bias"))
    pieces = mel.chunk(math.ceil(len(mel) / limit))
    per_piece = [transformer_layers(weights, piece @ weight.t() + bias, blocks, heads) for piece in pieces]
    config = {
        "transformer": {
            "num_attention_heads": heads,
            "hidden_act": "gelu",
            "share_layer": False,
            "pre_layer_norm": False,
        },
        "task": {"sequence_length": limit},
        "audio": {
            "target_level": -25,
            "win_ms": 25,
            "hop_ms": 10,
            "n_freq": 201,
            "n_mels": bins,
            "input": {"feat_type": "mel", "channel": 0, "log": True, "delta": delta, "cmvn": True},
        },
    }
    old_names = {k.replace("LayerNorm.weight", "LayerNorm.gamma"): v for k, v in weights.items()}
    content = {"Upstream_Config": config, "Transformer": old_names, "SpecHead": {"output.bias": torch.ones(3)}}
    check(
        tmp_path / "tera.ckpt", content, "tera", waveform, [torch.cat(parts) for parts in zip(*per_piece, strict=True)]
    )


def sinc_filters(low: Tensor, band: Tensor, kernel: int) -> Tensor:
    """Ideal band-pass filters from their definition: the difference of two low-pass filters."""
    half = kernel // 2
    filters = np.zeros((len(low), kernel))
    points = np.linspace(0, kernel / 2 - 1, half)
    window = 0.54 - 0.46 * np.cos(2 * np.pi * points / kernel)
    for row in range(len(low)):
        lower = 50 + abs(float(low[row]))
        upper = min(max(lower + 50 + abs(float(band[row])), 50), 8000)
        for tap in range(half):
            time = (tap - half) / 16000
            value = 2 * upper * np.sinc(2 * upper * time) - 2 * lower * np.sinc(2 * lower * time)
            filters[row, tap] = filters[row, kernel - 1 - tap] = value * window[tap] / (2 * (upper - lower))
        filters[row, half] = 1.0
    return torch.from_numpy(filters).float()


@pytest.mark.parametrize("samples", [1600, 2351])
def test_pase_plus(tmp_path: Path, samples: int) -> None:
    weights, sizes, inner, width = Draw(), (3, 3, 4, 4, 5, 5, 6, 6), 7, 4
    kernels, strides = (251, 20, 11, 11, 11, 11, 11, 11), (1, 10, 2, 1, 2, 1, 2, 2)
    weights["blocks.0.conv.low_hz_"] = torch.tensor([[30.0], [500.0], [-2400.0]])
    weights["blocks.0.conv.band_hz_"] = torch.tensor([[470.0], [1900.0], [9000.0]])
    for index, (size, kernel) in enumerate(zip(sizes, kernels, strict=True)):
        if index:
            weights.layer(f"blocks.{index}.conv", size, sizes[index - 1], kernel)
        weights.batch_norm(f"blocks.{index}.norm", size)
        weights.tensor(f"blocks.{index}.act.weight", size, scale=0.3)
        if index < 7:
            weights.tensor(f"denseskips.{index}.weight", width, size, 1)
    weights.layer("rnn.layers.0.linear", 3 * inner, 2 * sizes[-1])
    weights.layer("W", width, inner, 1)
    weights.batch_norm("norm_out", width, affine=False)
    waveform = speech(samples)
    x, skips = waveform[None], []
    for index, (kernel, stride) in enumerate(zip(kernels, strides, strict=True)):
        pads = (kernel // 2 - 1, kernel // 2) if stride > 1 else (kernel // 2, kernel // 2)
        before, after = x[:, 1 : pads[0] + 1].flip(1), x[:, -pads[1] - 1 : -1].flip(1)
        x = torch.cat([before, x, after], dim=1)
        if index:
            x = conv(x, weights[f"blocks.{index}.conv.weight"], weights[f"blocks.{index}.conv.bias"], stride)
        else:
            filters = sinc_filters(
                weights["blocks.0.conv.low_hz_"][:, 0], weights["blocks.0.conv.band_hz_"][:, 0], kernel
            )
            x = conv(x, filters[:, None], None)
        x = weights.normed(f"blocks.{index}.norm", x)
        x = torch.where(x > 0, x, x * weights[f"blocks.{index}.act.weight"][:, None])
        if index < 7:
            skips.append(weights[f"denseskips.{index}.weight"][:, :, 0] @ x)
    frames, state, recurrent = x.t(), torch.zeros(inner), []
    for time, frame in enumerate(frames):
        past = frames[time - 1] if time else torch.zeros_like(frame)
        gates = weights["rnn.layers.0.linear.weight"] @ torch.cat([frame, past]) + weights["rnn.layers.0.linear.bias"]
        z, f, o = gates.split(inner)
        state = f.sigmoid() * z.tanh() + (1 - f.sigmoid()) * state
        recurrent.append(o.sigmoid() * state)
    hidden = torch.stack(recurrent)
    y = weights["W.weight"][:, :, 0] @ hidden.t() + weights["W.bias"][:, None]
    for skip in skips:
        factor = skip.shape[1] // y.shape[1]
        means = [skip[:, t * factor : (t + 1) * factor].mean(dim=1) for t in range(y.shape[1])]
        y = y + torch.stack(means, dim=1)
    expected = [frames, hidden, weights.normed("norm_out", y).t()]
    check(tmp_path / "pase.ckpt", {"step": 1, "state_dict": dict(weights)}, "pase_plus", waveform, expected)


def test_byol_a(tmp_path: Path) -> None:
    weights, size = Draw(), 10
    for index, inputs in ((0, 1), (4, 64), (8, 64)):
        weights.layer(f"features.{index}", 64, inputs, 3, 3)
        weights.batch_norm(f"features.{index + 1}", 64)
    weights.layer("fc.0", size, 64 * 8)
    weights.layer("fc.3", size, size)
    waveform = speech(6000)
    mel = torchaudio.transforms.MelSpectrogram(16000, 1024, 1024, 160, f_min=60, f_max=7800, n_mels=64)(waveform)
    x = ((mel + torch.finfo(torch.float32).eps).log() - -5.4919195)[None] / 5.0389895
    for index in (0, 4, 8):
        weight, bias = weights[f"features.{index}.weight"], weights[f"features.{index}.bias"]
        padded, out = F.pad(x, (1, 1, 1, 1)), torch.zeros(64, *x.shape[1:])
        for row in range(3):
            for column in range(3):
                view = padded[:, row : row + x.shape[1], column : column + x.shape[2]]
                out += torch.einsum("oi,ift->oft", weight[:, :, row, column], view)
        out = weights.normed(f"features.{index + 1}", out + bias[:, None, None]).relu()
        rows, columns = out.shape[1] // 2, out.shape[2] // 2
        x = out[:, : 2 * rows, : 2 * columns].reshape(64, rows, 2, columns, 2).amax(dim=(2, 4))
    frames = torch.stack([torch.cat([x[:, band, time] for band in range(8)]) for time in range(x.shape[2])])
    first = (frames @ weights["fc.0.weight"].t() + weights["fc.0.bias"]).relu()
    second = (first @ weights["fc.3.weight"].t() + weights["fc.3.bias"]).relu()
    content = {f"online.{name}": value for name, value in weights.items()} | {"projector.weight": torch.ones(2)}
    check(tmp_path / "byola.pth", content, "byol_a", waveform, [frames, first, second])
    upstream = load_upstream("byol_a", checkpoint=str(tmp_path / "byola.pth"))
    batch = torch.nn.utils.rnn.pad_sequence([speech(9000, 3), waveform], batch_first=True)
    embedding = upstream.embed(batch, torch.tensor([9000, 6000]))[1]
    torch.testing.assert_close(embedding, second.amax(0) + second.mean(0), rtol=1e-4, atol=1e-5)
