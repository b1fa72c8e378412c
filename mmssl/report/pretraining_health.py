"""What the history of a pretraining run says of its health: numbers for a table, and findings in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mmssl.training.pretrain_rows import learnable_loss

_TINY = 1e-3


def indicators(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The last value of each health number of a run: names that hold spread, rank, entropy or accuracy."""
    wanted = ("spread", "rank", "entropy", "usage", "accuracy")
    found: dict[str, float] = {}
    for row in history:
        found |= {name: value for name, value in row.items() if any(word in name for word in wanted)}
    return found


def findings(history: Sequence[Mapping[str, float]]) -> list[str]:
    """Sentences on what looks wrong at the end of a run; empty where nothing does.

    Looked at: a loss that did not fall (see `learnable_loss`), one that stays at ln(N), a spread that went to zero, a
    rank of one.
    """
    if len(history) < 4:
        return []
    quarter = max(len(history) // 4, 1)
    first, last = _means(history[:quarter]), _means(history[-quarter:])
    found = []
    before, now = learnable_loss(first), learnable_loss(last)
    if now >= before:
        what = "the loss" if before == first["loss"] else "the loss beyond the teacher's entropy"
        found.append(f"{what} did not fall: {before:.4f} in the first quarter, {now:.4f} in the last.")
    for name, value in last.items():
        guess = last.get(f"{name.removesuffix('loss')}ln_n")
        if name.endswith("/loss") and guess is not None and value > 0.99 * guess:
            found.append(f"{name} is at ln(N) = {guess:.3f}, what guessing gives: nothing was learnt of it.")
        if "spread" in name and value < _TINY:
            found.append(f"{name} is {value:.1e}: all clips get nearly the same vector, a collapse.")
        if "rank" in name and value < 1.5:
            found.append(f"{name} is {value:.2f}: all vectors lie on a line, a collapse of dimensions.")
    return found


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = {name for row in rows for name in row}
    values = {name: [row[name] for row in rows if name in row and math.isfinite(row[name])] for name in names}
    return {name: sum(own) / len(own) for name, own in sorted(values.items()) if own}
