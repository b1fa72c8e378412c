"""An objective: views of a batch, an encoder, and the weighted sum of terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmssl.errors import ConfigError
from mmssl.objectives.losses.base import Loss
from mmssl.objectives.targets.base import Target
from mmssl.objectives.term import Term
from mmssl.objectives.types import Encoder, Examples, Step
from mmssl.objectives.views import Views


@dataclass(frozen=True)
class ObjectiveOutput:
    """What an objective returns for a batch.

    Attributes:
        loss: scalar, weighted sum of the terms.
        logs: "loss", "TERM/loss", "TERM/weight" and what losses, targets and health report, without gradient.
        count: frames or clips that the first term averages over.
    """

    loss: Tensor
    logs: Mapping[str, Tensor]
    count: int


class Objective(nn.Module):
    """Views -> encoder -> targets -> losses.

    All modules that are trained (encoder, mask tokens, heads, trainable targets) are in `parameters()`, once; teachers
    are in `state_dict()` but ask for no gradient. Targets come after one another in the order of the terms; a target
    that two terms share is one module, computed once for each of them.

    Args:
        encoder: what is trained.
        views: makes views of a batch.
        terms: at least one, with different names.
        health_every: steps between two looks at spread, rank and code usage; 0 for never.

    Raises:
        ConfigError: no terms, or two of one name.
    """

    def __init__(self, encoder: Encoder, views: Views, terms: Sequence[Term], health_every: int = 50) -> None:
        super().__init__()
        names = [term.name for term in terms]
        if not terms or len(set(names)) < len(names):
            raise ConfigError(f"An objective needs at least one term, and a name for each, got {names}.")
        if health_every < 0:
            raise ConfigError(f"health_every must be at least 0, got {health_every}.")
        self.encoder, self.views = encoder, views
        self.terms: Sequence[Term] = nn.ModuleList(terms)  # type: ignore[assignment]
        self.health_every = health_every
        for target in self._targets():
            target.attach(encoder)

    def forward(self, examples: Examples, step: int, generator: torch.Generator | None = None) -> ObjectiveOutput:
        """The loss of a batch.

        Args:
            examples: the batch.
            step: optimizer steps done before; weights, temperatures and decays follow it.
            generator: on the CPU, for masks, negatives and noise; None for one seeded with the step. Dropout alone
                draws from the global generator.

        Raises:
            ConfigError: parts that do not fit each other.
            InputError: clips that do not fit, a mask that hides nothing, or a loss that is not finite.
        """
        generator = torch.Generator().manual_seed(step) if generator is None else generator
        views = self.views(examples, self.encoder, generator)
        needed = sorted(set().union(*(term.views_needed() for term in self.terms)))
        if needed[-1] >= len(views):
            raise ConfigError(f"A term asks for view {needed[-1]}, the batch has {len(views)} (numbered from 0).")
        encoded = {number: self.encoder.encode(views[number]) for number in needed}
        state = Step(step, views, encoded, self.encoder, generator, seeds=examples.seeds)
        health = bool(self.health_every) and step % self.health_every == 0
        total: Tensor | None = None
        count = 0
        logs: dict[str, Tensor] = {}
        for index, term in enumerate(self.terms):
            output = term(state, health)
            weight = term.weight_at(step)
            total = output.loss * weight if total is None else total + output.loss * weight
            count = output.count if index == 0 else count
            logs[f"{term.name}/loss"] = output.loss.detach()
            logs[f"{term.name}/weight"] = output.loss.new_tensor(weight)
            logs |= {f"{term.name}/{name}": value for name, value in output.logs.items()}
            logs |= {f"{term.name}/{name}": value.detach() for name, value in state.logs.items()}
            state.logs.clear()
        if total is None:
            raise ConfigError("The objective has no terms.")
        return ObjectiveOutput(total, {"loss": total.detach(), **logs}, count)

    def before_epoch(self, epoch: int) -> None:
        """To be called before each epoch."""
        for target in self._targets():
            target.before_epoch(epoch, self.encoder)

    def after_step(self, step: int) -> None:
        """To be called after each optimizer step, with the number of steps done before it: teachers and queues move."""
        for target in self._targets():
            target.after_step(step, self.encoder)
        for loss in self._losses():
            loss.after_step()

    def after_skipped_step(self) -> None:
        """To be called instead of `after_step` where a loss scale left the step out: teachers and queues stay."""
        for loss in self._losses():
            loss.after_skipped_step()

    def _losses(self) -> list[Loss]:
        return list({id(term.loss): term.loss for term in self.terms}.values())

    def _targets(self) -> list[Target]:
        found = {id(term.target): term.target for term in self.terms if term.target is not None}
        return list(found.values())
