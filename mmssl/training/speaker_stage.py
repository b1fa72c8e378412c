"""Stages of speaker training: how long, at which rates, on which crops, with which margin."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mmssl.downstream.margin import margin_at
from mmssl.errors import ConfigError

DECAYS = ("exp", "linear", "cosine", "constant")


@dataclass(frozen=True)
class SpeakerStage:
    """One stage of speaker training. Defaults are those of a first stage on crops of 2 to 3 s.

    Attributes:
        steps: optimizer steps.
        learning_rate: the highest, after the warm-up.
        final_learning_rate: at the last step.
        upstream_learning_rate: the highest of an upstream that is trained along; it follows the same curve.
        warmup_steps: in which the rate rises linearly from near 0.
        decay: from the highest to the final rate: "exp" (WeSpeaker), "linear", "cosine" or "constant".
        crop_seconds: shortest and longest crop.
        margin: of the loss, after the ramp.
        margin_ramp: where the margin leaves 0 and where it is whole, as shares of the steps; (0, 0) for no ramp.
        perturb_speed: play clips at other speeds, as other speakers.
        top_k: leave the loss's inter-top-k penalty on.
    """

    steps: int
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-5
    upstream_learning_rate: float | None = None
    warmup_steps: int = 0
    decay: str = "exp"
    crop_seconds: tuple[float, float] = (2.0, 3.0)
    margin: float = 0.2
    margin_ramp: tuple[float, float] = (0.25, 0.5)
    perturb_speed: bool = True
    top_k: bool = True

    def __post_init__(self) -> None:
        low, high = self.crop_seconds
        start, end = self.margin_ramp
        wrong = []
        if self.steps < 1 or not 0 <= self.warmup_steps < self.steps:
            wrong.append(f"steps at least 1 and warmup_steps below them ({self.steps}, {self.warmup_steps})")
        if not 0 < self.final_learning_rate <= self.learning_rate:
            wrong.append(f"0 < final_learning_rate <= learning_rate ({self.final_learning_rate}, {self.learning_rate})")
        if self.upstream_learning_rate is not None and not self.upstream_learning_rate > 0:
            wrong.append(f"upstream_learning_rate above 0 ({self.upstream_learning_rate})")
        if self.decay not in DECAYS:
            wrong.append(f"decay one of {', '.join(DECAYS)} ({self.decay!r})")
        if not 0 < low <= high:
            wrong.append(f"crop_seconds 0 < shortest <= longest ({self.crop_seconds})")
        if not 0 <= self.margin < math.pi / 2 or not 0 <= start <= end <= 1:
            wrong.append(f"margin in [0, pi / 2) and 0 <= margin_ramp <= 1 in order ({self.margin}, {start}, {end})")
        if wrong:
            raise ConfigError(f"A stage of speaker training needs {'; '.join(wrong)}.")

    def rate_factor(self, step: int) -> float:
        """Learning rate of a step (counted from 0) as a share of the highest."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        share = min((step - self.warmup_steps) / max(self.steps - 1 - self.warmup_steps, 1), 1.0)
        last = self.final_learning_rate / self.learning_rate
        if self.decay == "exp":
            return last**share
        if self.decay == "linear":
            return 1 - (1 - last) * share
        return last + (1 - last) * (1 + math.cos(math.pi * share)) / 2 if self.decay == "cosine" else 1.0

    def margin_of(self, step: int) -> float:
        """Margin of a step (counted from 0)."""
        start, end = self.margin_ramp
        return margin_at(step, start * self.steps, end * self.steps, 0.0, self.margin)


def large_margin_stage(
    steps: int,
    crop_seconds: tuple[float, float] = (6.0, 6.0),
    margin: float = 0.5,
    learning_rate: float = 1e-4,
    final_learning_rate: float = 2.5e-5,
    upstream_learning_rate: float | None = None,
) -> SpeakerStage:
    """Large-margin fine-tuning: longer crops, a larger margin, no other speeds and no penalty on top.

    Source: Thienpondt et al. 2021, "The IDLab VoxSRC-20 Submission: Large Margin Fine-Tuning and Quality-Aware Score
    Calibration in DNN Based Speaker Verification", section 4; rates as in WeSpeaker.
    """
    return SpeakerStage(
        steps,
        learning_rate,
        final_learning_rate,
        upstream_learning_rate,
        crop_seconds=crop_seconds,
        margin=margin,
        margin_ramp=(0.0, 0.0),
        perturb_speed=False,
        top_k=False,
    )
