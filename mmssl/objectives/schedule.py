"""Values that change over training: step -> float."""

from __future__ import annotations

import math
from collections.abc import Callable

from mmssl.errors import ConfigError

Schedule = Callable[[int], float]


class Linear:
    """From `start` to `end` over `steps` steps, then `end`.

    Args:
        start, end: values.
        steps: at least 1.
    """

    def __init__(self, start: float, end: float, steps: int) -> None:
        _require_steps(steps)
        self.start, self.end, self.steps = start, end, steps

    def __call__(self, step: int) -> float:
        """Value at an optimizer step."""
        return self.start + (self.end - self.start) * min(step / self.steps, 1.0)


class Cosine:
    """From `start` to `end` along half a cosine over `steps` steps, then `end`.

    Args:
        start, end: values.
        steps: at least 1.
    """

    def __init__(self, start: float, end: float, steps: int) -> None:
        _require_steps(steps)
        self.start, self.end, self.steps = start, end, steps

    def __call__(self, step: int) -> float:
        """Value at an optimizer step."""
        share = min(step / self.steps, 1.0)
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * share)) / 2


class Exponential:
    """`start` times `factor` to the power of the step, but at least `end`: wav2vec 2.0's Gumbel temperature.

    Args:
        start: at step 0.
        end: lower bound, at most `start`.
        factor: in (0, 1].
    """

    def __init__(self, start: float, end: float, factor: float) -> None:
        if not 0 < factor <= 1 or end > start:
            raise ConfigError(
                f"An exponential schedule falls: factor in (0, 1] and end <= start, got {factor}, {start}, {end}."
            )
        self.start, self.end, self.factor = start, end, factor

    def __call__(self, step: int) -> float:
        """Value at an optimizer step."""
        return max(self.start * self.factor**step, self.end)


def value_at(value: float | Schedule, step: int) -> float:
    """A number itself, or a schedule's value at a step."""
    return float(value(step)) if callable(value) else float(value)


def _require_steps(steps: int) -> None:
    if steps < 1:
        raise ConfigError(f"A schedule needs at least 1 step, got {steps}.")
