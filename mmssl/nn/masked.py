"""Layers over time that never see padding.

A norm over time takes its statistics from the valid steps only, and a convolution that reads beyond a sequence's end
reads zeros there, as it does when the sequence comes alone. Both take lengths as an argument, or, inside a model whose
modules hand none down, from the innermost `length_scope`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.lengths import valid_mask

# A context variable is seen by the thread (or task) that set it alone, so that one model may run in several threads.
_SCOPE: ContextVar[Mapping[str, Tensor] | None] = ContextVar("mmssl_length_scope", default=None)


@contextmanager
def length_scope(**lengths: Tensor) -> Iterator[None]:
    """Give lengths to the modules that run inside the block and ask for them by name.

    Args:
        **lengths: name -> (B,) int64, in steps of the tensors which the modules that ask for that name see.
    """
    token = _SCOPE.set(lengths)
    try:
        yield
    finally:
        _SCOPE.reset(token)


def scoped_lengths(name: str) -> Tensor | None:
    """Lengths of the innermost `length_scope` under `name`; None outside of any, which means that all is valid."""
    return (_SCOPE.get() or {}).get(name)


def zero_steps(data: Tensor, lengths: Tensor | None) -> Tensor:
    """Return (B, C, T) with every step past each length set to zero; unchanged where nothing is padded."""
    # what is computed must not hang on values while a graph is exported
    if lengths is None or (not torch.compiler.is_exporting() and int(lengths.min()) >= data.shape[-1]):
        return data
    return data.masked_fill(~valid_mask(lengths.to(data.device), data.shape[-1])[:, None, :], 0)


class MaskedGroupNorm(nn.GroupNorm):
    """Group norm over (B, C, T) whose mean and variance cover the valid steps of each sequence only.

    With one group per channel it is the first norm of wav2vec 2.0, HuBERT and WavLM base, which otherwise makes their
    features depend on the padding. Each sequence is normalised on its own stretch: the result
    for a sequence is bit-equal alone and in any batch.

    Args:
        num_groups, num_channels, eps, affine: as `torch.nn.GroupNorm`.
        scope: name under which lengths are looked up in `length_scope` where `forward` is given none.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        scope: str | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_groups, num_channels, eps, affine, device=device, dtype=dtype)
        self.scope = scope

    @classmethod
    def like(cls, norm: nn.GroupNorm, scope: str) -> MaskedGroupNorm:
        """A masked norm that shares the parameters of a plain one."""
        masked = cls(norm.num_groups, norm.num_channels, norm.eps, norm.affine, scope=scope)
        masked.weight, masked.bias = norm.weight, norm.bias
        return masked.train(norm.training)

    def forward(self, input: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Normalise each sequence over its own steps.

        Args:
            input: (B, C, T).
            lengths: (B,) valid steps; None takes those of the scope, and without a scope all steps are valid.

        Returns:
            (B, C, T), zero past each length.
        """
        if lengths is None and self.scope is not None:
            lengths = scoped_lengths(self.scope)
        sizes = None if lengths is None else lengths.tolist()
        if sizes is None or min(sizes) >= input.shape[-1]:
            return self._normalize(input)
        out = torch.zeros_like(input)
        for row, size in enumerate(sizes):
            if size:
                out[row, :, :size] = self._normalize(input[row : row + 1, :, :size])[0]
        return out

    def _normalize(self, data: Tensor) -> Tensor:
        # not functional.group_norm: it refuses a group of one value, which a clip of one frame has
        return torch.group_norm(data, self.num_groups, self.weight, self.bias, self.eps, torch.backends.cudnn.enabled)
