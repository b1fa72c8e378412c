"""The convolutional front end of speech transformers as matrix products, for inference on a CPU.

It computes what `ConvFrontEnd` computes, in another order. Frames are rows, so that a convolution is one product per
`stride` kernel taps over rows that overlap in memory. Rows are taken a block at a time, so that norm and GELU find a
block in the cache, and the first layer's output, the largest tensor of the model, never exists as a whole.

The group norm over time of the first layer needs that output's mean and variance before the first block. Both follow
from the waveform: an output channel is w . x over the windows x of the waveform, so its mean is w . mean(x) and its
variance w' cov(x) w, with a covariance of kernel x kernel numbers. The norm is then an affine map per channel and is
folded into the convolution's weight and bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.lengths import conv_length

# 256 rows of 512 channels and what they are computed from stay within a core's second-level cache.
_BLOCK = 256


@dataclass(frozen=True)
class _Stage:
    weight: Tensor  # (kernel, C_in, C_out), contiguous
    bias: Tensor | None
    stride: int
    norm: nn.LayerNorm | None

    @property
    def kernel(self) -> int:
        return self.weight.shape[0]

    def rows_needed(self, outputs: int) -> int:
        return (outputs - 1) * self.stride + self.kernel


def blocked_front_end(waveform: Tensor, convs: Sequence[nn.Conv1d], norms: Sequence[nn.Module]) -> Tensor:
    """Run a stack of unpadded 1-D convolutions, each followed by its norm and GELU.

    Args:
        waveform: (T,) float32 on the CPU, nothing of which is differentiated.
        convs: `nn.Conv1d` from 1 channel on, without padding, dilation or groups.
        norms: one `nn.GroupNorm` with a group per channel (after the first convolution only), or one `nn.LayerNorm`
            per convolution.

    Returns:
        (T', C) frames.
    """
    stages = [_stage(conv, norm) for conv, norm in zip(convs, _layer_norms(norms, len(convs)), strict=True)]
    first = stages[0]
    count = conv_length(len(waveform), first.kernel, first.stride)
    windows = waveform.contiguous().as_strided((count, first.kernel), (first.stride, 1)).contiguous()
    weight, bias = first.weight[:, 0], first.bias
    if isinstance(norms[0], nn.GroupNorm):
        weight, bias = _fold_group_norm(windows, weight, norms[0])
    # on its windows the first convolution has a kernel of one row
    stages[0] = _Stage(weight[None], bias, 1, first.norm)
    if len(stages) == 1:
        return _run(windows, stages[0])
    frames = _run_two(windows, stages[0], stages[1])
    for stage in stages[2:]:
        frames = _run(frames, stage)
    return frames


def _layer_norms(norms: Sequence[nn.Module], count: int) -> list[nn.LayerNorm | None]:
    return [norm if isinstance(norm, nn.LayerNorm) else None for norm in [*norms, *[None] * (count - len(norms))]]


def _stage(conv: nn.Conv1d, norm: nn.LayerNorm | None) -> _Stage:
    return _Stage(conv.weight.detach().permute(2, 1, 0).contiguous(), conv.bias, conv.stride[0], norm)


def _fold_group_norm(windows: Tensor, weight: Tensor, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
    """Weight (kernel, C) and bias (C,) of the convolution followed by its norm over time (a bias cancels out)."""
    x, w = windows.double(), weight.double()
    mean = x.mean(0)
    covariance = x.t() @ x / len(x) - torch.outer(mean, mean)
    variance = (w * (covariance @ w)).sum(0).clamp(min=0)
    scale = norm.weight.double() * torch.rsqrt(variance + norm.eps)
    return (w * scale).to(weight.dtype), (norm.bias.double() - mean @ w * scale).to(weight.dtype)


def _run(rows: Tensor, stage: _Stage) -> Tensor:
    outputs = conv_length(len(rows), stage.kernel, stage.stride)
    out = rows.new_empty(outputs, stage.weight.shape[-1])
    for start in range(0, outputs, _BLOCK):
        _block(rows[start * stage.stride :], stage, out[start : start + _BLOCK])
    return out


def _run_two(rows: Tensor, first: _Stage, second: _Stage) -> Tensor:
    """Two stages a block at a time; the few rows that two blocks share are computed twice."""
    count = conv_length(len(rows), first.kernel, first.stride)
    outputs = conv_length(count, second.kernel, second.stride)
    out = rows.new_empty(outputs, second.weight.shape[-1])
    between = rows.new_empty(second.rows_needed(_BLOCK), first.weight.shape[-1])
    for start in range(0, outputs, _BLOCK):
        block = out[start : start + _BLOCK]
        needed = between[: second.rows_needed(len(block))]
        _block(rows[start * second.stride * first.stride :], first, needed)
        _block(needed, second, block)
    return out


def _block(rows: Tensor, stage: _Stage, out: Tensor) -> None:
    """Fill `out` (n, C_out) with the first n outputs of a stage over `rows` (m, C_in)."""
    channels, step = rows.shape[1], stage.stride * rows.shape[1]
    for first in range(0, stage.kernel, stage.stride):
        # a product's rows must not overlap, so that at most `stride` taps go into one
        weight = stage.weight[first : first + stage.stride].flatten(0, 1)
        offset = rows.storage_offset() + first * channels
        taps = rows.as_strided((len(out), len(weight)), (step, 1), offset)
        if first:
            out.addmm_(taps, weight)
        elif stage.bias is None:
            torch.mm(taps, weight, out=out)
        else:
            torch.addmm(stage.bias, taps, weight, out=out)
    if stage.norm is None:
        torch.ops.aten.gelu_(out)
    else:
        normed = F.layer_norm(out, stage.norm.normalized_shape, stage.norm.weight, stage.norm.bias, stage.norm.eps)
        torch.ops.aten.gelu.out(normed, out=out)
