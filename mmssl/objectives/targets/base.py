"""The contract of a target."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from mmssl.objectives.types import Encoder, Step


class Target(nn.Module, ABC):
    """What a term's prediction is compared with.

    Attributes:
        reads_student: True where the target needs the student's own encoding of its view.
    """

    reads_student = False

    @property
    def trainable(self) -> bool:
        """Whether gradients train the target too, as they do wav2vec 2.0's quantizer."""
        return any(parameter.requires_grad for parameter in self.parameters())

    def attach(self, encoder: Encoder) -> None:
        """Called once when the objective is composed; a teacher makes its copy here, and keeps no reference."""
        return

    @abstractmethod
    def forward(self, step: Step, view: int) -> Tensor:
        """Values (B, T, ...), aligned with the frames of the student's output, or (B, ...) for whole clips.

        Args:
            step: the step.
            view: number of the view that the target is of.
        """

    def before_epoch(self, epoch: int, encoder: Encoder) -> None:
        """Called before each epoch."""
        return

    def after_step(self, index: int, encoder: Encoder) -> None:
        """Called after each optimizer step, `index` being the number of steps done before it."""
        return
