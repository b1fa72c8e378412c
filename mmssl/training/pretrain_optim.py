"""What a pretraining run is optimised with: AdamW, its schedule, and learning rates that fall towards the input."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from mmssl.errors import ConfigError
from mmssl.objectives.objective import Objective
from mmssl.training.blocks import parameter_depths

DECAYS = ("linear", "cosine", "constant", "tri_stage")


@dataclass(frozen=True)
class Optimization:
    """AdamW and its learning rate over a run.

    Attributes:
        learning_rate: the highest.
        max_steps: optimizer steps in all.
        warmup_steps: steps of the linear rise to `learning_rate`; 0 for none.
        hold_steps: steps at `learning_rate` before it falls.
        decay: "linear" (wav2vec 2.0, HuBERT), "cosine" (data2vec, MAE), "constant", or "tri_stage" (an exponential
            fall after warm-up and hold: wav2vec 2.0's fine-tuning).
        final_factor: what is left of the learning rate at the end, in [0, 1]; None for 0.05 with "tri_stage", else 0.
        betas, eps, weight_decay: of AdamW; biases, norms and mask tokens are not decayed.
        layer_decay: factor of the learning rate from one block of the encoder to the one below it, in (0, 1]; 1 for one
            learning rate for all. See `parameter_groups`.
        grad_clip: largest norm of the gradient; None for no limit.
        accumulate: batches per optimizer step.

    Raises:
        ConfigError: a value out of range.
    """

    learning_rate: float
    max_steps: int
    warmup_steps: int = 0
    hold_steps: int = 0
    decay: str = "linear"
    final_factor: float | None = None
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.01
    layer_decay: float = 1.0
    grad_clip: float | None = None
    accumulate: int = 1

    def __post_init__(self) -> None:
        if self.decay not in DECAYS:
            raise ConfigError(f"decay must be one of {', '.join(DECAYS)}, got {self.decay!r}.")
        if self.max_steps < 1 or self.accumulate < 1:
            raise ConfigError(
                f"max_steps and accumulate must be at least 1, got {self.max_steps} and {self.accumulate}."
            )
        if not self.learning_rate > 0 or self.weight_decay < 0 or not self.eps > 0:
            raise ConfigError(
                f"learning_rate and eps must be above 0 and weight_decay at least 0, got {self.learning_rate}, "
                f"{self.eps} and {self.weight_decay}."
            )
        if min(self.warmup_steps, self.hold_steps) < 0 or self.warmup_steps + self.hold_steps > self.max_steps:
            raise ConfigError(
                f"warmup_steps and hold_steps must be at least 0 and together at most max_steps, got "
                f"{self.warmup_steps} and {self.hold_steps} of {self.max_steps}."
            )
        if not 0 <= self.last_factor <= 1 or (self.decay == "tri_stage" and not self.last_factor):
            raise ConfigError(
                f"final_factor must be in [0, 1], and above 0 for tri_stage, got {self.final_factor} for {self.decay}."
            )
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas must be two numbers in [0, 1), got {self.betas}.")
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"layer_decay must be in (0, 1], got {self.layer_decay}.")
        if self.grad_clip is not None and not self.grad_clip > 0:
            raise ConfigError(f"grad_clip must be above 0, or None for no limit, got {self.grad_clip}.")

    @property
    def last_factor(self) -> float:
        """`final_factor`, or what it is where none is given."""
        if self.final_factor is not None:
            return self.final_factor
        return 0.05 if self.decay == "tri_stage" else 0.0

    def factor(self, step: int) -> float:
        """Factor of the learning rate at a step."""
        return learning_rate_factor(
            step, self.warmup_steps, self.max_steps, self.decay, self.hold_steps, self.last_factor
        )


def learning_rate_factor(
    step: int, warmup_steps: int, max_steps: int, decay: str, hold_steps: int = 0, final_factor: float = 0.0
) -> float:
    """Factor of the learning rate at a step: linear warm-up from 1 / warmup_steps to 1, a hold at 1, then the decay.

    With s = (step - warmup_steps - hold_steps) / (max_steps - warmup_steps - hold_steps) and the final factor f, the
    decay is 1 - s (1 - f) ("linear"), f + (1 - f) (1 + cos(pi s)) / 2 ("cosine"), 1 ("constant") or f ** s
    ("tri_stage", Baevski et al. 2020, appendix B, with f = .05; Park et al. 2019, section 3.2).

    Args:
        step: optimizer steps done before.
        warmup_steps: of the warm-up; 0 for none.
        max_steps: where the decay reaches `final_factor`.
        decay: "linear", "cosine", "constant" or "tri_stage".
        hold_steps: after the warm-up.
        final_factor: in [0, 1]; above 0 for "tri_stage".
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    begin = warmup_steps + hold_steps
    share = min(max(step - begin, 0) / max(max_steps - begin, 1), 1.0)
    if decay == "constant":
        return 1.0
    if decay == "tri_stage":
        return final_factor**share
    left = 1 - share if decay == "linear" else (1 + math.cos(math.pi * share)) / 2
    return final_factor + (1 - final_factor) * left


def parameter_groups(objective: Objective, settings: Optimization) -> list[dict[str, object]]:
    """Groups for AdamW: parameters that share a learning rate and a weight decay.

    A parameter of the encoder at depth l of L (see `mmssl.training.blocks.parameter_depths`) has learning_rate *
    layer_decay ** (L + 1 - l), heads and the rest of the objective learning_rate (Clark et al. 2020, ELECTRA; Bao et
    al. 2022, BEiT). An encoder that is no stack of blocks is one group, one step below the heads.
    """
    depths, last = parameter_depths(objective.encoder.upstream)
    prefix = "encoder.upstream."
    found: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in objective.named_parameters():
        if not parameter.requires_grad:
            continue
        below = 0
        if settings.layer_decay < 1 and name.startswith(prefix):
            below = last + 1 - depths[name.removeprefix(prefix)]
        found.setdefault((below, parameter.dim() <= 1), []).append(parameter)
    return [
        {
            "params": found[below, plain],
            "lr": settings.learning_rate * settings.layer_decay**below,
            "weight_decay": 0.0 if plain else settings.weight_decay,
        }
        for below, plain in sorted(found)
    ]
