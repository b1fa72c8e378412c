"""The one authority for seconds, samples and frames.

No other module computes a length: a conv stack, a resampler, a Kaldi window or a mask asks here. Integers in,
integers out; tensors (int64) in, tensors out. All functions are exact: they give what the operation really returns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Length = TypeVar("Length", int, "Tensor")


def seconds_to_samples(seconds: float, sample_rate: int) -> int:
    """Nearest sample to a time in seconds (halves round up, so that the result grows with time)."""
    return math.floor(Fraction(repr(float(seconds))) * sample_rate + Fraction(1, 2))


def samples_to_seconds(samples: int, sample_rate: float) -> float:
    """Time in seconds of a number of samples, or of video frames at their rate."""
    return samples / sample_rate


def resampled_length(samples: int, orig_rate: int, new_rate: int) -> int:
    """Number of samples after torchaudio's sinc resampling: ceil(samples * new / orig)."""
    gcd = math.gcd(orig_rate, new_rate)
    return -(-samples * (new_rate // gcd) // (orig_rate // gcd))


def conv_length(length: Length, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> Length:
    """Number of outputs of a convolution or pooling over `length` inputs; 0 where the input is too short."""
    out = (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    if isinstance(out, int):
        return max(out, 0)
    return out.clamp(min=0)


def conv_stack_length(length: Length, layers: Sequence[tuple[int, int]]) -> Length:
    """Number of outputs of unpadded convolutions given as (kernel, stride)."""
    for kernel, stride in layers:
        length = conv_length(length, kernel, stride)
    return length


def receptive_field(layers: Sequence[tuple[int, int]]) -> int:
    """Number of inputs that one output of the conv stack sees: the shortest input that gives one output."""
    field, hop = 1, 1
    for kernel, stride in layers:
        field += (kernel - 1) * hop
        hop *= stride
    return field


def shortest_input(layers: Sequence[tuple[int, int, int]], outputs: int = 1) -> int:
    """Shortest input that gives `outputs` outputs of convolutions given as (kernel, stride, padding of both ends)."""
    for kernel, stride, padding in reversed(layers):
        outputs = max(1, (outputs - 1) * stride + kernel - padding)
    return outputs


def hop_length(layers: Sequence[tuple[int, int]]) -> int:
    """Number of inputs between two outputs of the conv stack."""
    return math.prod(stride for _, stride in layers)


def window_count(length: Length, window: int, hop: int) -> Length:
    """Number of whole windows (Kaldi's snip_edges=True): 1 + (length - window) // hop, 0 where none fits."""
    return conv_length(length, window, hop)


def patch_count(length: Length, patch: int) -> Length:
    """Number of whole patches that do not overlap."""
    return length // patch


def valid_mask(lengths: Tensor, max_length: int | None = None) -> Tensor:
    """(B,) lengths -> (B, T) bool mask, True where a step is valid. T is `max_length` or the longest length."""
    import torch

    size = int(lengths.max()) if max_length is None else max_length
    return torch.arange(size, device=lengths.device)[None, :] < lengths[:, None]


def zero_padding(data: Tensor, lengths: Tensor) -> Tensor:
    """Return (B, T, ...) with everything past each length set to zero (not multiplied: NaN in padding goes too)."""
    mask = valid_mask(lengths, data.shape[1])
    return data.masked_fill(~mask.reshape(mask.shape + (1,) * (data.dim() - 2)), 0)


def pad(sequences: Sequence[Tensor]) -> tuple[Tensor, torch.Tensor]:
    """Stack sequences (T_b, ...) into (B, max T, ...) with zeros after each; returns data and (B,) int64 lengths."""
    import torch

    lengths = torch.tensor([len(s) for s in sequences], dtype=torch.int64, device=sequences[0].device)
    return torch.nn.utils.rnn.pad_sequence(list(sequences), batch_first=True), lengths


def seconds_to_frames(seconds: float | Fraction, frame_rate: Fraction) -> int:
    """Nearest video frame to a time in seconds (halves round up, so that the result grows with time)."""
    exact = seconds if isinstance(seconds, Fraction) else Fraction(repr(float(seconds)))
    return math.floor(exact * frame_rate + Fraction(1, 2))


def frames_on_screen(duration: Fraction, frame_rate: Fraction, lead: Fraction) -> int:
    """Number of instants k / frame_rate + lead, k = 0, 1 ..., that lie before `duration` (s): frames of that video."""
    return max(0, math.ceil((duration - lead) * frame_rate))
