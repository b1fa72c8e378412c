"""The input itself, or another inner result of the encoder, as target."""

from __future__ import annotations

from torch import Tensor

from mmssl.objectives.targets.base import Target
from mmssl.objectives.types import Step


class Tap(Target):
    """An inner result of the student's encoder, without gradient: the unaltered input frames of TERA.

    Args:
        name: of the tap.
        stream: of which stream.
    """

    reads_student = True

    def __init__(self, name: str = "input", stream: str = "audio") -> None:
        super().__init__()
        self.name, self.stream = name, stream

    def forward(self, step: Step, view: int) -> Tensor:
        """(B, T, ...); see `Target.forward`."""
        return step.tap(view, self.stream, self.name).detach()
