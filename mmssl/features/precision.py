"""Faster arithmetic for extraction, and what it costs: half precision, and linear layers in eight bits.

Both change features a little. The change is measured on clips of the corpus and recorded in the store, and the choice
is part of the store's fingerprint. Neither makes a clip's features depend on its batch.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmssl.errors import ConfigError, did_you_mean
from mmssl.types import Representation

if TYPE_CHECKING:
    from mmssl.upstreams.base import Upstream

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_LEAST_SIZE = 64
# what torch's integer matrix product on CUDA asks of its shapes
_CUDA_ROWS, _MULTIPLE = 32, 8


@dataclass(frozen=True)
class PrecisionError:
    """How far features in another arithmetic are from float32.

    Attributes:
        relative: largest relative error of a layer, in the sense of norms over all frames of all clips.
        cosine: smallest cosine similarity of a layer, mean over frames.
        clips: number of clips it was measured on.
    """

    relative: float
    cosine: float
    clips: int

    def __str__(self) -> str:
        return (
            f"relative error {self.relative:.2e}, cosine {self.cosine:.6f} to float32 (worst layer, {self.clips} clips)"
        )


class Int8Linear(nn.Module):
    """A linear layer whose product runs on 8-bit integers, with a scale per output and one per row of the input.

    The scale per row (dynamic quantisation per token, Yao et al. 2022, "ZeroQuant", section 4.1) makes an output row a
    function of its input row alone; stock dynamic quantisation takes one scale for the whole batch. The sums are
    integers, hence exact and the same in any batch.

    Args:
        linear: the layer to stand in for; its sizes multiples of 8.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        self.register_buffer("weight", (weight / scale[:, None]).round_().to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) float -> (..., out) of the same type."""
        rows = x.reshape(-1, x.shape[-1])
        scale = rows.abs().amax(1, keepdim=True).float().clamp_(min=1e-30) / 127
        quantised = (rows / scale).round_().to(torch.int8)
        count = len(quantised)
        if x.is_cuda and count < _CUDA_ROWS:
            quantised = torch.cat([quantised, quantised.new_zeros(_CUDA_ROWS - count, quantised.shape[1])])
        product = torch._int_mm(quantised, self.weight.t())[:count].float().mul_(scale).mul_(self.scale)
        if self.bias is not None:
            product.add_(self.bias)
        return product.to(x.dtype).view(*x.shape[:-1], -1)


def check_precision(precision: str, int8: bool) -> dict[str, Any]:
    """The choice as a field of the fingerprint; empty for plain float32.

    Raises:
        ConfigError: an unknown precision.
    """
    if precision not in PRECISIONS:
        raise ConfigError(
            f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}.{did_you_mean(precision, PRECISIONS)}"
        )
    return {"precision": precision, "int8": bool(int8)} if precision != "fp32" or int8 else {}


def with_precision(upstream: Upstream, precision: str = "fp32", int8: bool = False) -> Upstream:
    """A copy of an upstream that computes in another arithmetic; the upstream itself for plain float32.

    Args:
        upstream: in float32.
        precision: "fp32", "bf16" or "fp16", the type of the weights and of all that flows.
        int8: replace the linear layers by `Int8Linear`.

    Raises:
        ConfigError: an unknown precision, or int8 was asked for and no layer is fit for it.
    """
    if not check_precision(precision, int8):
        return upstream
    changed = copy.deepcopy(upstream).to(PRECISIONS[precision])
    if int8 and not _replace_linears(changed):
        raise ConfigError(
            f"int8 replaces linear layers of {_LEAST_SIZE} or more inputs and outputs, and {type(upstream).__name__} "
            f"has none: leave it out."
        )
    return changed


def _replace_linears(module: nn.Module) -> int:
    count = 0
    for name, child in module.named_children():
        # these read the weights of their linear layers themselves
        if isinstance(child, nn.MultiheadAttention | nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
            continue
        if type(child) is nn.Linear and _fits(child) and not hasattr(child, "parametrizations"):
            setattr(module, name, Int8Linear(child))
            count += 1
        else:
            count += _replace_linears(child)
    return count


def _fits(linear: nn.Linear) -> bool:
    sizes = (linear.in_features, linear.out_features)
    return min(sizes) >= _LEAST_SIZE and not any(size % _MULTIPLE for size in sizes)


def compare(reference: Sequence[Representation], found: Sequence[Representation]) -> PrecisionError:
    """Measure how far features of clips are from those in float32.

    Args:
        reference: per clip, layers (T_k, D_k) in float32.
        found: the same clips in another arithmetic.
    """
    relative, cosine = 0.0, 1.0
    for stream in reference[0]:
        for k in range(len(reference[0][stream])):
            a = torch.cat([clip[stream].hidden_states[k].double() for clip in reference])
            b = torch.cat([clip[stream].hidden_states[k].double() for clip in found])
            relative = max(relative, float((a - b).norm() / a.norm().clamp(min=1e-30)))
            cosine = min(cosine, float(torch.cosine_similarity(a, b, dim=-1).mean()))
    return PrecisionError(relative, cosine, len(reference))
