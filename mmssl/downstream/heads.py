"""Heads: a sequence of features in, one vector of scores per clip out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.downstream.pooling import AttentiveStatsPooling, masked_mean, without_padding
from mmssl.errors import ConfigError, InputError
from mmssl.registry import HEADS
from mmssl.types import Padded


class Head(nn.Module, ABC):
    """Scores clips from their frames.

    A subclass implements `score`. Its constructor takes the two arguments below first and its own after them.

    Args:
        input_size: width D of the features.
        num_outputs: number of classes, or of values in regression.

    Attributes:
        affine_before_pooling: True where everything up to and including the pooling over time is affine with
            coefficients that do not depend on the frame or the clip: then the mean of a clip's frames gives the same
            scores as the frames.

    Raises:
        ConfigError: a size is below 1.
    """

    affine_before_pooling: bool = False

    def __init__(self, input_size: int, num_outputs: int) -> None:
        super().__init__()
        _at_least_one(input_size=input_size, num_outputs=num_outputs)
        self.input_size = input_size
        self.num_outputs = num_outputs

    @abstractmethod
    def score(self, features: Padded) -> Tensor:
        """Score checked (B, T, D) features that are zero past each length: (B, num_outputs)."""

    def forward(self, features: Padded) -> Tensor:
        """Score a batch.

        Args:
            features: (B, T, D), arbitrary values past each length.

        Returns:
            (B, num_outputs) logits or values.

        Raises:
            InputError: the width is not D, or a clip has no frame.
        """
        if features.data.shape[-1] != self.input_size:
            raise InputError(
                f"{type(self).__name__} was built for features of width {self.input_size}, "
                f"got {tuple(features.data.shape)}."
            )
        return self.score(without_padding(features))


class Linear(Head):
    """SUPERB's head for utterance classification: linear, masked mean over time, linear, no activation.

    SUPERB (Yang et al., Interspeech 2021), as in S3PRL. Both maps being affine, the mean is taken first: the same
    function and the same gradients, with one product per clip instead of one per frame.

    Args:
        input_size: width of the features.
        num_outputs: number of classes or values.
        hidden_size: between the two maps; 256 in SUPERB.

    Raises:
        ConfigError: a size is below 1.
    """

    affine_before_pooling = True

    def __init__(self, input_size: int, num_outputs: int, hidden_size: int = 256) -> None:
        super().__init__(input_size, num_outputs)
        _at_least_one(hidden_size=hidden_size)
        self.projector = nn.Linear(input_size, hidden_size)
        self.classifier = nn.Linear(hidden_size, num_outputs)

    def score(self, features: Padded) -> Tensor:
        """Pool, then both maps."""
        return self.classifier(self.projector(masked_mean(features)))


class MLP(Head):
    """EmoBox's head: linear, ReLU, masked mean over time, linear.

    EmoBox (Ma et al., Interspeech 2024). The ReLU stands before the pooling, so the head needs frames.

    Args:
        input_size: width of the features.
        num_outputs: number of classes or values.
        hidden_size: between the two maps; 256 in EmoBox.

    Raises:
        ConfigError: a size is below 1.
    """

    def __init__(self, input_size: int, num_outputs: int, hidden_size: int = 256) -> None:
        super().__init__(input_size, num_outputs)
        _at_least_one(hidden_size=hidden_size)
        self.projector = nn.Linear(input_size, hidden_size)
        self.classifier = nn.Linear(hidden_size, num_outputs)

    def score(self, features: Padded) -> Tensor:
        """Project each frame, pool, classify."""
        hidden = torch.relu(self.projector(features.data))
        return self.classifier(masked_mean(Padded(hidden, features.lengths)))


class AttentiveStats(Head):
    """Mean and standard deviation under learned attention over time (Okabe et al. 2018), then a linear map.

    Args:
        input_size: width of the features.
        num_outputs: number of classes or values.
        attention_size: hidden width of the attention.

    Raises:
        ConfigError: a size is below 1.
    """

    def __init__(self, input_size: int, num_outputs: int, attention_size: int = 128) -> None:
        super().__init__(input_size, num_outputs)
        self.pooling = AttentiveStatsPooling(input_size, attention_size)
        self.classifier = nn.Linear(self.pooling.output_size, num_outputs)

    def score(self, features: Padded) -> Tensor:
        """Pool under attention, classify."""
        return self.classifier(self.pooling(features))


def build_head(head: str, input_size: int, num_outputs: int, /, **kwargs: Any) -> Head:
    """Build a head.

    Args:
        head: a name ("linear"), a dotted path to a class, or a path to a .py file.
        input_size: width of the features, an interface's `output_size`.
        num_outputs: number of classes or values.
        **kwargs: the head's own arguments.

    Raises:
        RegistryError: there is no such head.
        ConfigError: an argument is unknown, missing or has a wrong value, or it builds something else.
    """
    built = HEADS.build(head, input_size, num_outputs, **kwargs)
    if not isinstance(built, Head):
        raise ConfigError(
            f"{head!r} builds a {type(built).__name__}, not an mmssl.downstream.heads.Head: derive from that class."
        )
    return built


def _at_least_one(**sizes: int) -> None:
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ConfigError(f"{name} must be a whole number of at least 1, got {size!r}.")
