"""One term of an objective: a prediction, what it is compared with, where, and how much it weighs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeGuard

import torch
from torch import Tensor, nn

from mmssl.errors import ConfigError, InputError
from mmssl.objectives.health import effective_rank, size, spread, usage_entropy
from mmssl.objectives.joint import joint_weight
from mmssl.objectives.losses.base import Loss, LossOutput, select_rows
from mmssl.objectives.schedule import Schedule, value_at
from mmssl.objectives.targets.base import Target
from mmssl.objectives.types import Decoder, Encoded, Step

PLACES = ("hidden", "visible", "all")


class Term(nn.Module):
    """Prediction of a stream of some views, a target, a loss and a weight.

    Args:
        name: of the term in logs.
        loss: compares prediction and target.
        target: what is predicted; None for a penalty.
        head: from the encoder's frames to the target's space, or a `Decoder`, which gives back dropped tokens too; None
            for the frames themselves.
        weight: a number or a schedule over steps.
        where: "hidden" frames, "visible" ones, or "all".
        pairs: (view of the prediction, view of the target) pairs; the term is the mean over them.
        stream: whose frames.
        source: None for what heads see (`Encoded.output`), a number for that layer, a name for an inner result of the
            encoder or a record of an earlier term's target.
        pool: mean over the selected frames of each clip before the head: a loss on clips.

    Raises:
        ConfigError: an unknown place, no pairs, or a loss and a target that do not go together.
    """

    def __init__(
        self,
        name: str,
        loss: Loss,
        target: Target | None = None,
        head: nn.Module | None = None,
        *,
        weight: float | Schedule = 1.0,
        where: str = "hidden",
        pairs: Sequence[tuple[int, int]] = ((0, 0),),
        stream: str = "audio",
        source: int | str | None = None,
        pool: bool = False,
    ) -> None:
        super().__init__()
        if where not in PLACES:
            raise ConfigError(f"where must be one of {', '.join(PLACES)}, got {where!r} in the term {name!r}.")
        if not pairs or min(min(pair) for pair in pairs) < 0:
            raise ConfigError(f"The term {name!r} needs at least one pair of views (numbers from 0), got {pairs!r}.")
        if (target is None) == loss.needs_target:
            need = "needs a target" if loss.needs_target else "is a penalty and takes no target"
            raise ConfigError(f"{type(loss).__name__} in the term {name!r} {need}.")
        self.name, self.loss, self.target, self.head = name, loss, target, head
        self.weight, self.where, self.stream, self.source, self.pool = weight, where, stream, source, pool
        self.pairs = tuple((int(a), int(b)) for a, b in pairs)

    def views_needed(self) -> set[int]:
        """Views that the student has to encode for this term."""
        needed = {prediction for prediction, _ in self.pairs}
        if self.target is not None and self.target.reads_student:
            needed |= {target for _, target in self.pairs}
        return needed

    def forward(self, step: Step, health: bool = False) -> LossOutput:
        """Mean loss over the pairs, before its weight. Of several ranks each has its share of the joint mean.

        Args:
            step: the step.
            health: whether to compute the numbers that show a collapse too.
        """
        outputs, targets = [], {}
        for first, second in self.pairs:
            if self.target is not None and second not in targets:
                targets[second] = self.target(step, second)
            outputs.append(self._of_pair(step, first, targets.get(second), health))
        loss = torch.stack([output.loss for output in outputs]).mean()
        names = {name: None for output in outputs for name in output.logs}
        logs = {
            name: torch.stack([o.logs[name].detach().float().to(loss.device) for o in outputs if name in o.logs]).mean()
            for name in names
        }
        return LossOutput(loss, sum(output.count for output in outputs), logs)

    def weight_at(self, step: int) -> float:
        """The weight at an optimizer step."""
        return value_at(self.weight, step)

    def _of_pair(self, step: Step, view: int, target: Tensor | None, health: bool) -> LossOutput:
        encoded = step.stream(view, self.stream)
        frames = self._frames(step, view, encoded)
        decoder = self.head if isinstance(self.head, Decoder) else None
        decodes = decoder is not None
        where: Tensor | None = self._selected(encoded, self.where)
        if frames.shape[:2] != encoded.output.data.shape[:2]:
            raise ConfigError(f"The source {self.source!r} of the term {self.name!r} has other frames than the output.")
        if self.pool:
            frames, where = _pooled(frames, self._selected(encoded, self.where)), None
        if decoder is not None and where is not None and self._by_rows(target):
            # a decoder need not finish what the loss does not look at
            target = select_rows(target, where)
            prediction, where = decoder(encoded, where), None
        else:
            prediction = frames if self.head is None else self.head(encoded if decodes else frames)
        # draws that follow the clips' own seeds do not depend on the batch, nor on the process that has the clip
        draws = {"seeds": step.seeds} if self.loss.draws_for_clips and len(step.seeds) == len(prediction) else {}
        output = self.loss(prediction, target, where, generator=step.generator, **draws)
        weight, finite = joint_weight(output.loss.detach(), output.count)
        if not finite:
            here = torch.isfinite(output.loss)
            value = "not finite in another process" if here else str(float(output.loss.detach()))
            raise InputError(
                f"The loss of the term {self.name!r} is {value} at step {step.index}: look for "
                "values in the input that are not finite, lower the learning rate, or train in bfloat16 or float32."
            )
        if weight != 1.0:
            output = replace(output, loss=output.loss * weight)
        if not health:
            return output
        seen = encoded.output.mask if decodes else where
        logs = {**output.logs, **self._health(frames, seen, prediction, target, where)}
        # a process without visible frames would leave the others waiting where rows are gathered
        gathers = getattr(self.loss, "gather", False)
        alone = self.where == "hidden" and not self.pool and not gathers
        if alone and "accuracy" in output.logs and target is not None:
            logs |= self._visible_accuracy(step, encoded, prediction, target)
        return LossOutput(output.loss, output.count, logs)

    def _by_rows(self, target: Tensor | None) -> TypeGuard[Tensor]:
        """Whether the loss is a mean over rows of values, which may come without their places."""
        apart = not self.loss.compares_rows and not self.loss.draws_for_clips
        return apart and target is not None and target.is_floating_point()

    def _frames(self, step: Step, view: int, encoded: Encoded) -> Tensor:
        if self.source is None:
            return encoded.output.data
        if isinstance(self.source, str):
            return step.tap(view, self.stream, self.source)
        layers = encoded.layers.hidden_states
        if not -len(layers) <= self.source < len(layers):
            raise ConfigError(f"The term {self.name!r} asks for layer {self.source} of {len(layers)}.")
        return layers[self.source]

    def _selected(self, encoded: Encoded, place: str) -> Tensor:
        """(B, T) bool of the frames that count, or (B, N) where a decoder gives back all places."""
        valid = encoded.output.mask
        if encoded.positions is not None and encoded.hidden is not None:
            if isinstance(self.head, Decoder):
                return {"hidden": encoded.hidden, "visible": ~encoded.hidden}.get(
                    place, torch.ones_like(encoded.hidden)
                )
            if place == "hidden":
                raise ConfigError(
                    f"The term {self.name!r} is on hidden tokens, which were dropped: it needs a Decoder."
                )
            return valid
        if place == "all":
            return valid
        if encoded.hidden is None:
            if place == "visible":
                return valid
            raise ConfigError(
                f"The term {self.name!r} is on hidden frames, but its view hides none: use where='all' or a mask."
            )
        return valid & (encoded.hidden if place == "hidden" else ~encoded.hidden)

    @torch.no_grad()
    def _health(
        self, frames: Tensor, seen: Tensor | None, prediction: Tensor, target: Tensor | None, where: Tensor | None
    ) -> dict[str, Tensor]:
        """Spread, size and rank of the frames that were `seen`, and of prediction and target where the loss looks."""
        if target is None:
            return {}
        rows = select_rows(frames.detach(), seen)
        logs = {"representation_spread": spread(rows), "representation_size": size(rows)}
        # one value, such as a distance, has one dimension to use
        if rows.shape[-1] > 1:
            logs["representation_rank"] = effective_rank(rows)
        if target.is_floating_point():
            rows = select_rows(target.detach(), where)
            predicted = select_rows(prediction.detach(), where)
            logs |= {"target_spread": spread(rows), "target_rank": effective_rank(rows), "target_size": size(rows)}
            logs |= {"prediction_spread": spread(predicted)}
        elif target.dim() > 1:
            extra = target.dim() - 2
            logs["code_usage_entropy"] = usage_entropy(select_rows(target, where, like=extra))
        return logs

    @torch.no_grad()
    def _visible_accuracy(self, step: Step, encoded: Encoded, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Accuracy on frames that were not hidden: near that of hidden ones, the task needs no context."""
        visible = self._selected(encoded, "visible")
        # clips with a single frame would have no negatives
        visible = visible & (visible.sum(1, keepdim=True) > 1)
        if not visible.any():
            return {}
        # its draws must not move those of training, or a run would depend on how often it is looked at
        generator = torch.Generator().manual_seed(step.index)
        output = self.loss(prediction.detach(), target.detach(), visible, generator=generator)
        return {"visible_accuracy": output.logs["accuracy"]}


def _pooled(frames: Tensor, where: Tensor) -> Tensor:
    """Mean (B, D) over the selected frames of each clip."""
    counts = where.sum(1)
    if int(counts.min()) == 0:
        raise InputError(f"Clip {int(counts.argmin())} of the batch has no frame to pool over.")
    return frames.masked_fill(~where[..., None], 0).sum(1) / counts[:, None]
