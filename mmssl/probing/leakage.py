"""Speaker leakage: how well a linear probe reads from a representation who speaks.

The probe sees clips of every speaker and is judged on other clips of the same speakers. Speakers who were recorded in
one session each can also be told by room and microphone: what leaks then is the recording.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from mmssl.errors import ConfigError, DataError, InputError
from mmssl.features.store import FeatureStore
from mmssl.probing.data import load_data
from mmssl.types import Clip

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)


@dataclass(frozen=True)
class Leakage:
    """What a probe reads of the speakers.

    Attributes:
        accuracy: share of held-out clips whose speaker is found.
        interval: of the accuracy, by a bootstrap over speakers.
        chance: share of the commonest speaker: what a probe gets that sees nothing.
        num_clips, num_speakers: that were used.
        correct: (N,) bool, whether the speaker of each clip was found, in the order given.
    """

    accuracy: float
    interval: tuple[float, float]
    chance: float
    num_clips: int
    num_speakers: int
    correct: npt.NDArray[np.bool_]


def leakage(
    features: npt.ArrayLike,
    speakers: Sequence[str],
    *,
    folds: int = 5,
    num_samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Leakage:
    """Measure how well speakers can be read from vectors.

    Each speaker's clips are dealt to the folds in turn, in a drawn order; every clip is predicted once, by multinomial
    logistic regression on standardised features of the other folds, whose penalty is chosen on one of those.

    Args:
        features: (N, D), one vector per clip: a pooled layer, a hidden layer of a head, an embedding.
        speakers: (N,) of the clips; each at least twice.
        folds: at least 3.
        num_samples: bootstrap samples.
        level: of confidence, in (0, 1).
        seed: of folds and bootstrap; the result depends on it and the arguments alone.

    Raises:
        InputError: shapes do not fit, a value is not finite, there is one speaker, or one with a single clip.
        ConfigError: `folds`, `num_samples` or `level` is out of range.
    """
    if folds < 3 or num_samples < 1 or not 0 < level < 1:
        raise ConfigError(f"folds must be at least 3, num_samples 1, level in (0, 1); got {folds=}, {num_samples=}.")
    table = np.asarray(features, dtype=np.float64)
    names, truth, counts = np.unique(np.asarray(speakers), return_inverse=True, return_counts=True)
    if table.ndim != 2 or len(table) != len(truth) or not np.isfinite(table).all():
        raise InputError(f"Leakage takes finite features (N, D) and N speakers, got {table.shape} and {len(truth)}.")
    if len(names) < 2 or counts.min() < 2:
        raise InputError(
            f"Leakage needs two speakers with two clips each: there are {len(names)} speakers, and "
            f"{str(names[counts.argmin()])!r} has {counts.min()} clips. Leave such speakers out."
        )
    fold = _deal(truth, folds, seed)
    correct = np.zeros(len(truth), dtype=bool)
    for held in np.unique(fold):
        test, rest = fold == held, fold != held
        dev = rest & (fold == (held + 1) % folds)
        best = PENALTIES[0]
        if dev.any() and len(np.unique(truth[rest & ~dev])) > 1:
            hits = [_hits(table, truth, rest & ~dev, dev, penalty).mean() for penalty in PENALTIES]
            best = PENALTIES[int(np.argmax(hits))]
        correct[test] = _hits(table, truth, rest, test, best)
    hits_of = np.bincount(truth, weights=correct)
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=num_samples)
    low, high = np.quantile((draws @ hits_of) / (draws @ counts), [(1 - level) / 2, (1 + level) / 2])
    chance = float(counts.max() / len(truth))
    return Leakage(float(correct.mean()), (float(low), float(high)), chance, len(truth), len(names), correct)


def store_leakage(
    store: FeatureStore,
    clips: Sequence[Clip],
    *,
    stream: str = "audio",
    statistics: str = "mean_std",
    layers: Sequence[int] | None = None,
    folds: int = 5,
    seed: int = 0,
) -> dict[int, Leakage]:
    """Leakage of each layer of a feature store.

    Args:
        store: with pooled features.
        clips: with speakers; clips that the store lacks and speakers with one clip are left out.
        stream: of the upstream.
        statistics: over time: "mean", or "mean_std" for mean and standard deviation side by side.
        layers: numbers of layers, negative ones from the end; None for all.
        folds, seed: see `leakage`.

    Returns:
        Number of the layer -> what leaks.

    Raises:
        DataError: no clip is left, or one has no speaker.
        StoreError, ConfigError, InputError: as `load_data` and `leakage`.
    """
    without = [clip.id for clip in clips if clip.speaker is None]
    if without:
        raise DataError(
            f"{len(without)} clips have no speaker, the first is {without[0]!r}: leakage is about speakers."
        )
    present = [clip for clip in clips if clip.id in store]
    number: dict[str, int] = {}
    for clip in present:
        number[str(clip.speaker)] = number.get(str(clip.speaker), 0) + 1
    used = [replace(c, labels={"speaker": c.speaker}) for c in present if number[str(c.speaker)] > 1]
    if not used:
        raise DataError(f"Of {len(clips)} clips, {len(present)} are in {store.location}; no speaker has two of them.")
    data = load_data(store, used, "speaker", stream=stream, statistics=statistics, layers=layers)
    speakers = [data.classes[k] for k in data.batches.targets.tolist()]
    tables = data.batches.layers.hidden_states
    return {
        layer: leakage(table[:, 0].numpy(), speakers, folds=folds, seed=seed)
        for layer, table in zip(data.numbers, tables, strict=True)
    }


def _deal(truth: npt.NDArray[np.intp], folds: int, seed: int) -> npt.NDArray[np.intp]:
    """Fold (N,) of each clip: a speaker's clips lie in as many folds as they can."""
    generator = np.random.default_rng(seed)
    fold = np.empty(len(truth), dtype=np.intp)
    for speaker in range(int(truth.max()) + 1):
        rows = generator.permutation(np.flatnonzero(truth == speaker))
        # speakers begin at different folds, so that folds are of one size
        fold[rows] = (np.arange(len(rows)) + speaker) % folds
    return fold


def _hits(
    table: npt.NDArray[np.float64],
    truth: npt.NDArray[np.intp],
    train: npt.NDArray[np.bool_],
    test: npt.NDArray[np.bool_],
    penalty: float,
) -> npt.NDArray[np.bool_]:
    """Whether the probe of some clips finds the speakers of others."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, spread = table[train].mean(0), table[train].std(0)
    rows = (table - mean) / np.where(spread > 1e-12, spread, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=penalty, max_iter=300).fit(rows[train], truth[train])
    return np.asarray(model.predict(rows[test]) == truth[test])
