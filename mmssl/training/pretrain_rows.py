"""What rows of a pretraining run's history say, without torch."""

from __future__ import annotations

from collections.abc import Mapping

_ENTROPY = "/teacher_entropy"


def learnable_loss(row: Mapping[str, float]) -> float:
    """The loss of a row, less what the student can not lower: the entropy of a teacher's distributions.

    A cross entropy is the entropy of its target plus the divergence from it. Where the target is learnt too (DINO), the
    first part moves by itself, in early training mostly up, and only the second says what the student has learnt.

    Args:
        row: of `PretrainModule.history`, with "loss"; terms log "NAME/teacher_entropy" and "NAME/weight".
    """
    entropies = {name.removesuffix(_ENTROPY): value for name, value in row.items() if name.endswith(_ENTROPY)}
    return row["loss"] - sum(row.get(f"{term}/weight", 1.0) * value for term, value in entropies.items())
