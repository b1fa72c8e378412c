"""ECAPA-TDNN and x-vectors against explicit loops, and on padded batches.

As in test_frame_encoders.py, weights are drawn under the published names.
"""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmssl import load_upstream
from mmssl.nn.tdnn import EcapaEncoder, XVectorEncoder
from mmssl.types import Padded

torchaudio = pytest.importorskip("torchaudio")
kaldi = pytest.importorskip("torchaudio.compliance.kaldi")
DRAWN = runpy.run_path(str(Path(__file__).with_name("drawn_weights.py")))
speech, Draw, conv, check = (DRAWN[name] for name in ("speech", "Draw", "conv", "check"))


def ecapa_weights(width: int, attention: int, embedding: int) -> Draw:
    weights = Draw()
    weights.layer("conv1", width, 80, 5)
    weights.batch_norm("bn1", width)
    for layer in ("layer1", "layer2", "layer3"):
        for part in ("1", "3"):
            weights.layer(f"{layer}.conv{part}", width, width, 1)
            weights.batch_norm(f"{layer}.bn{part}", width)
        for step in range(7):
            weights.layer(f"{layer}.convs.{step}", width // 8, width // 8, 3)
            weights.batch_norm(f"{layer}.bns.{step}", width // 8)
        weights.layer(f"{layer}.se.se.1", 128, width, 1)
        weights.layer(f"{layer}.se.se.3", width, 128, 1)
    weights.layer("layer4", 1536, 3 * width, 1)
    weights.layer("attention.0", attention, 4608, 1)
    weights.batch_norm("attention.2", attention)
    weights.layer("attention.4", 1536, attention, 1)
    weights.batch_norm("bn5", 3072)
    weights.layer("fc6", embedding, 3072)
    weights.batch_norm("bn6", embedding)
    return weights


def ecapa_reference(weights: Draw, waveform: Tensor) -> tuple[list[Tensor], Tensor]:
    emphasized = torch.cat([waveform[:1] - 0.97 * waveform[1], waveform[1:] - 0.97 * waveform[:-1]])
    mel = torchaudio.transforms.MelSpectrogram(
        16000, 512, 400, 160, f_min=20, f_max=7600, window_fn=torch.hamming_window, n_mels=80
    )(emphasized)
    mel = (mel + 1e-6).log()
    mel = mel - mel.mean(dim=1, keepdim=True)

    def run(x: Tensor, name: str, norm: str | None, dilation: int = 1) -> Tensor:
        reach = weights[f"{name}.weight"].shape[2] // 2 * dilation
        out = conv(F.pad(x, (reach, reach)), weights[f"{name}.weight"], weights[f"{name}.bias"], 1, dilation).relu()
        return out if norm is None else weights.normed(norm, out)

    stem = run(mel, "conv1", "bn1")
    outputs, total = [stem], stem
    for number, dilation in ((1, 2), (2, 3), (3, 4)):
        name, x = f"layer{number}", total
        groups = run(x, f"{name}.conv1", f"{name}.bn1").split(len(stem) // 8)
        kept, last = [], torch.zeros(())
        for step in range(7):
            last = run(groups[step] + last, f"{name}.convs.{step}", f"{name}.bns.{step}", dilation)
            kept.append(last)
        out = run(torch.cat([*kept, groups[7]]), f"{name}.conv3", f"{name}.bn3")
        gate = (weights[f"{name}.se.se.1.weight"][..., 0] @ out.mean(1) + weights[f"{name}.se.se.1.bias"]).relu()
        gate = torch.sigmoid(weights[f"{name}.se.se.3.weight"][..., 0] @ gate + weights[f"{name}.se.se.3.bias"])
        outputs.append(out * gate[:, None] + x)
        total = total + outputs[-1]
    joined = run(torch.cat(outputs[1:]), "layer4", None)
    mean, std = joined.mean(1, keepdim=True), joined.var(1, keepdim=True).clamp(min=1e-4).sqrt()
    seen = torch.cat([joined, mean.expand_as(joined), std.expand_as(joined)])
    scores = conv(
        run(seen, "attention.0", "attention.2").tanh(), weights["attention.4.weight"], weights["attention.4.bias"]
    )
    share = scores.softmax(1)
    mean = (joined * share).sum(1)
    std = ((joined**2 * share).sum(1) - mean**2).clamp(min=1e-4).sqrt()
    pooled = weights.normed("bn5", torch.cat([mean, std]))
    return [o.t() for o in (*outputs, joined)], weights.normed(
        "bn6", weights["fc6.weight"] @ pooled + weights["fc6.bias"]
    )


def test_ecapa_tdnn(tmp_path: Path) -> None:
    weights, waveform = ecapa_weights(16, 8, 6), speech(5000)
    expected, embedding = ecapa_reference(weights, waveform)
    content = {f"speaker_encoder.{name}": value for name, value in weights.items()}
    content |= {"speaker_encoder.torchfbank.1.mel_scale.fb": torch.ones(2), "speaker_loss.weight": torch.ones(3)}
    path = tmp_path / "pretrain.model"
    check(path, content, "ecapa_tdnn", waveform, expected)
    upstream = load_upstream("ecapa_tdnn", checkpoint=str(path))
    batch = torch.nn.utils.rnn.pad_sequence([speech(9000, 3), waveform], batch_first=True)
    found = upstream.embed(batch, torch.tensor([9000, 5000]))[1]
    torch.testing.assert_close(found, embedding, rtol=1e-4, atol=1e-5)


def test_xvector_layers_and_embedding() -> None:
    upstream = load_upstream("xvector", channels=6, wide_size=9, embedding_size=5)
    for module in upstream.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_(generator=torch.Generator().manual_seed(1))
            module.running_var.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(2))
    waveform = speech(4000)
    mel = kaldi.fbank(waveform[None] * 2**15, num_mel_bins=24, sample_frequency=16000)
    x = (mel - mel.mean(0)).t()
    batch = torch.nn.utils.rnn.pad_sequence([speech(9000, 3), waveform], batch_first=True)
    layers = upstream(batch, torch.tensor([9000, 4000]))["audio"]
    for index, (kernel, dilation) in enumerate(((5, 1), (3, 2), (3, 3), (1, 1), (1, 1))):
        part, reach = upstream.encoder.layers[index], kernel // 2 * dilation
        x = conv(F.pad(x, (reach, reach)), part.conv.weight, part.conv.bias, 1, dilation).relu()
        mean, variance = part.norm.running_mean[:, None], part.norm.running_var[:, None]
        x = (x - mean) / (variance + 1e-5).sqrt()
        torch.testing.assert_close(layers.hidden_states[index][1, : x.shape[1]], x.t(), rtol=1e-4, atol=2e-5)
    pooled = torch.cat([x.mean(1), x.std(1, unbiased=False)])
    expected = upstream.encoder.embedding.weight @ pooled + upstream.encoder.embedding.bias
    torch.testing.assert_close(upstream.embed(batch, torch.tensor([9000, 4000]))[1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "encoder", [EcapaEncoder(12, 16, 24, 5), XVectorEncoder(12, 8, 10, 5)], ids=["ecapa", "xvector"]
)
def test_speaker_encoders_do_not_see_padding(encoder: torch.nn.Module) -> None:
    encoder.eval()
    generator = torch.Generator().manual_seed(0)
    clips = [torch.randn(size, 12, generator=generator) for size in (31, 1, 17)]
    padded = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True, padding_value=9.0)
    with torch.no_grad():
        together = encoder(Padded(padded, torch.tensor([31, 1, 17])))
        for row, clip in enumerate(clips):
            alone = encoder(Padded(clip[None], torch.tensor([len(clip)])))
            torch.testing.assert_close(together[row], alone[0], rtol=1e-5, atol=1e-5)
