"""Losses that spread speakers apart: classification with a margin on the hypersphere, and supervised contrast."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.errors import ConfigError, InputError
from mmssl.types import TaskOutput

KINDS = ("softmax", "am", "aam")
RAMP_END = 1e-3


class MarginSoftmax(nn.Module):
    """Cross entropy over speakers, with a margin that the true speaker must keep.

    "softmax": a linear map with bias, no margin. Otherwise logits are scale * cos(theta_j) between embedding and class
    centre, and that of the true class is
    "am": scale * (cos(theta) - margin), Wang et al. 2018, "Additive Margin Softmax for Face Verification", eq. 5;
    "aam": scale * cos(theta + margin), Deng et al. 2019, "ArcFace", eq. 3. Where theta + margin exceeds pi it goes on
    as cos(theta) - (1 - cos(margin)), which meets the curve there and keeps falling.

    With sub-centres a class has several centres and the nearest counts (Deng et al. 2020, "Sub-center ArcFace"). The
    inter-top-k penalty draws the `top_k` most similar wrong classes nearer to the embedding by `top_penalty`, as an
    angle for "aam" and as a cosine for "am" (Zhao et al. 2022, "Multi-query multi-head attention pooling and
    inter-topK penalty for speaker verification", section 3). Angles are computed in float32 or wider, also under
    autocast, and gradients are finite at theta = 0 and pi.

    Args:
        input_size: width D of the embeddings.
        num_classes: C speakers of the training split.
        kind: "softmax", "am" or "aam".
        margin: in radians for "aam"; may be changed between steps, see `margin_at`.
        scale: of the cosines.
        sub_centers: centres of a class.
        top_k: wrong classes that are penalised; 0 for none.
        top_penalty: of them.

    Raises:
        ConfigError: a value is out of range, or "softmax" is given sub-centres or a penalty.
    """

    def __init__(
        self,
        input_size: int,
        num_classes: int,
        kind: str = "aam",
        margin: float = 0.2,
        scale: float = 30.0,
        sub_centers: int = 1,
        top_k: int = 0,
        top_penalty: float = 0.06,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ConfigError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}.")
        if min(input_size, num_classes, sub_centers) < 1 or scale <= 0 or not 0 <= top_k < num_classes:
            raise ConfigError(
                f"Sizes and scale must be positive and top_k lie in 0 to {num_classes - 1}, got {input_size=}, "
                f"{num_classes=}, {sub_centers=}, {scale=}, {top_k=}."
            )
        if kind == "softmax" and (sub_centers > 1 or top_k):
            raise ConfigError("sub_centers and top_k need cosines: take kind 'am' or 'aam'.")
        if not 0 <= top_penalty < math.pi / 2:
            raise ConfigError(f"top_penalty must lie in [0, pi / 2), got {top_penalty}.")
        self.kind, self.scale, self.sub_centers = kind, scale, sub_centers
        self.top_k, self.top_penalty, self.margin = top_k, top_penalty, margin
        self.num_classes = num_classes
        self.weight = nn.Parameter(torch.empty(num_classes * sub_centers, input_size))
        nn.init.xavier_normal_(self.weight)
        self.bias = nn.Parameter(torch.zeros(num_classes)) if kind == "softmax" else None

    @property
    def margin(self) -> float:
        """The margin in force."""
        return self._margin

    @margin.setter
    def margin(self, value: float) -> None:
        if not 0 <= value < math.pi / 2:
            raise ConfigError(f"The margin must lie in [0, pi / 2), got {value}.")
        self._margin = float(value)

    def cosines(self, embeddings: Tensor) -> Tensor:
        """(B, C) cosine to the nearest centre of each class, for embeddings (B, D)."""
        with torch.autocast(embeddings.device.type, enabled=False):
            wide = torch.promote_types(embeddings.dtype, torch.float32)
            cosine = F.normalize(embeddings.to(wide)) @ F.normalize(self.weight.to(wide)).t()
        return cosine.unflatten(1, (self.num_classes, self.sub_centers)).amax(2) if self.sub_centers > 1 else cosine

    def forward(self, embeddings: Tensor, targets: Tensor) -> TaskOutput:
        """Loss of a batch.

        Args:
            embeddings: (B, D), any length.
            targets: (B,) int64 class indices in [0, C).

        Returns:
            Loss, B, and the logits (B, C) without margin and penalty.

        Raises:
            InputError: shapes, types or indices do not fit.
        """
        self._check(embeddings, targets)
        if self.bias is not None:
            logits = F.linear(embeddings, self.weight, self.bias)
            return TaskOutput(F.cross_entropy(logits.float(), targets), len(targets), logits)
        cosine = self.cosines(embeddings)
        is_target = F.one_hot(targets, self.num_classes).bool()
        own = cosine[is_target]
        marked = own - self.margin if self.kind == "am" else add_angle(own, self.margin)
        logits = cosine.masked_scatter(is_target, marked)
        if self.top_k:
            nearest = cosine.detach().masked_fill(is_target, -torch.inf).topk(self.top_k).indices
            others = cosine.gather(1, nearest)
            drawn = others + self.top_penalty if self.kind == "am" else subtract_angle(others, self.top_penalty)
            logits = logits.scatter(1, nearest, drawn)
        return TaskOutput(F.cross_entropy(self.scale * logits, targets), len(targets), self.scale * cosine)

    def _check(self, embeddings: Tensor, targets: Tensor) -> None:
        if (
            embeddings.dim() != 2
            or embeddings.shape[1] != self.weight.shape[1]
            or targets.shape != embeddings.shape[:1]
        ):
            raise InputError(
                f"The loss takes embeddings (B, {self.weight.shape[1]}) and (B,) classes, got "
                f"{tuple(embeddings.shape)} and {tuple(targets.shape)}."
            )
        if targets.dtype != torch.int64:
            raise InputError(f"Classes must be int64 indices, got {targets.dtype}.")
        if len(targets) == 0 or not 0 <= int(targets.min()) <= int(targets.max()) < self.num_classes:
            raise InputError(f"Classes must lie in 0 to {self.num_classes - 1}, got {targets.tolist()[:10]}.")


def safe_sine(cosine: Tensor) -> Tensor:
    """Sine of an angle in [0, pi] from its cosine; value and gradient are 0 at both ends, where the slope is infinite.

    The product (1 - c)(1 + c) keeps the digits that 1 - c^2 loses near the ends. Cosines that rounding has put a
    little outside of [-1, 1] count as the ends.
    """
    square = (1 - cosine) * (1 + cosine)
    inside = square > 0
    return torch.where(inside, torch.where(inside, square, 1).sqrt(), 0)


def add_angle(cosine: Tensor, margin: float) -> Tensor:
    """cos(theta + margin), and cos(theta) - (1 - cos(margin)) where theta > pi - margin: falls over all of [0, pi].

    Args:
        cosine: cos(theta), any shape.
        margin: in [0, pi / 2).
    """
    turned = cosine * math.cos(margin) - safe_sine(cosine) * math.sin(margin)
    return torch.where(cosine > math.cos(math.pi - margin), turned, cosine - (1 - math.cos(margin)))


def subtract_angle(cosine: Tensor, margin: float) -> Tensor:
    """cos(theta - margin), and cos(theta) + (1 - cos(margin)) where theta < margin: the mirror image of `add_angle`."""
    turned = cosine * math.cos(margin) + safe_sine(cosine) * math.sin(margin)
    return torch.where(cosine < math.cos(margin), turned, cosine + (1 - math.cos(margin)))


class SupervisedContrastive(nn.Module):
    """Draws clips of a class together against all others of the batch.

    Khosla et al. 2020, "Supervised Contrastive Learning", eq. 2 (the mean over positives outside the logarithm). Clips
    that are alone of their class in the batch are no anchors but stay among the others.

    Args:
        temperature: of the cosines, > 0.

    Raises:
        ConfigError: `temperature` is not positive.
    """

    def __init__(self, temperature: float = 0.07) -> None:
        super().__init__()
        if temperature <= 0:
            raise ConfigError(f"temperature must be positive, got {temperature}.")
        self.temperature = temperature

    def forward(self, embeddings: Tensor, targets: Tensor) -> Tensor:
        """Loss, a scalar.

        Args:
            embeddings: (B, D), any length.
            targets: (B,) class indices.

        Raises:
            InputError: shapes do not fit, or no class occurs twice.
        """
        if embeddings.dim() != 2 or targets.shape != embeddings.shape[:1]:
            raise InputError(
                f"The loss takes (B, D) and (B,), got {tuple(embeddings.shape)} and {tuple(targets.shape)}."
            )
        with torch.autocast(embeddings.device.type, enabled=False):
            unit = F.normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)))
            similar = unit @ unit.t() / self.temperature
        oneself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
        positive = (targets[:, None] == targets) & ~oneself
        counts = positive.sum(1)
        if not bool(counts.any()):
            raise InputError(
                f"No class occurs twice in this batch of {len(unit)} clips: draw several clips per speaker."
            )
        log_share = similar - similar.masked_fill(oneself, -torch.inf).logsumexp(1, keepdim=True)
        per_anchor = -log_share.masked_fill(~positive, 0).sum(1) / counts.clamp(min=1)
        return per_anchor[counts > 0].mean()


def margin_at(step: float, start: float, end: float, first: float = 0.0, last: float = 0.2, ramp: str = "exp") -> float:
    """Margin of a step or epoch: `first` up to `start`, `last` from `end` on, a ramp between.

    "exp" rises as 1 - 0.001^x with x from 0 to 1, fast at first, divided by its value at the end so that it arrives
    without a jump (WeSpeaker's schedule, which jumps the last 0.1 %); "linear" rises evenly. Large-margin fine-tuning
    (Thienpondt et al. 2021) is a constant margin of 0.5 on longer crops.

    Args:
        step: now, in the unit of `start` and `end`.
        start, end: of the ramp, start <= end.
        first, last: margins before and after.
        ramp: "exp" or "linear".

    Raises:
        ConfigError: `end` comes before `start`, or there is no such ramp.
    """
    if end < start or ramp not in ("exp", "linear"):
        raise ConfigError(f"A margin ramp is 'exp' or 'linear' with start <= end, got {ramp!r}, {start} to {end}.")
    if step >= end:
        return last
    place = max(0.0, (step - start) / (end - start))
    if ramp == "exp":
        place = (1 - RAMP_END**place) / (1 - RAMP_END)
    return first + (last - first) * place
