"""Metrics of many heads at once on their development clips: those of the tasks, counted without a loop over heads."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mmssl.metrics.classification import macro_f1_from, uar_from, weighted_accuracy_from
from mmssl.metrics.regression import ccc, pearson, rmse


def split_metrics(scores: Tensor, targets: Tensor, present: Tensor, classes: bool) -> dict[str, np.ndarray]:
    """Metrics of H = G R heads, R in each of G groups.

    Args:
        scores: (H, N, C) logits or values.
        targets: (G, N) class indices, or (G, N, C) values.
        present: (G, N) bool, False for filling.
        classes: whether targets are classes.

    Returns:
        Name -> (H,): uar, wa and macro_f1, or ccc, pearson and rmse (means over the C values).
    """
    return _of_classes(scores, targets, present) if classes else _of_values(scores, targets, present)


def _of_classes(scores: Tensor, targets: Tensor, present: Tensor) -> dict[str, np.ndarray]:
    heads, _, classes = scores.shape
    per_group = heads // len(targets)
    truth, there = targets.repeat_interleave(per_group, 0), present.repeat_interleave(per_group, 0)
    # filling is counted in a cell past the end
    cells = torch.where(there, truth * classes + scores.argmax(-1), classes * classes)
    size = classes * classes + 1
    offsets = torch.arange(heads, device=cells.device)[:, None] * size
    counts = torch.bincount((cells + offsets).flatten(), minlength=heads * size).view(heads, size)
    table = counts[:, :-1].view(heads, classes, classes).cpu().numpy()
    return {"uar": uar_from(table), "wa": weighted_accuracy_from(table), "macro_f1": macro_f1_from(table)}


def _of_values(scores: Tensor, targets: Tensor, present: Tensor) -> dict[str, np.ndarray]:
    groups = len(targets)
    per_group = len(scores) // groups
    found: dict[str, list[np.ndarray]] = {"ccc": [], "pearson": [], "rmse": []}
    values = scores.double().cpu().numpy()
    truth, there = targets.double().cpu().numpy(), present.cpu().numpy()
    for g in range(groups):
        own = values[g * per_group : (g + 1) * per_group][:, there[g]].transpose(0, 2, 1)
        wanted = np.broadcast_to(truth[g][there[g]].T, own.shape)
        finite = np.isfinite(own).all((1, 2))
        for metric in (ccc, pearson, rmse):
            result = np.full(per_group, np.nan)
            if finite.any():
                result[finite] = metric(wanted[finite], own[finite]).mean(-1)
            found[metric.__name__].append(result)
    return {name: np.concatenate(parts) for name, parts in found.items()}
