"""Another view as target: what the student itself, or a moving average of it, makes of that view."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mmssl.errors import ConfigError
from mmssl.nn.ema import EMA
from mmssl.objectives.schedule import Schedule, value_at
from mmssl.objectives.targets.base import Target
from mmssl.objectives.types import Encoded, Encoder, Step


class PeerView(Target):
    """The student's own projection of another view, with its gradient: SimCLR, Barlow Twins, VICReg.

    Args:
        head: the head of the term, which stays the term's: it is used here and not registered.
        stream: of the encoder.
        stop_gradient: whether the other view is taken as it is (SimSiam).
    """

    reads_student = True

    def __init__(self, head: nn.Module | None, stream: str = "image", stop_gradient: bool = False) -> None:
        super().__init__()
        # in a tuple, so that it is no submodule: the term has it already
        self._head = (head,)
        self.stream, self.stop_gradient = stream, stop_gradient

    def forward(self, step: Step, view: int) -> Tensor:
        """(B, D) of the clips; see `Target.forward`."""
        rows = pooled(step.stream(view, self.stream))
        head = self._head[0]
        projected = rows if head is None else head(rows)
        return projected.detach() if self.stop_gradient else projected


class TeacherView(Target):
    """What a moving average of the encoder and of a head makes of a view: BYOL, DINO.

    The teacher's batch norms take their statistics from the batch, as the student's do: running means follow the
    student's weights, not the average of them, and lag behind at the start. Dropout is off.

    Sources: Grill et al. 2020, "Bootstrap your own latent", section 3.1; Caron et al. 2021, "Emerging Properties in
    Self-Supervised Vision Transformers", section 3.1.

    Args:
        head: what is averaged along with the encoder: DINO's head, BYOL's projector (without the predictor). The
            student's own is used and not registered here; None for none.
        decay: of the average; a number or a schedule over steps.
        stream: of the encoder.
    """

    def __init__(self, head: nn.Module | None, decay: float | Schedule = 0.99, stream: str = "image") -> None:
        super().__init__()
        if not callable(decay) and not 0 <= decay <= 1:
            raise ConfigError(f"The decay of a teacher must be in [0, 1], got {decay}.")
        self._head = (head,)
        self.decay, self.stream = decay, stream
        self.teacher: EMA | None = None
        self.teacher_head: EMA | None = None

    def attach(self, encoder: Encoder) -> None:
        """Copy the student; see `Target.attach`."""
        self.teacher = EMA(encoder)
        head = self._head[0]
        self.teacher_head = None if head is None else EMA(head)

    @torch.no_grad()
    def forward(self, step: Step, view: int) -> Tensor:
        """(B, D) of the clips, without gradient; see `Target.forward`."""
        teacher = self._copy().model
        with batch_statistics(self):
            rows = pooled(teacher.encode(step.views[view].unmasked())[self.stream])  # type: ignore[operator]
            return rows if self.teacher_head is None else self.teacher_head.model(rows)

    def after_step(self, index: int, encoder: Encoder) -> None:
        """Let the teacher follow; see `Target.after_step`."""
        decay = value_at(self.decay, index)
        self._copy().update(encoder, decay)
        head = self._head[0]
        if self.teacher_head is not None and head is not None:
            self.teacher_head.update(head, decay)

    def _copy(self) -> EMA:
        if self.teacher is None:
            raise ConfigError("The teacher has no student yet: compose it into an Objective first.")
        return self.teacher


def pooled(encoded: Encoded) -> Tensor:
    """Mean (B, D) over the valid frames of a stream, as `Term` pools."""
    mask = encoded.output.mask
    return encoded.output.data.masked_fill(~mask[..., None], 0).sum(1) / mask.sum(1)[:, None]


@contextmanager
def batch_statistics(module: nn.Module) -> Iterator[None]:
    """Inside the block, batch norms normalise by the batch and keep no running statistics; nothing else changes."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    modes = [(norm.training, norm.track_running_stats) for norm in norms]
    try:
        for norm in norms:
            norm.training, norm.track_running_stats = True, False
        yield
    finally:
        for norm, (training, tracked) in zip(norms, modes, strict=True):
            norm.training, norm.track_running_stats = training, tracked
