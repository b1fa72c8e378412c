"""Which of two evaluations of a training run is the better one."""

from __future__ import annotations

from typing import Any

LOWER_IS_BETTER = ("dev_loss", "dev_rmse")


def better(row: dict[str, Any], other: dict[str, Any], monitor: str) -> bool:
    """True if a row of a history beats another: by the monitored score, or at a tie by a lower dev loss."""
    sign = -1 if monitor in LOWER_IS_BETTER else 1
    return (sign * row[monitor], -row["dev_loss"]) > (sign * other[monitor], -other["dev_loss"])
