from __future__ import annotations

import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl import lengths

WAV2VEC2 = [(10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2)]


def test_wav2vec2_stack_has_the_published_numbers() -> None:
    assert lengths.receptive_field(WAV2VEC2) == 400
    assert lengths.hop_length(WAV2VEC2) == 320
    assert lengths.conv_stack_length(16000, WAV2VEC2) == 49
    assert lengths.conv_stack_length(400, WAV2VEC2) == 1
    assert lengths.conv_stack_length(399, WAV2VEC2) == 0


@settings(deadline=None, max_examples=60)
@given(
    length=st.integers(1, 300),
    kernel=st.integers(1, 12),
    stride=st.integers(1, 6),
    padding=st.integers(0, 5),
    dilation=st.integers(1, 3),
)
def test_conv_length_is_what_torch_returns(length: int, kernel: int, stride: int, padding: int, dilation: int) -> None:
    expected = lengths.conv_length(length, kernel, stride, padding, dilation)
    assert expected == int(lengths.conv_length(torch.tensor([length]), kernel, stride, padding, dilation))
    if length + 2 * padding < dilation * (kernel - 1) + 1:
        assert expected == 0
    else:
        weight = torch.zeros(1, 1, kernel)
        out = torch.nn.functional.conv1d(torch.zeros(1, 1, length), weight, None, stride, padding, dilation)
        assert expected == out.shape[-1]


@pytest.mark.parametrize(
    ("old", "new"), [(8000, 16000), (44100, 16000), (48000, 16000), (22050, 16000), (16000, 11025)]
)
def test_resampled_length_is_what_torchaudio_returns(old: int, new: int) -> None:
    for samples in (1, 2, 77, 1000, 4411):
        out = torchaudio.functional.resample(torch.zeros(samples), old, new)
        assert out.shape[-1] == lengths.resampled_length(samples, old, new)


@given(st.integers(0, 10**9), st.sampled_from([8000, 11025, 16000, 22050, 44100, 48000]))
def test_a_sample_survives_the_way_through_seconds(samples: int, rate: int) -> None:
    assert lengths.seconds_to_samples(lengths.samples_to_seconds(samples, rate), rate) == samples


def test_seconds_round_to_the_nearest_sample() -> None:
    assert lengths.seconds_to_samples(0.1, 16000) == 1600
    assert lengths.seconds_to_samples(0.5 / 16000, 16000) == 1
    assert lengths.seconds_to_samples(0.49 / 16000, 16000) == 0


def test_window_count_matches_kaldi_snip_edges() -> None:
    for samples in (400, 401, 559, 560, 561, 16000):
        features = torchaudio.compliance.kaldi.fbank(torch.randn(1, samples), dither=0.0)
        assert lengths.window_count(samples, 400, 160) == len(features)
    assert lengths.window_count(399, 400, 160) == 0


def test_padding_is_cleared_even_where_it_is_nan() -> None:
    data = torch.full((2, 4, 3), float("nan"))
    data[0, :2], data[1, :4] = 1.0, 2.0
    cleared = lengths.zero_padding(data, torch.tensor([2, 4]))
    assert torch.equal(cleared[0, :, 0], torch.tensor([1.0, 1.0, 0.0, 0.0]))
    assert torch.equal(cleared[1], torch.full((4, 3), 2.0))


def test_pad_and_mask_agree() -> None:
    data, sizes = lengths.pad([torch.ones(3, 2), torch.ones(5, 2)])
    assert data.shape == (2, 5, 2)
    assert sizes.dtype == torch.int64
    assert torch.equal(lengths.valid_mask(sizes), data[..., 0] == 1)
