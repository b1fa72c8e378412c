"""The spectral upstreams against torchaudio's Kaldi module, librosa and a plain loop over Kaldi's delta rule."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmssl.lengths import window_count
from mmssl.nn.filterbank import add_deltas, normalize_frames
from mmssl.upstreams.spectral import Fbank, Mel, Mfcc, Spectrogram

kaldi = pytest.importorskip("torchaudio.compliance.kaldi")


def speechlike(samples: int, seed: int = 0, rate: int = 16000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(samples) / rate
    tones = sum(torch.sin(2 * torch.pi * f * time) / (1 + k) for k, f in enumerate((130.0, 470.0, 1900.0, 3300.0)))
    envelope = 0.5 + 0.5 * torch.sin(2 * torch.pi * 3 * time)
    return 0.1 * tones * envelope + 0.02 * torch.randn(samples, generator=generator) + 0.01


def audio(upstream: torch.nn.Module, waveform: torch.Tensor) -> torch.Tensor:
    return upstream(waveform[None])["audio"].hidden_states[0][0]


GRID = [
    {},
    {"num_mel_bins": 40, "low_freq": 0.0, "high_freq": -200.0},
    {"num_mel_bins": 23, "window_type": "hamming", "use_energy": True},
    {"num_mel_bins": 64, "window_type": "hanning", "use_energy": True, "htk_compat": True},
    {"window_type": "blackman", "frame_length": 32.0, "frame_shift": 8.0},
    {"window_type": "rectangular", "preemphasis_coefficient": 0.0, "remove_dc_offset": False},
    {"num_mel_bins": 128, "window_type": "hanning", "high_freq": 7600.0, "preemphasis_coefficient": 0.9},
]


@pytest.mark.parametrize("rate", [8000, 16000, 22050])
@pytest.mark.parametrize("options", GRID)
def test_fbank_equals_torchaudio(options: dict, rate: int) -> None:
    if options.get("high_freq", 0) > rate / 2:
        options = options | {"high_freq": 0.0}
    waveform = speechlike(rate + 37, rate=rate)
    expected = kaldi.fbank(waveform[None] * 2**15, sample_frequency=rate, **{"num_mel_bins": 80} | options)
    ours = audio(Fbank(sample_rate=rate, **options), waveform)
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() < 1e-4


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_ceps": 20, "num_mel_bins": 40},
        {"cepstral_lifter": 0.0, "window_type": "hamming"},
        {"use_energy": True, "num_ceps": 12},
        {"low_freq": 100.0, "high_freq": 4000.0, "preemphasis_coefficient": 0.0},
    ],
)
def test_mfcc_equals_torchaudio(options: dict) -> None:
    waveform = speechlike(9000, seed=1)
    expected = kaldi.mfcc(waveform[None] * 2**15, **options)
    # cepstra are sums of up to 40 log energies times a lifter of up to 12
    assert (audio(Mfcc(**options), waveform) - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("options", [{}, {"window_type": "hamming", "frame_length": 20.0}, {"remove_dc_offset": False}])
def test_spectrogram_equals_torchaudio(options: dict) -> None:
    waveform = speechlike(8000, seed=2)
    expected = kaldi.spectrogram(waveform[None] * 2**15, **options)
    ours = audio(Spectrogram(**options), waveform)
    # compared as power: a bin that cancels to nearly nothing has no stable logarithm in float32
    assert ours.shape == expected.shape
    assert (ours - expected).abs().median() < 1e-6
    assert (ours.exp() - expected.exp()).abs().max() < 1e-5 * expected.exp().max()


@pytest.mark.parametrize(("scale", "norm"), [("htk", None), ("slaney", None), ("slaney", "slaney"), ("htk", "slaney")])
@pytest.mark.parametrize("n_fft", [400, 512])
def test_mel_equals_torchaudio_and_librosa(scale: str, norm: str | None, n_fft: int) -> None:
    import librosa
    import torchaudio

    waveform = speechlike(9001, seed=3)
    options = {"n_fft": n_fft, "hop_length": 160, "n_mels": 40}
    transform = torchaudio.transforms.MelSpectrogram(16000, center=False, mel_scale=scale, norm=norm, **options)
    expected = transform(waveform).clamp(min=1e-10).log().T
    ours = audio(Mel(num_mel_bins=40, n_fft=n_fft, mel_scale=scale, norm=norm), waveform)
    assert (ours - expected).abs().max() < 1e-4
    by_librosa = librosa.feature.melspectrogram(
        y=waveform.numpy(), sr=16000, center=False, htk=scale == "htk", norm=norm, **options
    )
    assert np.abs(ours.numpy() - np.log(np.maximum(by_librosa, 1e-10)).T).max() < 1e-4


def loop_over_kaldi_deltas(x: np.ndarray, order: int, window: int = 2) -> np.ndarray:
    """DeltaFeatures of Kaldi, written as its loops are: scales by repeated convolution, frames clamped to the clip."""
    scales = [np.ones(1)]
    for _ in range(order):
        previous = scales[-1]
        offset = (len(previous) - 1) // 2
        current = np.zeros(len(previous) + 2 * window)
        normalizer = sum(j * j for j in range(-window, window + 1))
        for j in range(-window, window + 1):
            for k in range(-offset, offset + 1):
                current[j + k + offset + window] += j * previous[k + offset] / normalizer
        scales.append(current)
    out = np.zeros((len(x), x.shape[1] * (order + 1)))
    for i, scale in enumerate(scales):
        reach = (len(scale) - 1) // 2
        for t in range(len(x)):
            for j in range(-reach, reach + 1):
                frame = x[min(max(t + j, 0), len(x) - 1)]
                out[t, i * x.shape[1] : (i + 1) * x.shape[1]] += scale[j + reach] * frame
    return out


@pytest.mark.parametrize("order", [1, 2])
def test_deltas_follow_kaldi_at_every_length(order: int) -> None:
    data = torch.randn(3, 9, 4, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([9, 1, 4])
    ours = add_deltas(data, lengths, order)
    for row, size in enumerate(lengths.tolist()):
        expected = loop_over_kaldi_deltas(data[row, :size].double().numpy(), order)
        assert np.abs(ours[row, :size].numpy() - expected).max() < 1e-5


def test_interior_deltas_equal_torchaudio() -> None:
    import torchaudio

    data = torch.randn(1, 30, 4, generator=torch.Generator().manual_seed(0))
    first = torchaudio.functional.compute_deltas(data.transpose(1, 2), win_length=5).transpose(1, 2)
    assert torch.allclose(add_deltas(data, torch.tensor([30]), 1)[..., 4:], first, atol=1e-6)


def test_normalisation_covers_valid_frames_only() -> None:
    lengths = torch.tensor([3000, 9000])
    waveforms = torch.zeros(2, 9000)
    for row, size in enumerate(lengths.tolist()):
        waveforms[row, :size] = speechlike(size, seed=row)
    plain, centred = Fbank(deltas=1), Fbank(deltas=1, normalize=True)
    scaled = Fbank(deltas=1, normalize="mean_variance")
    for row, size in enumerate(window_count(lengths, 400, 160).tolist()):
        reference = plain(waveforms, lengths)["audio"].hidden_states[0][row, :size]
        mean = reference - reference.mean(0)
        assert torch.allclose(centred(waveforms, lengths)["audio"].hidden_states[0][row, :size], mean, atol=1e-4)
        expected = mean / reference.std(0, correction=0)
        assert torch.allclose(scaled(waveforms, lengths)["audio"].hidden_states[0][row, :size], expected, atol=1e-3)


def test_constant_features_stay_finite_when_scaled() -> None:
    out = normalize_frames(torch.ones(1, 5, 2), torch.tensor([5]), variance=True)
    assert torch.equal(out, torch.zeros(1, 5, 2))
