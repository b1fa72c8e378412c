"""Cross entropy against the teacher's centred and sharpened distribution.

Source: Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers" (DINO), equations 2 to 4.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from mmssl.errors import ConfigError
from mmssl.objectives.losses.base import Loss, LossOutput, both_rows, require_positive
from mmssl.objectives.losses.gather import sum_over_ranks


class SoftCrossEntropy(Loss):
    """-sum p log q with p = softmax((teacher - centre) / t_teacher) and q = softmax(student / t_student).

    The centre is a running mean of the teacher's outputs over all steps (and ranks); it moves once in a step, after it.
    Without it one output wins for every clip; without the sharpening, the distribution goes flat.

    Args:
        num_outputs: width of both.
        student_temperature: t_student.
        teacher_temperature: t_teacher, at the end of the warm-up.
        warmup_temperature: t_teacher at the first step; None for no warm-up.
        warmup_steps: steps over which it goes linearly from the one to the other.
        center_momentum: weight of the old centre, in [0, 1].

    Raises:
        ConfigError: a value out of range.
    """

    center: Tensor
    steps: Tensor

    def __init__(
        self,
        num_outputs: int,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        warmup_temperature: float | None = None,
        warmup_steps: int = 0,
        center_momentum: float = 0.9,
    ) -> None:
        super().__init__()
        start = teacher_temperature if warmup_temperature is None else warmup_temperature
        require_positive(
            student_temperature=student_temperature, teacher_temperature=teacher_temperature, warmup_temperature=start
        )
        if not 0 <= center_momentum <= 1 or warmup_steps < 0:
            raise ConfigError(
                f"center_momentum must be in [0, 1] and warmup_steps at least 0, got {center_momentum}, {warmup_steps}."
            )
        self.student_temperature, self.center_momentum = student_temperature, center_momentum
        self.temperatures, self.warmup_steps = (start, teacher_temperature), warmup_steps
        self.register_buffer("center", torch.zeros(num_outputs))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._sum: Tensor | None = None
        self._rows = 0

    @property
    def teacher_temperature(self) -> float:
        """t_teacher at the present step."""
        start, end = self.temperatures
        share = min(int(self.steps) / self.warmup_steps, 1.0) if self.warmup_steps else 1.0
        return start + (end - start) * share

    def forward(
        self,
        prediction: Tensor,
        target: Tensor | None = None,
        where: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> LossOutput:
        """Mean over selected rows; logs the teacher's entropy and the divergence that is left of the loss.

        "code_usage_entropy" is the entropy of the teacher's mean over the rows: 0 when one output wins for every clip.

        Args:
            prediction: student's outputs (B, C) or (B, T, C).
            target: the teacher's, of the same shape; no gradient reaches it.
            where: as `Loss.forward`.
            generator: not used.
        """
        student, teacher = (x.float() for x in both_rows(prediction, target, where))
        teacher = teacher.detach()
        log_teacher = F.log_softmax((teacher - self.center) / self.teacher_temperature, dim=-1)
        probabilities = log_teacher.exp()
        loss = -(probabilities * F.log_softmax(student / self.student_temperature, dim=-1)).sum(-1).mean()
        if torch.is_grad_enabled():
            total = teacher.sum(0)
            self._sum = total if self._sum is None else self._sum + total
            self._rows += len(teacher)
        entropy = -(probabilities * log_teacher).sum(-1).mean()
        usage = probabilities.mean(0)
        logs = {
            "teacher_entropy": entropy,
            "code_usage_entropy": -torch.xlogy(usage, usage).sum(),
            "divergence": loss.detach() - entropy,
            "ln_n": torch.tensor(math.log(student.shape[1])),
        }
        return LossOutput(loss, len(student), logs)

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the centre by the step's mean output."""
        if self._sum is not None:
            sums = sum_over_ranks(torch.cat([self._sum, self._sum.new_tensor([self._rows])]))
            self.center.mul_(self.center_momentum).add_(sums[:-1] / sums[-1], alpha=1 - self.center_momentum)
            self._sum, self._rows = None, 0
        self.steps += 1

    def after_skipped_step(self) -> None:
        """Leave the centre as it is; see `Loss.after_skipped_step`."""
        self._sum, self._rows = None, 0
