"""Groups of heads that see the same batches, and what a stack of groups needs of the features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mmssl.errors import ConfigError
from mmssl.probing.plan import Plan, statistics_of
from mmssl.training.batches import TensorBatches


@dataclass(frozen=True, eq=False)
class Head:
    """A head to train, with what is fixed of it.

    Attributes:
        task: holding the initial weights.
        plan: of the task.
        train: (n,) indices of clips.
        dev: (m,) indices of clips.
        learning_rate: of its optimizer.
        weight_decay: of its optimizer.
        seed: of the order of the clips.
    """

    task: nn.Module
    plan: Plan
    train: Tensor
    dev: Tensor
    learning_rate: float
    weight_decay: float
    seed: int


@dataclass(eq=False)
class Group:
    """Heads of one training split, one order of its clips, one standardisation and one set of class weights.

    Attributes:
        heads: numbers of the heads.
        first: the head whose split and statistics all share.
        order: the clips' order, drawn pass after pass.
    """

    heads: list[int]
    first: Head
    order: Order = field(init=False)

    def __post_init__(self) -> None:
        self.order = Order(len(self.first.train), self.first.seed)

    def takes(self, head: Head) -> bool:
        """Whether a head belongs to this group."""
        own = self.first
        return (
            head.seed == own.seed
            and (head.train is own.train or torch.equal(head.train, own.train))
            and (head.dev is own.dev or torch.equal(head.dev, own.dev))
            and _same(_class_weights(head.task), _class_weights(own.task))
            and all(
                _same(a, b)
                for layer in own.plan.layers
                for a, b in zip(_statistics(head.task, layer), _statistics(own.task, layer), strict=True)
            )
        )


class Order:
    """The order in which `mmssl.training.batches.StepStream` shows clips: pass after pass, each newly shuffled.

    Args:
        count: number of clips.
        seed: of the order.
    """

    def __init__(self, count: int, seed: int) -> None:
        self._count = count
        self._generator = torch.Generator().manual_seed(seed)
        self._pass: list[Tensor] = []

    def next(self, batch_size: int) -> Tensor:
        """Places (b,) of the next batch, 1 <= b <= batch_size."""
        if not self._pass:
            shuffled = torch.randperm(self._count, generator=self._generator)
            self._pass = list(shuffled.split(batch_size))[::-1]
        return self._pass.pop()


class Clips:
    """The features that a stack of groups reads: one table of all clips, standardised batch by batch.

    One copy of the corpus serves all folds, whatever each one's statistics are.

    Args:
        split: all clips, one frame per layer.
        plan: of the heads; `joined` puts its layers side by side.
        layers: layers that the table holds.
        device: of the table.
    """

    def __init__(self, split: TensorBatches, plan: Plan, layers: Sequence[int], device: str) -> None:
        rows = [split.layers.hidden_states[layer][:, 0] for layer in layers]
        table = torch.cat(rows, -1)[None] if plan.joined else torch.stack(rows)
        self.layers = tuple(layers)
        self.joined = plan.joined
        self.count = len(split)
        self.depth = len(table)
        # layer after layer, so that one gather gives (L, B, D) blocks
        self.table = table.reshape(-1, table.shape[-1]).to(device)
        self.targets = split.targets.to(device)
        self._starts = torch.arange(self.depth, device=self.table.device)[:, None] * self.count

    def statistics(self, groups: Sequence[Group]) -> tuple[Tensor, Tensor] | None:
        """Means and scales (G, L, 1, D) of groups; None where none standardises.

        Raises:
            ConfigError: only some do.
        """
        found = [[_statistics(group.first.task, layer) for layer in self.layers] for group in groups]
        missing = [mean is None for pairs in found for mean, _ in pairs]
        if all(missing):
            return None
        if any(missing):
            raise ConfigError("Either all heads that are trained together standardise their input, or none does.")
        both = []
        for place in (0, 1):
            per_group = [[pair[place] for pair in pairs] for pairs in found]
            stacked = [torch.cat(p)[None] if self.joined else torch.stack(p) for p in per_group]  # type: ignore[arg-type]
            both.append(torch.stack(stacked)[:, :, None].to(self.table.device))
        return both[0], both[1]

    def gather(self, clips: Tensor, statistics: tuple[Tensor, Tensor] | None) -> Tensor:
        """Clips with indices (G, B) as (G, L, B, D), standardised."""
        groups, batch = clips.shape
        index = clips[:, None, :] + self._starts
        found = self.table[index.flatten()].view(groups, self.depth, batch, -1)
        return found if statistics is None else (found - statistics[0]).mul_(statistics[1])


def make_groups(heads: Sequence[Head]) -> list[Group]:
    """Group heads that follow each other."""
    groups: list[Group] = []
    for number, head in enumerate(heads):
        if groups and groups[-1].takes(head):
            groups[-1].heads.append(number)
        else:
            groups.append(Group([number], head))
    return groups


def padded(rows: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of unequal length as (G, B) indices, filled up with clip 0, and (G, B) floats, 1 where a clip is real."""
    width = max(len(row) for row in rows)
    index = torch.zeros(len(rows), width, dtype=torch.int64)
    present = torch.zeros(len(rows), width)
    for place, row in enumerate(rows):
        index[place, : len(row)] = row
        present[place, : len(row)] = 1.0
    return index.to(device), present.to(device)


def class_weights_of(groups: Sequence[Group], num_classes: int, like: Tensor) -> Tensor:
    """(G, C) weights of the classes, 1 where a task has none."""
    rows = []
    for group in groups:
        weights = _class_weights(group.first.task)
        rows.append(torch.ones(num_classes) if weights is None else weights)
    return torch.stack(rows).to(like)


def _class_weights(task: nn.Module) -> Tensor | None:
    weights = getattr(task, "class_weights", None)
    return None if weights is None else weights.detach().cpu()


def _statistics(task: nn.Module, layer: int) -> tuple[Tensor | None, Tensor | None]:
    found = statistics_of(task, layer)
    return (None, None) if found is None else (found[0].detach().cpu(), found[1].detach().cpu())


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))
