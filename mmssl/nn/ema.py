"""Exponential moving average of a module's weights: the teacher of data2vec, BYOL and DINO."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from mmssl.errors import ConfigError


class EMA(nn.Module):
    """A frozen copy of a module whose weights follow it.

    The source is handed to `update` each time and never kept, so that it is registered once only: its weights are not
    saved twice, trained twice or averaged twice. The copy is in `state_dict`, so that a run resumes exactly.

    Args:
        source: what to copy; the copy starts equal to it.
        shared: prefixes of parameter names that are copied at each update instead of averaged, such as the
            convolutional front end that data2vec shares with the student.

    Raises:
        ConfigError: a prefix that no parameter has.
    """

    def __init__(self, source: nn.Module, shared: Sequence[str] = ()) -> None:
        super().__init__()
        self.model = copy.deepcopy(source).eval().requires_grad_(False)
        names = [name for name, _ in source.named_parameters()]
        unknown = [prefix for prefix in shared if not any(name.startswith(prefix) for name in names)]
        if unknown:
            raise ConfigError(
                f"No parameter of {type(source).__name__} starts with {unknown[0]!r}; they start with "
                f"{', '.join(sorted({name.split('.')[0] for name in names}))}."
            )
        self.shared = tuple(shared)

    def train(self, mode: bool = True) -> EMA:
        """The copy stays in eval mode: no dropout in targets."""
        super().train(mode)
        self.model.eval()
        return self

    @torch.no_grad()
    def update(self, source: nn.Module, decay: float) -> None:
        """Move the copy: weight = decay * weight + (1 - decay) * source. Buffers are copied.

        Args:
            source: the module that was copied.
            decay: in [0, 1]; 0 copies, 1 keeps.

        Raises:
            ConfigError: a decay out of range.
        """
        if not 0 <= decay <= 1:
            raise ConfigError(f"The decay of an average must be in [0, 1], got {decay}.")
        theirs = dict(source.named_parameters())
        for name, mine in self.model.named_parameters():
            new = theirs[name].detach().to(mine.dtype)
            if name.startswith(self.shared):
                mine.copy_(new)
            else:
                mine.mul_(decay).add_(new, alpha=1 - decay)
        buffers = dict(source.named_buffers())
        for name, buffer in self.model.named_buffers():
            buffer.copy_(buffers[name])

    @torch.no_grad()
    def distance(self, source: nn.Module) -> float:
        """Relative distance of the copy from its source: |copy - source| / |source| over all parameters."""
        theirs = dict(source.named_parameters())
        pairs = [(mine, theirs[name].detach()) for name, mine in self.model.named_parameters()]
        apart = sum(float((a - b).float().square().sum()) for a, b in pairs)
        size = sum(float(b.float().square().sum()) for _, b in pairs)
        return (apart / max(size, 1e-30)) ** 0.5
