from __future__ import annotations

import pytest
import torch

from mmssl.errors import ConfigError
from mmssl.nn.log_mel import LogMel, standardize_frames


@pytest.mark.parametrize(
    "options",
    [
        {"num_mel_bins": 40},
        {"num_mel_bins": 64, "n_fft": 1024, "low_freq": 60.0, "high_freq": 7800.0},
        {
            "n_fft": 512,
            "window_length": 400,
            "window": "hamming",
            "low_freq": 20.0,
            "high_freq": 7600.0,
            "offset": 1e-6,
        },
        {"n_fft": 512, "window_length": 401, "hop_length": 100},
    ],
)
def test_it_equals_torchaudio(options: dict) -> None:
    torchaudio = pytest.importorskip("torchaudio")
    log_mel = LogMel(**options)
    wave = torch.randn(2, 5003, generator=torch.Generator().manual_seed(0)) * 0.1
    reference = torchaudio.transforms.MelSpectrogram(
        16000,
        log_mel.n_fft,
        options.get("window_length"),
        log_mel.hop_length,
        f_min=options.get("low_freq", 0.0),
        f_max=options.get("high_freq"),
        window_fn=torch.hamming_window if "window" in options else torch.hann_window,
        n_mels=options.get("num_mel_bins", 80),
    )(wave)
    found = log_mel(wave)
    assert found.shape[1] == log_mel.output_lengths(torch.tensor([5003])).item()
    torch.testing.assert_close(found, (reference + log_mel.offset).log().transpose(1, 2), atol=2e-3, rtol=1e-4)


def test_the_shortest_clip_gives_a_frame_and_casts_do_not_reach_the_tables() -> None:
    log_mel = LogMel()
    wave = torch.randn(1, log_mel.min_length, generator=torch.Generator().manual_seed(0))
    assert log_mel(wave).shape == (1, 2, 80)
    assert torch.equal(LogMel().half()(wave), log_mel(wave))
    with pytest.raises(RuntimeError):
        log_mel(wave[:, 1:])


def test_standardised_frames_have_mean_0_and_sample_deviation_1() -> None:
    frames = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(0)) * 5 + 2
    out = standardize_frames(frames)
    torch.testing.assert_close(out.mean(1), torch.zeros(2, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(out.std(1), torch.ones(2, 3))
    assert not standardize_frames(frames[:, :1]).any()
    assert not standardize_frames(torch.full((1, 4, 2), 0.7)).any()


def test_wrong_windows_are_named() -> None:
    with pytest.raises(ConfigError, match="hann, hamming"):
        LogMel(window="povey")
    with pytest.raises(ConfigError, match="even n_fft"):
        LogMel(n_fft=401)
