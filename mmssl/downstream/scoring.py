"""Scores of verification trials from embeddings: cosine, several crops, score normalisation with a cohort.

Embeddings are numpy arrays, one row per clip; a trial is a pair of rows (`mmssl.data.trials.Trials.rows`). Nothing
depends on the order of the trials, and what belongs to a clip is computed once per clip, not once per trial.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mmssl.errors import InputError

Floats = npt.NDArray[np.float64]
Rows = npt.ArrayLike
VALUES_AT_ONCE = 8_000_000


def unit_length(embeddings: npt.ArrayLike) -> Floats:
    """Scale rows (N, D) to length 1, in float64.

    Raises:
        InputError: not two axes, a value is not finite, or a row is zero, which has no direction.
    """
    rows = as_rows(embeddings)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not norms.all():
        raise InputError(f"{int((norms == 0).sum())} embeddings are zero, the first is row {int(norms.argmin())}.")
    return rows / norms


def as_rows(embeddings: npt.ArrayLike) -> Floats:
    """Embeddings as (N, D) float64; raises InputError where they are not two-dimensional and finite."""
    rows = np.asarray(embeddings, dtype=np.float64)
    if rows.ndim != 2 or not rows.size:
        raise InputError(f"Embeddings must be (N, D), N and D at least 1, got {rows.shape}.")
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise InputError(f"{int((~finite).sum())} embeddings are not finite, the first is row {int(finite.argmin())}.")
    return rows


def pair_products(vectors: npt.ArrayLike, enrol: Rows, test: Rows) -> Floats:
    """Inner product of the two rows of each trial.

    Args:
        vectors: (N, D).
        enrol, test: (n,) rows of the trials.

    Returns:
        (n,) float64.

    Raises:
        InputError: shapes do not fit, or a row does not exist.
    """
    rows = as_rows(vectors)
    first, second = check_pairs(enrol, test, len(rows))
    scores = np.empty(len(first))
    step = max(1, VALUES_AT_ONCE // rows.shape[1])
    for start in range(0, len(first), step):
        part = slice(start, start + step)
        scores[part] = np.einsum("nd,nd->n", rows[first[part]], rows[second[part]])
    return scores


def check_pairs(enrol: Rows, test: Rows, num_rows: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Rows of both sides as (n,) indices in [0, num_rows); raises InputError where they are none."""
    first, second = np.asarray(enrol), np.asarray(test)
    if first.ndim != 1 or first.shape != second.shape or not len(first):
        raise InputError(f"Trials must be two rows each, (n,) and (n,), n >= 1; got {first.shape} and {second.shape}.")
    for side in (first, second):
        if side.dtype.kind not in "iu" or side.min() < 0 or side.max() >= num_rows:
            raise InputError(f"Rows of trials must be whole numbers in 0 to {num_rows - 1}.")
    return first.astype(np.intp), second.astype(np.intp)


def cosine_scores(embeddings: npt.ArrayLike, enrol: Rows, test: Rows) -> Floats:
    """Cosine of each trial, (n,) in [-1, 1].

    Args:
        embeddings: (N, D), any length.
        enrol, test: (n,) rows of the trials.

    Raises:
        InputError: shapes do not fit, an embedding is zero or not finite, or a row does not exist.
    """
    return pair_products(unit_length(embeddings), enrol, test)


def crop_means(crops: Sequence[npt.ArrayLike]) -> Floats:
    """One vector per clip from the embeddings of its crops: the mean of the unit vectors, not scaled again.

    `pair_products` of these vectors is exactly the mean cosine over all pairs of crops of the two clips (the score of
    Chung et al. 2018, "VoxCeleb2", section 4.3, with ten crops), because that mean is the product of the means.

    Args:
        crops: for each of N clips (R_i, D), R_i >= 1, which may differ.

    Returns:
        (N, D).

    Raises:
        InputError: there is no clip, a clip has no crop, or an embedding is zero or not finite.
    """
    if not len(crops):
        raise InputError("There is no clip to average.")
    sizes = [len(np.asarray(c)) for c in crops]
    if min(sizes) == 0:
        raise InputError(f"Clip {sizes.index(0)} has no crop. Leave it out, or embed the whole clip.")
    unit = unit_length(np.concatenate([np.asarray(c) for c in crops]))
    starts = np.cumsum([0, *sizes[:-1]])
    return np.add.reduceat(unit, starts, axis=0) / np.asarray(sizes)[:, None]


