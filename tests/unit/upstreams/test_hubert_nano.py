"""The encoder that comes with mmssl: there, small, as its card says, and computed as transformers computes a HuBERT."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchaudio
import transformers
from safetensors.torch import load_file
from torch import nn

import mmssl
from mmssl.errors import CheckpointError, ConfigError
from mmssl.upstreams import hubert_nano
from mmssl.upstreams.base import Upstream
from mmssl.upstreams.exported import load_exported
from mmssl.upstreams.hubert_nano import FOLDER
from mmssl.upstreams.speech_config import PRESETS, to_transformers
from mmssl.upstreams.speech_weights import from_canonical


@pytest.fixture(scope="module")
def upstream() -> Upstream:
    return mmssl.load_upstream("hubert_nano")


def clip(size: int = 12000) -> torch.Tensor:
    return 0.1 * torch.randn(1, size, generator=torch.Generator().manual_seed(0))


def test_the_folder_is_small_and_has_a_card() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 20e6
    card = (FOLDER / "README.md").read_text(encoding="utf-8").lower()
    for word in ("licence", "debian_speech", "steps", "emodb", "ravdess", "fsdd", "float16"):
        assert word in card
    assert "Curves of iteration 2" in (FOLDER / "training.html").read_text(encoding="utf-8")


def test_weights_are_stored_in_sixteen_bits_and_computed_with_in_32(upstream: Upstream) -> None:
    stored = load_file(FOLDER / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    assert {p.dtype for p in upstream.parameters()} == {torch.float32}
    assert sum(p.numel() for p in upstream.parameters()) == 1_869_344


class Frames(nn.Module):
    """Log-mel frames of torchaudio in the place of transformers' convolutions: (B, T) -> (B, 80, T')."""

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        mel = torchaudio.transforms.MelSpectrogram(16000, n_fft=400, hop_length=160, n_mels=40, mel_scale="htk")
        frames = ((mel(waveforms).transpose(1, 2) + 1e-6).log() + 5) / 5
        return frames[:, : frames.shape[1] // 2 * 2].reshape(len(waveforms), -1, 80).transpose(1, 2)


def test_transformers_computes_the_same_on_frames_of_torchaudio(upstream: Upstream) -> None:
    sizes = PRESETS["mel_hubert_nano"]
    named = from_canonical(upstream.state_dict(), replace(sizes, conv_channels=()))
    convolutional = to_transformers(replace(sizes, mel_bins=0, normalize=True))
    model = transformers.HubertModel(transformers.HubertConfig(**convolutional)).eval()
    model.feature_extractor, model.feature_projection = Frames(), nn.Linear(80, 192)
    for module, prefix in (
        (model.encoder, "encoder."),
        (model.feature_projection, "feature_projection.projection."),
    ):
        module.load_state_dict({n.removeprefix(prefix): v for n, v in named.items() if n.startswith(prefix)})
    with torch.no_grad():
        expected = model(clip(), output_hidden_states=True).hidden_states
        found = upstream(clip())["audio"].hidden_states
    assert len(found) == len(expected) == 5
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-3)


def test_fewer_layers_are_the_first_ones_and_the_generator_stays(upstream: Upstream) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    short = mmssl.load_upstream("hubert_nano", num_layers=2)
    assert torch.equal(torch.get_rng_state(), state)
    for ours, whole in zip(short(clip())["audio"].hidden_states, upstream(clip())["audio"].hidden_states, strict=False):
        torch.testing.assert_close(ours, whole, rtol=0, atol=0)
    assert short.spec.streams["audio"].num_layers == 3
    with pytest.raises(ConfigError, match="has 4 layers"):
        mmssl.load_upstream("hubert_nano", num_layers=7)


def test_the_folder_loads_like_any_exported_one(upstream: Upstream) -> None:
    again = load_exported(str(FOLDER))
    assert again.spec == upstream.spec
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), upstream.parameters(), strict=True))


def test_the_untrained_one_has_the_same_sizes_and_other_weights(upstream: Upstream) -> None:
    untrained = mmssl.load_upstream("hubert", preset="mel_hubert_nano", seed=0)
    assert untrained.spec.streams == upstream.spec.streams
    drawn, learnt = untrained.state_dict(), upstream.state_dict()
    assert drawn.keys() == learnt.keys()
    assert not any(torch.equal(drawn[name], learnt[name]) for name in drawn if drawn[name].dim() > 1)


def test_missing_weights_are_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hubert_nano, "FOLDER", tmp_path / "gone")
    with pytest.raises(CheckpointError, match="gone"):
        mmssl.load_upstream("hubert_nano")
