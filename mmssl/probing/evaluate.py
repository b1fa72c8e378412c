"""A protocol's result on a corpus: mean, standard deviation, intervals, and the predictions behind them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mmssl.metrics.bootstrap import bootstrap_interval, fold_interval
from mmssl.metrics.classification import confusion_matrix, macro_f1_from, uar_from, weighted_accuracy_from
from mmssl.metrics.regression import ccc, pearson, rmse
from mmssl.probing.choice import HeadChoice
from mmssl.probing.data import Part, ProbeData, subset
from mmssl.probing.frame_heads import predict_frames
from mmssl.probing.frames import FrameData
from mmssl.probing.heads import predict_heads
from mmssl.probing.protocols import Answer, predict_folds


@dataclass(frozen=True)
class ProbeResult:
    """What a protocol gives on a corpus.

    Attributes:
        protocol: its name.
        layer: number of the only layer used; None for all.
        fraction: of the training clips.
        metrics: name -> mean and std over folds (each the mean over seeds), seed_std (of that mean, over seeds),
            pooled (over all test clips), ci_low and ci_high (bootstrap over clips, first seed), and fold_ci_low and
            fold_ci_high (None for one fold).
        folds: name, num_train, and per seed the chosen settings, dev_score and metrics.
        ids: of the test clips of all folds, one fold after the other.
        truth: (n,).
        predictions: seed -> (n,).
    """

    protocol: str
    layer: int | None
    fraction: float
    metrics: dict[str, dict[str, float | None]]
    folds: list[dict[str, Any]]
    ids: list[str]
    truth: list[float]
    predictions: dict[int, list[float]]

    @property
    def name(self) -> str:
        """Protocol, layer and fraction, as in "linear layer 6 at 10 %"."""
        layer = "" if self.layer is None else f" layer {self.layer}"
        return f"{self.protocol}{layer}" + ("" if self.fraction == 1 else f" at {self.fraction:.0%}")

    def record(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**self.__dict__, "name": self.name, "predictions": {str(k): v for k, v in self.predictions.items()}}


def probe(
    data: ProbeData,
    parts: Sequence[Part],
    protocol: str,
    *,
    layer: int | None = None,
    fraction: float = 1.0,
    seeds: Sequence[int] = (0,),
    settings: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> ProbeResult:
    """Run a protocol on all folds and seeds, and judge it on the test parts.

    Args:
        data: features and labels.
        parts: folds.
        protocol: see `mmssl.probing.protocols`.
        layer: one of the data's layers alone; None for all.
        fraction: of the training clips of each class; the draw depends on the first seed.
        seeds: of what is drawn.
        settings: of the protocols linear and mlp.
        device: for linear and mlp.

    Raises:
        ConfigError: a setting is wrong or does not go with the labels.
    """
    smaller = [subset(part, data.truth, fraction, seeds[0], bool(data.classes)) for part in parts]
    answers = predict_folds(protocol, data, smaller, layer=layer, seeds=seeds, settings=settings, device=device)
    found = judge(protocol, data, smaller, answers, layer=None, fraction=fraction)
    return found if layer is None else replace(found, layer=data.numbers[layer])


def probe_head(
    data: ProbeData | FrameData,
    parts: Sequence[Part],
    choice: HeadChoice,
    *,
    layer: int | None = None,
    fraction: float = 1.0,
    seeds: Sequence[int] = (0,),
    settings: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> ProbeResult:
    """Train a pair of interface and head on all folds and seeds, and judge it on the test parts.

    Args:
        data: pooled features, for a pair that is affine up to the mean over time; otherwise frames.
        parts: folds.
        choice: interface and head.
        layer: number of the only layer that `data` holds, for the name of the result; None for all.
        fraction: of the training clips of each class; the draw depends on the first seed.
        seeds: of what is drawn.
        settings: learning_rates, weight_decays, max_steps ...
        device: to train on.

    Raises:
        ConfigError: a setting is wrong.
    """
    smaller = [subset(part, data.truth, fraction, seeds[0], bool(data.classes)) for part in parts]
    # the width of the protocols linear and mlp; a pair has arguments of its own
    own = {key: value for key, value in (settings or {}).items() if key != "hidden_size"}
    answers: Iterable[Answer]
    if isinstance(data, FrameData):
        answers = predict_frames(data, smaller, choice, seeds=seeds, device=device, **own)
    else:
        answers = predict_heads(data, smaller, head=choice, seeds=seeds, device=device, **own)
    return judge(choice.name, data, smaller, answers, layer=layer, fraction=fraction)


def judge(
    protocol: str,
    data: ProbeData | FrameData,
    parts: Sequence[Part],
    answers: Iterable[Answer],
    *,
    layer: int | None,
    fraction: float,
) -> ProbeResult:
    """Judge the answers of a protocol on the test parts.

    Args:
        protocol: its name.
        data: labels.
        parts: folds, with the share of the training clips that was used.
        answers: one per fold and seed.
        layer: number of the only layer used, as the upstream counts; None for all.
        fraction: of the training clips.
    """
    truth, count = data.truth, len(data.classes)
    by_seed: dict[int, dict[str, Answer]] = defaultdict(dict)
    for answer in answers:
        by_seed[answer.seed][answer.fold] = answer
    wanted = {part.name: truth[part.test.numpy()] for part in parts}
    folds = [
        {
            "name": part.name,
            "num_train": len(part.train),
            "seeds": {
                str(seed): {
                    "chosen": dict(found[part.name].chosen),
                    "dev_score": found[part.name].dev_score,
                    "metrics": scores(wanted[part.name], found[part.name].prediction, count),
                }
                for seed, found in by_seed.items()
            },
        }
        for part in parts
    ]
    together = np.concatenate([wanted[part.name] for part in parts])
    pooled = {seed: np.concatenate([found[p.name].prediction for p in parts]) for seed, found in by_seed.items()}
    return ProbeResult(
        protocol=protocol,
        layer=layer,
        fraction=fraction,
        metrics=_summary(folds, together, pooled, count),
        folds=folds,
        ids=[data.ids[k] for part in parts for k in part.test.tolist()],
        truth=together.tolist(),
        predictions={seed: values.tolist() for seed, values in pooled.items()},
    )


def scores(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> dict[str, float]:
    """uar, wa and macro_f1 of classes; ccc, pearson and rmse of values."""
    if not num_classes:
        return {m.__name__: float(m(truth, prediction)) for m in (ccc, pearson, rmse)}
    counts = confusion_matrix(truth, prediction, num_classes)
    return {
        "uar": float(uar_from(counts)),
        "wa": float(weighted_accuracy_from(counts)),
        "macro_f1": float(macro_f1_from(counts)),
    }


def _summary(
    folds: Sequence[Mapping[str, Any]], truth: np.ndarray, pooled: Mapping[int, np.ndarray], count: int
) -> dict[str, dict[str, float | None]]:
    first = next(iter(pooled.values()))
    summary: dict[str, dict[str, float | None]] = {}
    for name, value in scores(truth, first, count).items():
        table = np.array([[run["metrics"][name] for run in fold["seeds"].values()] for fold in folds])
        over_folds, over_seeds = table.mean(1), table.mean(0)
        low, high = bootstrap_interval(name, truth, first)
        interval = fold_interval(over_folds.tolist())
        summary[name] = {
            "mean": float(over_folds.mean()),
            "std": float(over_folds.std(ddof=1)) if len(folds) > 1 else 0.0,
            "seed_std": float(over_seeds.std(ddof=1)) if len(over_seeds) > 1 else 0.0,
            "pooled": value,
            "ci_low": low,
            "ci_high": high,
            "fold_ci_low": None if interval is None else interval[0],
            "fold_ci_high": None if interval is None else interval[1],
        }
    return summary
