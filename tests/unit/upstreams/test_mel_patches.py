"""Rows of mel patches."""

from __future__ import annotations

import pytest
import torch

from mmssl.errors import ConfigError
from mmssl.types import Padded
from mmssl.upstreams.mel_patches import MelRows, token_mask


def rows(rows_: MelRows, *lengths: int) -> Padded:
    data = torch.zeros(len(lengths), max(lengths))
    for row, length in enumerate(lengths):
        data[row, :length] = 0.1 * torch.randn(length, generator=torch.Generator().manual_seed(row))
    return rows_(Padded(data, torch.tensor(lengths)), torch.float32)


def test_only_whole_rows_of_valid_frames() -> None:
    mel = MelRows(-4.0, 9.0)
    whole = 400 + 160 * 31
    found = rows(mel, whole, whole - 1, mel.min_length)
    assert found.lengths.tolist() == [2, 1, 1]
    assert found.data.shape == (3, 32, 128)
    assert not found.data[1:, 16:].any()
    assert mel.output_lengths(torch.tensor([whole, whole - 1, mel.min_length - 1])).tolist() == [2, 1, 0]


def test_the_last_row_is_filled_with_scaled_zeros() -> None:
    mel = MelRows(-4.0, 8.0, pad_last=True)
    found = rows(mel, 400 + 160 * 17, 400)
    assert found.lengths.tolist() == [2, 1]
    assert torch.equal(found.data[0, 18:], torch.full((14, 128), 0.5))
    assert torch.equal(found.data[1, 1:16], torch.full((15, 128), 0.5))
    assert not found.data[1, 16:].any()
    assert mel.min_length == 400


def test_frames_equal_torchaudio() -> None:
    import torchaudio

    waveform = 0.1 * torch.randn(400 + 160 * 15, generator=torch.Generator().manual_seed(0))
    expected = torchaudio.compliance.kaldi.fbank(
        waveform[None], window_type="hanning", num_mel_bins=128, sample_frequency=16000, htk_compat=True
    )
    found = rows(MelRows(-4.2677393, 9.1379948), len(waveform)).data[0]
    assert torch.allclose(found, (expected + 4.2677393) / 9.1379948, atol=1e-4)


@pytest.mark.parametrize("pad_last", [False, True])
def test_longest_clip(pad_last: bool) -> None:
    mel = MelRows(0.0, 1.0, pad_last=pad_last)
    longest = mel.max_length(3)
    assert longest is not None
    assert mel.output_lengths(torch.tensor([longest, longest + 1])).tolist() == [3, 4]
    assert mel.max_length(None) is None


def test_bins_fill_patches() -> None:
    with pytest.raises(ConfigError, match="multiple of the patch size 16"):
        MelRows(0.0, 1.0, num_mel_bins=100)


def test_no_mask_where_nothing_is_padded() -> None:
    assert token_mask(torch.tensor([4, 4]), 4) is None
    assert token_mask(torch.tensor([4, 2]), 4).tolist() == [[True] * 4, [True, True, False, False]]  # type: ignore[union-attr]
