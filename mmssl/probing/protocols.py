"""Probing protocols: what is trained on frozen features, and how its settings are chosen on the development split.

linear, mlp     SUPERB's and EmoBox's heads on the learned sum of layers (or on one layer), Adam, batched sweeps
knn             cosine k nearest neighbours with weights exp(similarity / T); Wu et al., "Unsupervised Feature Learning
                via Non-Parametric Instance Discrimination" (CVPR 2018, section 3.4): k = 200, T = 0.07
logreg          multinomial logistic regression, the whole path of L2 penalties; Kornblith et al., "Do Better ImageNet
                Models Transfer Better?" (CVPR 2019, A.4), selects on held-out clips as done here
ridge           linear regression with an L2 penalty, all penalties from one decomposition, for continuous labels

Features are standardised with the training clips' mean and standard deviation in all of them. The test part is only
predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmssl.errors import ConfigError, did_you_mean
from mmssl.metrics.classification import confusion_matrix, uar_from
from mmssl.metrics.regression import ccc
from mmssl.probing.data import Part, ProbeData

NEIGHBOURS, TEMPERATURE = 200, 0.07
PENALTIES = tuple(float(c) for c in np.logspace(-5, 2, 8))
RIDGE_PENALTIES = tuple(float(a) for a in np.logspace(-2, 6, 17))


@dataclass(frozen=True)
class Answer:
    """Predictions for the test part of a fold.

    Attributes:
        fold: its name.
        seed: of what was drawn.
        prediction: (n,) class indices or values, in the order of the part's test clips.
        chosen: settings that the development split selected; "path" holds all that were tried on the chosen layer,
            as the path of penalties, with their dev_score.
        dev_score: UAR or CCC there.
    """

    fold: str
    seed: int
    prediction: np.ndarray
    chosen: Mapping[str, Any] = field(default_factory=dict)
    dev_score: float = 0.0


Fit = Callable[[Tensor, np.ndarray, Sequence[Tensor], int], Iterator[tuple[dict[str, Any], list[np.ndarray]]]]
"""(training rows, truth, other rows, classes) -> for each setting (its name, predictions of the other rows)."""


def predict_folds(
    protocol: str,
    data: ProbeData,
    parts: Sequence[Part],
    *,
    layer: int | None = None,
    seeds: Sequence[int] = (0,),
    settings: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> Iterator[Answer]:
    """Run a protocol on every fold and seed.

    Args:
        protocol: "linear", "mlp", "knn", "logreg" or "ridge".
        data: features and labels.
        parts: folds.
        layer: use this one of the data's layers alone; None for the learned sum (linear, mlp), or for the layer that
            is best on the development split (the others).
        seeds: for linear and mlp; the others draw nothing and give one answer per fold, under the first seed.
        settings: of linear and mlp, see `mmssl.probing.heads.predict_heads`.
        device: for linear and mlp.

    Raises:
        ConfigError: the protocol is unknown or does not go with the kind of label.
    """
    check_protocol(protocol, bool(data.classes))
    if layer is not None and not 0 <= layer < len(data.widths):
        raise ConfigError(f"There is no layer {layer} among the {len(data.widths)} layers of the data.")
    if protocol in ("linear", "mlp"):
        from mmssl.probing.heads import predict_heads

        chosen = dict(settings or {})
        yield from predict_heads(data, parts, head=protocol, layer=layer, seeds=seeds, device=device, **chosen)
        return
    fits: dict[str, Fit] = {"knn": _knn_fit, "logreg": _logreg_fit, "ridge": _ridge_fit}
    for part in parts:
        yield _select(data, part, fits[protocol], layer, seeds[0])


def check_protocol(protocol: str, classes: bool) -> None:
    """Refuse a protocol that does not exist or does not fit the labels.

    Raises:
        ConfigError: it is so.
    """
    if protocol not in PROTOCOLS:
        raise ConfigError(
            f"There is no protocol {protocol!r}.{did_you_mean(protocol, PROTOCOLS)} Known: {', '.join(PROTOCOLS)}."
        )
    if (protocol in CLASS_ONLY and not classes) or (protocol in VALUE_ONLY and classes):
        kind = "classes" if protocol in CLASS_ONLY else "values"
        fitting = [p for p in PROTOCOLS if p not in (VALUE_ONLY if classes else CLASS_ONLY)]
        raise ConfigError(f"The protocol {protocol!r} is for {kind}; these labels go with: {', '.join(fitting)}.")


PROTOCOLS = ("linear", "mlp", "knn", "logreg", "ridge")
CLASS_ONLY = ("knn", "logreg")
VALUE_ONLY = ("ridge",)


def _select(data: ProbeData, part: Part, fit: Fit, layer: int | None, seed: int) -> Answer:
    """Try every layer and setting, keep what the development part likes best; at a tie the first."""
    truth, count = data.truth, len(data.classes)
    best: Answer | None = None
    for k in range(len(data.widths)) if layer is None else [layer]:
        rows = data.rows(k)
        mean = rows[part.train].double().mean(0)
        std = rows[part.train].double().std(0, correction=0)
        scale = torch.where(std > 1e-6 * std.max(), 1 / std, 1.0)
        train, *others = (
            ((rows[index].double() - mean) * scale).float() for index in (part.train, part.dev, part.test)
        )
        path: list[dict[str, Any]] = []
        for chosen, (on_dev, on_test) in fit(train, truth[part.train.numpy()], others, count):
            value = dev_score(truth[part.dev.numpy()], on_dev, count)
            path.append({**chosen, "dev_score": value})
            if best is None or value > best.dev_score:
                best = Answer(part.name, seed, on_test, {"layer": data.numbers[k], **chosen, "path": path}, value)
    assert best is not None  # there is at least one layer and one setting
    return best


def dev_score(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> float:
    """UAR of classes, CCC of values."""
    if num_classes:
        return float(uar_from(confusion_matrix(truth, prediction, num_classes)))
    return float(ccc(truth, prediction))


def knn_scores(
    train: Tensor, truth: Tensor, rows: Tensor, num_classes: int, k: int = NEIGHBOURS, temperature: float = TEMPERATURE
) -> Tensor:
    """Votes of the nearest neighbours (Wu et al. 2018): each of the k most similar clips counts exp(cosine / T).

    Args:
        train: (n, D) rows.
        truth: (n,) class indices.
        rows: (m, D).
        num_classes: C.
        k: neighbours, at most n are used.
        temperature: T.

    Returns:
        (m, C) votes, scaled so that the nearest neighbour counts 1.

    Raises:
        ConfigError: k or T is not above 0.
    """
    if k < 1 or not temperature > 0:
        raise ConfigError(f"k must be at least 1 and the temperature above 0, got {k} and {temperature}.")
    known, asked = (torch.nn.functional.normalize(x, dim=1) for x in (train, rows))
    found = []
    for block in asked.split(1024):
        similar, index = (block @ known.T).topk(min(k, len(known)), dim=1)
        # relative to the nearest, so that nothing overflows at a low temperature
        votes = ((similar - similar[:, :1]) / temperature).exp()
        found.append(votes.new_zeros(len(block), num_classes).scatter_add_(1, truth[index], votes))
    return torch.cat(found)


def _knn_fit(
    train: Tensor, truth: np.ndarray, others: Sequence[Tensor], count: int
) -> Iterator[tuple[dict[str, Any], list[np.ndarray]]]:
    votes = [knn_scores(train, torch.from_numpy(truth), rows, count) for rows in others]
    yield {"k": min(NEIGHBOURS, len(train)), "temperature": TEMPERATURE}, [v.argmax(1).numpy() for v in votes]


def _logreg_fit(
    train: Tensor, truth: np.ndarray, others: Sequence[Tensor], count: int
) -> Iterator[tuple[dict[str, Any], list[np.ndarray]]]:
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    # from the strongest penalty on, each solution starting the next
    model = LogisticRegression(warm_start=True, max_iter=300, class_weight="balanced")
    for penalty in PENALTIES:
        model.set_params(C=penalty)
        with warnings.catch_warnings():
            # weak penalties on few clips need no exact optimum: the development split decides about them
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(train.numpy(), truth)
        yield {"C": penalty}, [np.asarray(model.predict(rows.numpy())) for rows in others]


def _ridge_fit(
    train: Tensor, truth: np.ndarray, others: Sequence[Tensor], count: int
) -> Iterator[tuple[dict[str, Any], list[np.ndarray]]]:
    wide = train.double()
    centre, mean = wide.mean(0), float(truth.mean())
    left, singular, right = torch.linalg.svd(wide - centre, full_matrices=False)
    target = left.T @ (torch.from_numpy(truth).double() - mean)
    for penalty in RIDGE_PENALTIES:
        weights = right.T @ (singular / (singular.square() + penalty) * target)
        yield {"penalty": penalty}, [((rows.double() - centre) @ weights + mean).numpy() for rows in others]
