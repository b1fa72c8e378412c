"""Log-mel frames as audio masked autoencoders take them: 128 Kaldi filters every 10 ms, in rows of whole patches."""

from __future__ import annotations

import torch
from torch import Tensor

from mmssl.errors import ConfigError
from mmssl.lengths import patch_count, valid_mask, zero_padding
from mmssl.types import Padded
from mmssl.upstreams.spectral import KALDI_SCALE, Fbank

SAMPLE_RATE = 16000
AUDIOSET_MEAN, AUDIOSET_STD = -4.2677393, 4.5689974


class MelRows:
    """Kaldi filterbank with a Hann window on waveforms in [-1, 1], scaled by constants, cut into rows of a patch each.

    The authors of AudioMAE, CAV-MAE and HiCMAE pad or cut the filterbank to a fixed number of frames, with zeros put in
    before the scaling. Here a clip keeps its own length. The frames after its last whole row are dropped, or filled up
    to a row with those zeros. Their subtraction of the waveform's mean is left to the filterbank, which subtracts each
    window's. Tables and arithmetic stay in float32.

    Args:
        mean, scale: each value becomes (x - mean) / scale.
        num_mel_bins: filters; a multiple of `patch_size`.
        patch_size: frames of a row.
        pad_last: fill up the last row instead of dropping what does not fill it.

    Attributes:
        columns: patches of a row.
        hop_length: samples between two rows.
        min_length: samples of the shortest clip that gives a row.
    """

    def __init__(
        self, mean: float, scale: float, *, num_mel_bins: int = 128, patch_size: int = 16, pad_last: bool = False
    ) -> None:
        if num_mel_bins % patch_size:
            raise ConfigError(f"num_mel_bins must be a multiple of the patch size {patch_size}, got {num_mel_bins}.")
        self.mean, self.scale, self.patch_size, self.pad_last = mean, scale, patch_size, pad_last
        self.fbank = Fbank(num_mel_bins, SAMPLE_RATE, window_type="hanning", htk_compat=True)
        self.columns = num_mel_bins // patch_size
        self.hop_length = self.fbank.hop * patch_size
        self.min_length = self.fbank.window + (0 if pad_last else (patch_size - 1) * self.fbank.hop)

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Rows (B,) of clips of `lengths` (B,) samples."""
        return self._rows(self.fbank.output_lengths(lengths))

    def max_length(self, rows: int | None) -> int | None:
        """Samples of the longest clip that gives no more than `rows` rows; None where there is no limit."""
        if rows is None:
            return None
        frames = rows * self.patch_size + (0 if self.pad_last else self.patch_size - 1)
        return self.fbank.window + frames * self.fbank.hop - 1

    def __call__(self, waveforms: Padded, dtype: torch.dtype) -> Padded:
        """Scaled frames (B, rows * patch_size, bins) of type `dtype`; lengths are in rows."""
        device = waveforms.data.device
        # a power of two: the filterbank multiplies by it again, without rounding
        layers = self.fbank.to(device)(waveforms.data.float() / KALDI_SCALE, waveforms.lengths)["audio"]
        frames, lengths = layers.hidden_states[0], layers.lengths[0]
        rows = self._rows(lengths)
        size = int(rows.max()) * self.patch_size
        frames = torch.nn.functional.pad(frames[:, :size], (0, 0, 0, max(0, size - frames.shape[1])))
        scaled = (zero_padding(frames, lengths.clamp(max=size)) - self.mean) / self.scale
        within = valid_mask(rows * self.patch_size, size)[..., None]
        return Padded(scaled.masked_fill(~within, 0).to(dtype), rows)

    def _rows(self, frames: Tensor) -> Tensor:
        return patch_count(frames + (self.patch_size - 1 if self.pad_last else 0), self.patch_size)


def token_mask(lengths: Tensor, size: int) -> Tensor | None:
    """(B, size) True at the valid tokens; None where no sequence is shorter than `size`."""
    return None if int(lengths.min()) >= size else valid_mask(lengths, size)
