from __future__ import annotations

from typing import Any

import pytest
import torch

from mmssl import load_upstream
from mmssl.errors import ConfigError, InputError
from mmssl.nn.filterbank import fft_size


@pytest.mark.parametrize(
    ("name", "kwargs", "part"),
    [
        ("fbank", {"window_type": "hann"}, "povey"),
        ("fbank", {"high_freq": 9000.0}, "8000 Hz"),
        ("fbank", {"low_freq": 5000.0, "high_freq": 4000.0}, "low_freq < high_freq"),
        ("fbank", {"num_mel_bins": 0}, "at least one filter"),
        ("fbank", {"deltas": 3}, "0, 1 or 2"),
        ("fbank", {"normalize": "cmvn"}, "mean_variance"),
        ("fbank", {"frame_shift": 0.0}, "hop"),
        ("fbank", {"preemphasis_coefficient": 1.5}, "between 0 and 1"),
        ("mfcc", {"num_ceps": 30}, "num_mel_bins"),
        ("mel", {"mel_scale": "bark"}, "slaney"),
        ("mel", {"norm": "area"}, "slaney"),
        ("mel", {"floor": 0.0}, "more than 0"),
        ("fbank", {"num_mels": 40}, "num_mel_bins"),
    ],
)
def test_wrong_arguments_are_named(name: str, kwargs: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        load_upstream(name, **kwargs)


@pytest.mark.parametrize("name", ["fbank", "mfcc", "mel", "spectrogram"])
def test_silence_and_full_scale_stay_finite(name: str) -> None:
    upstream = load_upstream(name)
    waveforms = torch.stack([torch.zeros(4000), torch.ones(4000), -torch.ones(4000)])
    assert upstream(waveforms)["audio"].hidden_states[0].isfinite().all()


def test_an_empty_clip_and_one_below_a_window_are_refused() -> None:
    with pytest.raises(InputError, match="at least 400 samples"):
        load_upstream("fbank")(torch.zeros(1, 399))
    assert load_upstream("fbank")(torch.zeros(1, 400))["audio"].lengths[0].tolist() == [1]


def test_truncated_windows_follow_kaldi() -> None:
    spec = load_upstream("fbank", sample_rate=22050).spec
    assert (spec.min_length, spec.streams["audio"].hop_lengths) == (551, (220,))
    assert [fft_size(n) for n in (2, 400, 512, 513)] == [2, 512, 512, 1024]


def test_casting_changes_the_result_and_not_the_arithmetic() -> None:
    waveform = 0.1 * torch.randn(1, 8000, generator=torch.Generator().manual_seed(0))
    reference = load_upstream("fbank")(waveform)["audio"].hidden_states[0]
    half = load_upstream("fbank").to(torch.bfloat16)(waveform)["audio"].hidden_states[0]
    assert half.dtype == torch.bfloat16
    # only the result is rounded: 8 bits of mantissa
    assert torch.equal(half, reference.to(torch.bfloat16))