def cohort_means(embeddings: npt.ArrayLike, speakers: Sequence[str]) -> Floats:
    """The cohort of score normalisation: the mean of each speaker's unit embeddings, at unit length.

    Args:
        embeddings: (N, D) of clips of the training split.
        speakers: (N,) their speakers.

    Returns:
        (C, D), speakers in sorted order.

    Raises:
        InputError: shapes do not fit, or an embedding is zero or not finite.
    """
    unit = unit_length(embeddings)
    if len(speakers) != len(unit):
        raise InputError(f"There are {len(unit)} embeddings and {len(speakers)} speakers.")
    _, number = np.unique(np.asarray(speakers), return_inverse=True)
    sums = np.zeros((int(number.max()) + 1, unit.shape[1]))
    np.add.at(sums, number, unit)
    return unit_length(sums)


def cohort_statistics(embeddings: npt.ArrayLike, cohort: npt.ArrayLike, top: int = 300) -> tuple[Floats, Floats]:
    """Mean and deviation of each clip's highest cosines to a cohort.

    Args:
        embeddings: (N, D) of the clips of the trials.
        cohort: (C, D), as `cohort_means` gives; no speaker of the trials may be in it.
        top: how many of the highest cosines count; all where the cohort is smaller.

    Returns:
        (N,) means and (N,) standard deviations (divided by the number of cosines).

    Raises:
        InputError: shapes do not fit, `top` or the cohort is below 2, or a clip's cosines are all alike.
    """
    clips, impostors = unit_length(embeddings), unit_length(cohort)
    if clips.shape[1] != impostors.shape[1] or len(impostors) < 2 or top < 2:
        raise InputError(
            f"Normalisation needs a cohort (C, {clips.shape[1]}) with C >= 2 and top >= 2, "
            f"got {impostors.shape} and {top}."
        )
    kept = min(top, len(impostors))
    means, deviations = np.empty(len(clips)), np.empty(len(clips))
    step = max(1, VALUES_AT_ONCE // len(impostors))
    for start in range(0, len(clips), step):
        cosines = clips[start : start + step] @ impostors.T
        highest = np.partition(cosines, len(impostors) - kept, axis=1)[:, len(impostors) - kept :]
        # partition leaves an order that depends on the machine, and sums depend on their order
        highest.sort(axis=1)
        means[start : start + step], deviations[start : start + step] = highest.mean(1), highest.std(1)
    if not (deviations > 1e-12).all():
        raise InputError(
            f"The {kept} highest cosines of clip {int(deviations.argmin())} to the cohort are all alike. "
            "Does the cohort hold copies of one speaker?"
        )
    return means, deviations


def as_norm(
    scores: npt.ArrayLike,
    embeddings: npt.ArrayLike,
    enrol: Rows,
    test: Rows,
    cohort: npt.ArrayLike,
    top: int = 300,
) -> Floats:
    """Adaptive symmetric normalisation of cosine scores: the mean of the z-norms of both sides.

    Matejka et al., "Analysis of Score Normalization in Multilingual Speaker Recognition" (Interspeech 2017), eq. 6
    with each side's own highest `top` cohort scores (AS-norm1). The statistics belong to a clip: N times C cosines are
    computed, however many trials there are.

    Args:
        scores: (n,) cosines of the trials.
        embeddings: (N, D).
        enrol, test: (n,) rows of the trials.
        cohort, top: see `cohort_statistics`.

    Returns:
        (n,).

    Raises:
        InputError: as `cohort_statistics`, or the trials do not fit the embeddings.
    """
    means, deviations = cohort_statistics(embeddings, cohort, top)
    first, second = check_pairs(enrol, test, len(means))
    raw = np.asarray(scores, dtype=np.float64)
    if raw.shape != first.shape:
        raise InputError(f"There are {len(first)} trials and scores of shape {raw.shape}.")
    return ((raw - means[first]) / deviations[first] + (raw - means[second]) / deviations[second]) / 2
