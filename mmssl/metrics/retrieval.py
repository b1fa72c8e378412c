"""Metrics of retrieval: at which rank the first relevant item comes, with ties counted exactly.

Items of equal score stand in random order: a rank is its expectation over the orders, recall at k its probability. So
the result does not depend on the order of the items, and constant scores give chance.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln

from mmssl.errors import InputError

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def expected_ranks(similarity: npt.ArrayLike, relevant: npt.ArrayLike) -> Floats:
    """Expected rank (N,), from 1, of each query's first relevant item.

    With g other items above the best relevant one, and t others and p relevant ones of its score, the first relevant
    item of a random order comes at g + (p + t + 1) / (p + 1).

    Args:
        similarity: (N, M) of queries and items, higher for better.
        relevant: (N, M) bool; at least one item for each query.

    Raises:
        InputError: shapes do not fit, a score is NaN, or a query has no relevant item.
    """
    above, tied, own = _places(*_checked(similarity, relevant))
    return above + (own + tied + 1) / (own + 1)


def recall_at(similarity: npt.ArrayLike, relevant: npt.ArrayLike, k: int) -> float:
    """Share of queries with a relevant item among the first k, in [0, 1]: R@k, an expectation where scores are tied.

    Args and errors as `expected_ranks`; `k` is at least 1.
    """
    if k < 1:
        raise InputError(f"R@k needs k of at least 1, got {k}.")
    above, tied, own = _places(*_checked(similarity, relevant))
    taken = np.clip(k - above, 0, own + tied)
    # P(none of the p relevant is among the first j of p + t) = C(t, j) / C(p + t, j)
    missed = np.zeros(len(taken))
    some = taken <= tied
    t, p, j = tied[some], own[some], taken[some]
    missed[some] = np.exp(gammaln(t + 1) - gammaln(t - j + 1) - gammaln(t + p + 1) + gammaln(t + p - j + 1))
    return float(1 - missed.mean())


def retrieval_metrics(
    similarity: npt.ArrayLike,
    ids_first: npt.ArrayLike | None = None,
    ids_second: npt.ArrayLike | None = None,
    ks: Sequence[int] = (1, 5, 10),
    names: tuple[str, str] = ("audio", "video"),
) -> dict[str, float]:
    """R@k, median and mean rank in both directions.

    Args:
        similarity: (N, M) of items of the first kind and of the second.
        ids_first: (N,) what belongs together has the same id; None for row i to column i.
        ids_second: (M,) the same of the second kind; None for `ids_first`.
        ks: of R@k.
        names: of the two kinds.

    Returns:
        "audio_to_video_r1", ..., "audio_to_video_median_rank", "audio_to_video_mean_rank", the same of
        "video_to_audio", and "r1", ... as means of both.

    Raises:
        InputError: shapes do not fit, a score is NaN, or a query has no relevant item.
    """
    table = np.asarray(similarity, dtype=np.float64)
    if table.ndim != 2:
        raise InputError(f"Retrieval needs an (N, M) table of similarities, got {table.shape}.")
    first = np.arange(len(table)) if ids_first is None else np.asarray(ids_first)
    second = first if ids_second is None else np.asarray(ids_second)
    if first.shape != table.shape[:1] or second.shape != table.shape[1:]:
        raise InputError(f"A table {table.shape} needs as many ids, got {first.shape} and {second.shape}.")
    relevant = first[:, None] == second[None]
    found: dict[str, float] = {}
    for name, scores, mask in (
        (f"{names[0]}_to_{names[1]}", table, relevant),
        (f"{names[1]}_to_{names[0]}", table.T, relevant.T),
    ):
        ranks = expected_ranks(scores, mask)
        found |= {f"{name}_r{k}": recall_at(scores, mask, k) for k in ks}
        found |= {f"{name}_median_rank": float(np.median(ranks)), f"{name}_mean_rank": float(ranks.mean())}
    for k in ks:
        found[f"r{k}"] = sum(value for key, value in found.items() if key.endswith(f"_r{k}")) / 2
    return found


def _places(table: Floats, mask: Bools) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Of each query: other items above its best relevant one, others of that score, and relevant ones of that score."""
    best = np.where(mask, table, -np.inf).max(1, keepdims=True)
    level = table == best
    return (table > best).sum(1), (level & ~mask).sum(1), (level & mask).sum(1)


def _checked(similarity: npt.ArrayLike, relevant: npt.ArrayLike) -> tuple[Floats, Bools]:
    table, mask = np.asarray(similarity, dtype=np.float64), np.asarray(relevant)
    if table.ndim != 2 or not table.size or mask.shape != table.shape or mask.dtype != bool:
        raise InputError(
            f"Retrieval needs (N, M) similarities and an (N, M) bool table of what is relevant, got {table.shape} and "
            f"{mask.dtype} {mask.shape}."
        )
    if np.isnan(table).any():
        raise InputError(f"{int(np.isnan(table).sum())} of {table.size} similarities are NaN: find the embeddings.")
    if not mask.any(1).all():
        raise InputError(f"Query {int(np.flatnonzero(~mask.any(1))[0])} has no relevant item: leave it out.")
    return table, mask
