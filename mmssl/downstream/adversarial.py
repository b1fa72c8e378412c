"""Speaker normalisation: a classifier of speakers on a head's hidden layer, whose gradient is turned round.

Ganin and Lempitsky 2015, "Unsupervised Domain Adaptation by Backpropagation" (ICML), section 3; for speakers in
emotion recognition: Gat et al. 2022, "Speaker Normalization for Self-Supervised Speech Emotion Recognition" (ICASSP).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.downstream.heads import Head
from mmssl.downstream.tasks import UtteranceTask
from mmssl.errors import ConfigError, InputError
from mmssl.types import Layers, TaskOutput


class _Reverse(torch.autograd.Function):
    """x -> x, with the gradient times -strength."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradients[0], None


class GradientReversal(nn.Module):
    """The identity; its gradient is -strength times the one that comes in.

    Args:
        strength: lambda, at least 0; may be changed between steps.

    Raises:
        ConfigError: it is negative.
    """

    def __init__(self, strength: float = 1.0) -> None:
        super().__init__()
        if strength < 0:
            raise ConfigError(f"The strength of a gradient reversal must be at least 0, got {strength}.")
        self.strength = float(strength)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same."""
        return _Reverse.apply(x, self.strength)


def reversal_strength(progress: float, highest: float = 1.0, steepness: float = 10.0) -> float:
    """Lambda at a progress p in [0, 1]: highest * (2 / (1 + exp(-steepness * p)) - 1).

    Source: Ganin and Lempitsky 2015, section 4, with steepness 10.
    """
    return highest * (2 / (1 + math.exp(-steepness * min(max(progress, 0.0), 1.0))) - 1)


class SpeakerAdversary(UtteranceTask):
    """A task whose head is trained so that its hidden layer does not tell the speaker.

    A small network learns the speakers from what the last layer of the head sees; through a gradient reversal, head
    and interface (and an upstream that is fine-tuned) learn to make it fail. It wraps any `UtteranceTask` in
    `mmssl.training.fit.fit` and `mmssl.training.finetune.finetune`. Targets have one column more: the speaker's number
    last, or -1 for a speaker that the adversary is not to learn, as those of development clips. In eval mode loss and
    metrics are those of the task alone. After training, `task` is what is used.

    An adversary that lags behind lets more of the speaker through than none: prefer a small `strength`, a wide
    `hidden_size`, large batches and a low learning rate, and measure what is left (`hidden`, then
    `mmssl.probing.leakage.leakage`).

    Args:
        task: whose head ends in a linear layer, as all built-in heads do.
        num_speakers: of training.
        weight: of the adversary's loss beside the task's. It scales what the adversary learns, too; `strength` does
            not.
        strength: lambda at the end of the ramp.
        ramp_steps: training steps over which lambda rises from 0 (`reversal_strength`); 0 for `strength` at once.
        hidden_size: of the adversary.
        last_layer: name of the head's last layer.

    Raises:
        ConfigError: a value is out of range, or the head has no such layer.
    """

    def __init__(
        self,
        task: UtteranceTask,
        num_speakers: int,
        weight: float = 1.0,
        strength: float = 0.1,
        ramp_steps: int = 0,
        hidden_size: int = 128,
        last_layer: str = "classifier",
    ) -> None:
        nn.Module.__init__(self)
        layer = dict(task.head.named_modules()).get(last_layer)
        if not isinstance(layer, nn.Linear):
            linear = [name for name, part in task.head.named_modules() if isinstance(part, nn.Linear)]
            raise ConfigError(
                f"{type(task.head).__name__} has no linear layer {last_layer!r}; it has {', '.join(linear) or 'none'}."
            )
        if num_speakers < 2 or hidden_size < 1 or not weight > 0 or ramp_steps < 0 or strength < 0:
            raise ConfigError(
                f"An adversary needs two speakers, a hidden unit, a weight above 0 and no negative ramp or strength; "
                f"got {num_speakers=}, {hidden_size=}, {weight=}, {ramp_steps=}, {strength=}."
            )
        self.task = task
        self.num_speakers, self.weight, self.strength = num_speakers, weight, strength
        self.ramp_steps, self.last_layer = ramp_steps, last_layer
        self.reversal = GradientReversal(0.0)
        self.adversary = nn.Sequential(
            nn.Linear(layer.in_features, hidden_size), nn.ReLU(), nn.Linear(hidden_size, num_speakers)
        )
        self.steps: Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    # parts and answers of the task; attributes of the base class, which are not set a second time here
    @property
    def interface(self) -> Any:  # type: ignore[override]
        """Of the task."""
        return self.task.interface

    @property
    def head(self) -> Head:  # type: ignore[override]
        """Of the task."""
        return self.task.head

    @property
    def monitor(self) -> str:  # type: ignore[override]
        """Of the task."""
        return self.task.monitor

    def check_targets(self, targets: Tensor) -> Tensor:
        """The task's targets, checked, from (B, 1 + values) with the speakers last."""
        return self.task.check_targets(self.split(targets)[0])

    def split(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Targets of the task, (B,) or (B, D), and speakers (B,) int64.

        Raises:
            InputError: there is no column of speakers, or a number is out of range.
        """
        if targets.dim() != 2 or targets.shape[1] < 2:
            raise InputError(
                f"Targets beside an adversary are (B, 2 or more): the task's, then the speaker's number, or -1; got "
                f"{tuple(targets.shape)}."
            )
        speakers = targets[:, -1].long()
        if bool((speakers != targets[:, -1]).any()) or not -1 <= int(speakers.min()) <= int(speakers.max()) < (
            self.num_speakers
        ):
            raise InputError(f"Speakers must be whole numbers from -1 to {self.num_speakers - 1}.")
        own = targets[:, :-1]
        return (own[:, 0] if own.shape[1] == 1 else own), speakers

    def loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        """The task's, from targets that were checked."""
        return self.task.loss(scores, targets)

    def answer(self, scores: Tensor) -> Tensor:
        """The task's."""
        return self.task.answer(scores)

    def metrics(self, scores: Tensor, targets: Tensor) -> dict[str, float]:
        """The task's, from targets with speakers."""
        return self.task.metrics(scores, self.split(targets)[0])

    def forward(self, layers: Layers | Mapping[str, Layers], targets: Tensor) -> TaskOutput:
        """Loss of the task, in training with that of the adversary, and the task's scores.

        Raises:
            InputError: layers or targets do not fit.
        """
        own, speakers = self.split(targets)
        scores, hidden = self.scores_and_hidden(layers)
        checked = self.task.check_targets(own)
        if len(checked) != len(scores):
            raise InputError(f"There are {len(scores)} clips and {len(checked)} targets in the batch.")
        loss = self.task.loss(scores, checked)
        known = speakers >= 0
        if self.training:
            progress = float(self.steps) / self.ramp_steps if self.ramp_steps else 1.0
            self.reversal.strength = reversal_strength(progress, self.strength) if self.ramp_steps else self.strength
            self.steps += 1
            if bool(known.any()):
                guesses = self.adversary(self.reversal(hidden[known]))
                loss = loss + self.weight * F.cross_entropy(guesses, speakers[known])
        return TaskOutput(loss, len(scores), scores)

    def scores_and_hidden(self, layers: Layers | Mapping[str, Layers]) -> tuple[Tensor, Tensor]:
        """Scores (B, C) of the task's head, and what its last layer sees (B, H)."""
        seen: list[Tensor] = []

        def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen.append(inputs[0])

        handle = self.head.get_submodule(self.last_layer).register_forward_pre_hook(look)
        try:
            scores = self.head(self.interface(layers))
        finally:
            handle.remove()
        if len(seen) != 1 or seen[0].shape[:-1] != scores.shape[:1]:
            raise InputError(
                f"The layer {self.last_layer!r} of {type(self.head).__name__} must see one vector per clip, once."
            )
        return scores, seen[0]

    @torch.no_grad()
    def hidden(self, layers: Layers | Mapping[str, Layers]) -> Tensor:
        """What the last layer of the head sees (B, H), in eval mode: what `mmssl.probing.leakage` takes."""
        training = self.training
        self.eval()
        try:
            return self.scores_and_hidden(layers)[1]
        finally:
            self.train(training)
