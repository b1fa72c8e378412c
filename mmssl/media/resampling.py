"""Resampling of a whole waveform or of any stretch of it, with the same values."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mmssl.lengths import resampled_length

if TYPE_CHECKING:
    from torch import Tensor

# Coprime rates make torchaudio's table of sinc kernels huge (22,051 to 16,000 Hz: over 1 GB).
_LARGEST_KERNEL = 2**25
_SINC_WIDTH = 6
_POLYPHASE_WIDTH = 10
# longer waveforms go in pieces: torchaudio computes lengths in float32, and unfolds what it is given
_PIECE = 2**22


def resample(waveform: Tensor, orig_rate: int, new_rate: int) -> Tensor:
    """Resample (..., T) float32 with torchaudio's windowed sinc, or scipy's polyphase filter for coprime rates."""
    import torch

    total = resampled_length(waveform.shape[-1], orig_rate, new_rate)

    def read(first: int, last: int) -> Tensor:
        return waveform[..., first:last]

    pieces = [
        resample_stretch(read, waveform.shape[-1], orig_rate, new_rate, first, min(first + _PIECE, total))
        for first in range(0, total, _PIECE)
    ]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)


def resample_stretch(
    read: Callable[[int, int], Tensor], samples: int, orig_rate: int, new_rate: int, first: int, last: int
) -> Tensor:
    """Samples first ... last - 1 of the resampled waveform, from as much of the original as the filter sees.

    The filters have one kernel per place within a period of the two rates: a piece that begins with a period gives
    the same samples as the whole, once the filter's width before it has gone by.

    Args:
        read: gives (..., last - first) samples of the original, within its ends.
        samples: of the original.
        orig_rate: in Hz.
        new_rate: in Hz.
        first, last: within the resampled waveform, whose length is `lengths.resampled_length`.
    """
    import torch

    gcd = math.gcd(orig_rate, new_rate)
    orig, new = orig_rate // gcd, new_rate // gcd
    sinc = _sinc_width(orig, new)
    # torchaudio's table has `new` kernels of orig + 2 * width samples
    whole_table = new * (orig + 2 * sinc) <= _LARGEST_KERNEL
    width = sinc if whole_table else _POLYPHASE_WIDTH * max(orig, new) // new + 1
    before = -(-width // orig)
    begin, end = max(0, first // new - before), -(-last // new)
    piece = read(begin * orig, min(samples, end * orig + width))
    # zeros stand for what lies past the end, so that every sample asked for is computed
    missing = (end + 1) * orig - (begin * orig + piece.shape[-1])
    piece = torch.nn.functional.pad(piece, (0, max(missing, 0))).contiguous()
    if whole_table:
        with torch.no_grad():
            found = _resampler(orig, new)(piece)
    else:
        from scipy.signal import resample_poly

        found = torch.from_numpy(resample_poly(piece.double().numpy(), new, orig, axis=-1)).float()
    # a copy, so that the rest can go
    return found[..., first - begin * new : last - begin * new].clone()


def _sinc_width(orig: int, new: int) -> int:
    """Of torchaudio's kernels: samples of the original on both sides, with its roll-off of 0.99."""
    return math.ceil(_SINC_WIDTH * orig / (0.99 * min(orig, new)))


@functools.lru_cache(maxsize=16)
def _resampler(orig: int, new: int) -> Any:
    from torchaudio.transforms import Resample

    return Resample(orig, new)
