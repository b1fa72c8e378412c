"""The contract of an augmentation, and chains of them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from mmssl.errors import ConfigError, InputError
from mmssl.random import mix

Range = tuple[float, float]


class Augmentation(ABC):
    """A random change of one clip.

    Clips are waveforms (T,) in [-1, 1], log-mel spectrograms (T, mels), pictures (C, H, W) in [0, 1] or videos
    (T, C, H, W) in [0, 1]. The clip that is given is never changed in place.

    Attributes:
        keeps_length: whether a clip has as many steps afterwards as before, whatever is drawn.
    """

    keeps_length: bool = True

    @abstractmethod
    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Change a clip.

        Args:
            x: the clip, without padding.
            generator: on the CPU; all that is drawn comes from it.
        """


class Chain(Augmentation):
    """One augmentation after the other.

    Args:
        steps: in order; none leaves the clip as it is.
    """

    def __init__(self, steps: Sequence[Augmentation]) -> None:
        self.steps = tuple(steps)
        self.keeps_length = all(step.keeps_length for step in self.steps)

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The clip after all steps."""
        for step in self.steps:
            x = step(x, generator)
        return x


class With(Augmentation):
    """An augmentation with a probability; else the clip stays as it is.

    Args:
        probability: in [0, 1].
        augmentation: what is done.

    Raises:
        ConfigError: a probability out of range.
    """

    def __init__(self, probability: float, augmentation: Augmentation) -> None:
        if not 0 <= probability <= 1:
            raise ConfigError(f"A probability must be in [0, 1], got {probability}.")
        self.probability, self.augmentation = probability, augmentation
        self.keeps_length = augmentation.keeps_length

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The clip, changed or not."""
        return self.augmentation(x, generator) if uniform(0, 1, generator) < self.probability else x


class OneOf(Augmentation):
    """One of several augmentations, each as likely as the others.

    Args:
        choices: at least one.

    Raises:
        ConfigError: no choices.
    """

    def __init__(self, choices: Sequence[Augmentation]) -> None:
        if not choices:
            raise ConfigError("OneOf needs at least one augmentation to choose from, got none.")
        self.choices = tuple(choices)
        self.keeps_length = all(choice.keeps_length for choice in self.choices)

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The clip after the one that was drawn."""
        return self.choices[integer(0, len(self.choices) - 1, generator)](x, generator)


def clip_generator(seed: int, *numbers: int) -> torch.Generator:
    """A generator for one clip: a function of its seed and of numbers that name the place of drawing alone."""
    return torch.Generator().manual_seed(mix(seed, *numbers))


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """A number drawn uniformly from [low, high)."""
    return low + (high - low) * float(torch.rand((), dtype=torch.float64, generator=generator))


def integer(low: int, high: int, generator: torch.Generator) -> int:
    """A whole number drawn uniformly from low, ..., high."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def checked_range(
    name: str, values: Sequence[float], at_least: float = -math.inf, at_most: float = math.inf
) -> tuple[float, float]:
    """A range (low, high) that a user gave.

    Raises:
        ConfigError: not two numbers in order within the bounds.
    """
    given = tuple(float(v) for v in values)
    if len(given) != 2 or not at_least <= given[0] <= given[1] <= at_most:
        raise ConfigError(
            f"{name} must be two numbers, low <= high, between {at_least:g} and {at_most:g}, got {list(values)}."
        )
    return given[0], given[1]


def require_dims(x: Tensor, dims: Sequence[int], what: str) -> None:
    """Refuse clips of another kind.

    Raises:
        InputError: another number of dimensions, or an empty clip.
    """
    if x.dim() not in dims or x.numel() == 0:
        raise InputError(f"This augmentation takes {what}, got a tensor {tuple(x.shape)}.")
