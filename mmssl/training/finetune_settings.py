"""How a model is fine-tuned."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mmssl.errors import ConfigError


@dataclass(frozen=True)
class FineTuneSettings:
    """How a model is fine-tuned. Defaults follow HiCMAE's, but for its mixup of 0.8 and smoothing of 0.1.

    Attributes:
        max_steps: optimizer steps.
        batch_size: clips per step.
        learning_rate: the highest, of the head and of whatever layer_decay does not lower.
        warmup_steps: of a linear rise, before half a cosine down to `final_factor` of the highest.
        final_factor: in [0, 1].
        layer_decay: factor of the learning rate from one block to the one below it, in (0, 1]; 1 for one rate for all.
        drop_path: probability with which the last block is passed over, falling linearly to 0 at the first.
        mixup: alpha of mixup's Beta distribution; 0 for none.
        label_smoothing: in [0, 1), for classes.
        weight_decay, betas, grad_clip: of AdamW.
        eval_every: steps between two evaluations and checkpoints; None for a tenth of max_steps.
        num_crops: stretches of each development clip whose answers are averaged.
        monitor: column of the history that selects; None for the task's own.
        seed: of the order of the clips, crops, dropout and all else that is drawn.
    """

    max_steps: int
    batch_size: int = 16
    learning_rate: float = 1e-3
    warmup_steps: int = 0
    final_factor: float = 0.001
    layer_decay: float = 0.75
    drop_path: float = 0.1
    mixup: float = 0.0
    label_smoothing: float = 0.0
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    grad_clip: float | None = None
    eval_every: int | None = None
    num_crops: int = 1
    monitor: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mixup < 0 or not 0 <= self.label_smoothing < 1 or not 0 <= self.drop_path < 1:
            raise ConfigError(
                f"mixup must be at least 0, label_smoothing and drop_path in [0, 1); got {self.mixup}, "
                f"{self.label_smoothing} and {self.drop_path}."
            )
        every = 1 if self.eval_every is None else self.eval_every
        if min(self.max_steps, self.batch_size, self.num_crops, every) < 1:
            raise ConfigError("max_steps, batch_size, num_crops and eval_every must be at least 1.")
        if not self.learning_rate > 0 or self.weight_decay < 0 or not 0 < self.layer_decay <= 1:
            raise ConfigError(
                "learning_rate must be above 0, weight_decay at least 0 and layer_decay in (0, 1]; got "
                f"{self.learning_rate}, {self.weight_decay} and {self.layer_decay}."
            )
        if not 0 <= self.warmup_steps <= self.max_steps or not 0 <= self.final_factor <= 1:
            raise ConfigError(
                "warmup_steps must be at least 0 and at most max_steps, and final_factor in [0, 1]; got "
                f"{self.warmup_steps} of {self.max_steps}, and {self.final_factor}."
            )
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas must be two numbers in [0, 1), got {self.betas}.")
        if self.grad_clip is not None and not self.grad_clip > 0:
            raise ConfigError(f"grad_clip must be above 0, or None for no limit, got {self.grad_clip}.")

    @property
    def interval(self) -> int:
        """Steps between two evaluations."""
        return min(self.max_steps, self.eval_every or max(1, self.max_steps // 10))

    def factor(self, step: int) -> float:
        """Learning rate of a step (counted from 0) as a share of the highest: linear rise, then half a cosine."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        share = min((step - self.warmup_steps) / max(self.max_steps - self.warmup_steps, 1), 1.0)
        return self.final_factor + (1 - self.final_factor) * (1 + math.cos(math.pi * share)) / 2
