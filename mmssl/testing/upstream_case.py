"""One upstream under test, and the small tools that the checks of `upstream_checks` share."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mmssl.errors import MmsslError
from mmssl.testing.inputs import Batch, draw, unit_rate
from mmssl.types import Representation, UpstreamSpec
from mmssl.upstreams.base import Upstream


class BrokenRuleError(Exception):
    """A rule is broken; the message says which and how."""


class SkippedError(Exception):
    """A check does not apply; the message says why."""


@dataclass
class Case:
    """One upstream under test."""

    build: Callable[[], Upstream]
    longest: float
    tolerance: float
    upstream: Upstream = field(init=False)
    channels: int = 3
    modes: list[tuple[str, ...]] = field(default_factory=list)

    @property
    def spec(self) -> UpstreamSpec:
        """What the upstream declares."""
        return self.upstream.spec

    def lengths(self) -> list[int]:
        """Clip lengths for a batch: unequal, the shortest among them, one value twice."""
        spec, rate = self.spec, unit_rate(self.spec)
        hop = max(hop for stream in spec.streams.values() for hop in stream.hop_lengths)
        wanted = [rate * 0.6, spec.min_length, rate * 1.1, spec.min_length + 3 * hop + hop // 2, rate * 0.6]
        return [self.clamp(int(n)) for n in wanted]

    def clamp(self, length: int) -> int:
        """The nearest length that the upstream takes."""
        spec = self.spec
        return max(spec.min_length, min(length, spec.max_length or length))

    def draw(self, lengths: list[int], names: tuple[str, ...]) -> Batch:
        """Clips of these lengths."""
        return draw(self.spec, lengths, names, self.channels)

    def run(self, batch: Batch, upstream: Upstream | None = None) -> Representation:
        """The features of a batch, by the upstream under test or another."""
        return (upstream or self.upstream)(**batch.kwargs())

    def settle_inputs(self) -> None:
        """Find the number of picture channels, and which inputs the upstream takes without the others."""
        names = tuple(self.spec.inputs)
        lengths = [self.clamp(int(unit_rate(self.spec) * 0.6))]
        if names != ("waveforms",):
            for channels in (3, 1):
                self.channels = channels
                if self.takes(names, lengths):
                    break
            else:
                self.channels = 3
        singles = [(name,) for name in names] if len(names) > 1 else []
        self.modes = [names, *(single for single in singles if self.takes(single, lengths))]

    def takes(self, names: tuple[str, ...], lengths: list[int]) -> bool:
        """Whether the upstream runs on these inputs alone."""
        try:
            self.run(self.draw(lengths, names))
        except (MmsslError, RuntimeError):
            return False
        return True


def require(condition: bool, message: str) -> None:
    """Raise BrokenRuleError with the message unless the condition holds."""
    if not condition:
        raise BrokenRuleError(message)


def rng_states() -> list[object]:
    """The states of the global generators of torch (accelerators too), Python and numpy, to be compared."""
    _, keys, *rest = np.random.get_state()
    states: list[object] = [torch.get_rng_state().tolist(), random.getstate(), (np.asarray(keys).tolist(), *rest)]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states += [state.tolist() for state in torch.cuda.get_rng_state_all()]
    return states


def each_layer(representation: Representation) -> Iterator[tuple[str, int, Tensor, Tensor]]:
    """Stream, number, hidden state and lengths of every layer."""
    for stream, layers in representation.items():
        for k, (data, lengths) in enumerate(zip(layers.hidden_states, layers.lengths, strict=True)):
            yield stream, k, data, lengths


def scale(data: Tensor) -> float:
    """Root mean square of a layer, never zero."""
    return max(float(data.detach().double().pow(2).mean().sqrt()), 1e-12)
