"""Stage of recipes/ssl_pairs: what the towers know of sounds and pictures that they were not trained on.

Probes are logistic regressions on the mean over time of each tower's last layer, standardised on the training clips:
trained on one clip of each class or on all of the training speakers, scored on all clips of the held-out speakers.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from torch.nn import functional as F

from mmssl.data.folds import Fold, read_folds
from mmssl.lengths import pad
from mmssl.objectives.av_encoders import PooledStream
from mmssl.objectives.objective import Objective
from mmssl.objectives.types import View
from mmssl.random import mix
from mmssl.stages.context import Context, log
from mmssl.stages.files import write_json, write_text
from mmssl.stages.pairs_train import Pairs, build, load, read_pairs
from mmssl.types import Inputs, Padded

SCORES = ("audio_1shot", "audio_all", "image_1shot", "retrieval")
_HEADINGS = ("audio, 1 labelled clip per class", "audio, all labels", "picture, 1 labelled", "audio -> picture P@1")
_BATCH = 128


def probe(context: Context) -> str:
    """Score every run and the untrained encoder on every fold; write pairs.json and PAIRS.md."""
    config = context.config
    pairs, folds = read_pairs(context), read_folds(context.data / "folds.json")
    names = ["untrained", *(f"{m}-{p}" for m, p in product(config["methods"], config["pairings"]))]
    systems: dict[str, dict[str, dict[str, float | None]]] = {name: {} for name in names}
    for fold in folds:
        systems["untrained"][fold.name] = score(context, build(context, config["methods"][0]).eval(), pairs, fold)
        for method, pairing in product(config["methods"], config["pairings"]):
            objective = load(context, method, pairing, fold)
            systems[f"{method}-{pairing}"][fold.name] = score(context, objective, pairs, fold)
        log.info("   fold %s: %s", fold.name, ", ".join(f"{n} {_percent(systems[n][fold.name])}" for n in names))
    classes = len({clip.labels[config["label"]] for clip in pairs.clips})
    gaps = differences(systems, config["methods"])
    write_json(context.exp_dir / "pairs.json", {"chance": 1 / classes, "systems": systems, "differences": gaps})
    table = "\n".join([*_table(systems), "", *_lines(gaps), ""])
    write_text(context.exp_dir / "PAIRS.md", table)
    return f"{len(names)} systems, {len(folds)} folds\n{table}"


def score(context: Context, objective: Objective, pairs: Pairs, fold: Fold) -> dict[str, float | None]:
    """Accuracies in [0, 1] on the test clips of a fold; retrieval is None where sound and picture share no space."""
    config = context.config
    rows = pairs.rows([*fold.train, *fold.dev]), pairs.rows(fold.test)
    labels = np.array([str(clip.labels[config["label"]]) for clip in pairs.clips])
    features = encode(objective, pairs)
    found: dict[str, float | None] = {}
    seed, draws = config["probing"]["seed"], config["probing"]["draws"]
    for stream in ("audio", "image"):
        train, test = (features[stream][part] for part in rows)
        mean, std = train.mean(0), train.std(0) + 1e-6
        train, test = (train - mean) / std, (test - mean) / std
        truth = labels[rows[0]], labels[rows[1]]
        shots = [one_of_each(truth[0], mix(seed, draw)) for draw in range(draws)]
        found[f"{stream}_1shot"] = float(np.mean([accuracy(train[s], truth[0][s], test, truth[1]) for s in shots]))
        if stream == "audio":
            found["audio_all"] = accuracy(train, truth[0], test, truth[1])
    found["retrieval"] = None
    if "audio_space" in features:
        # a picture that is bound to several clips is looked up once
        pictures = {str(pairs.clips[row].image): row for row in rows[1]}
        gallery = list(pictures.values())
        similarity = features["audio_space"][rows[1]] @ features["image_space"][gallery].T
        found["retrieval"] = float((labels[gallery][similarity.argmax(1)] == labels[rows[1]]).mean())
    return found


@torch.no_grad()
def encode(objective: Objective, pairs: Pairs) -> dict[str, np.ndarray]:
    """Mean over time of the last layer of each tower; and where the objective projects both, the unit vectors."""
    target, head = objective.terms[0].target, objective.terms[0].head
    found: dict[str, list[torch.Tensor]] = {}
    for begin in range(0, len(pairs.clips), _BATCH):
        rows = range(begin, min(begin + _BATCH, len(pairs.clips)))
        inputs = Inputs(Padded(*pad([pairs.sounds[row] for row in rows])), images=pairs.pictures[list(rows)])
        encoded = objective.encoder.encode(View(inputs))
        pooled = {
            name: torch.stack([frames.mean(0) for frames in encoded[stream].output.unpad()])
            for name, stream in (("audio", "audio"), ("image", "video"))
        }
        if isinstance(target, PooledStream) and head is not None:
            pooled["audio_space"] = F.normalize(head(pooled["audio"]), dim=1)
            pooled["image_space"] = F.normalize(target.head(pooled["image"]), dim=1)
        for name, values in pooled.items():
            found.setdefault(name, []).append(values)
    return {name: torch.cat(values).numpy() for name, values in found.items()}


def one_of_each(labels: np.ndarray, seed: int) -> np.ndarray:
    """Rows of one clip of each class, drawn."""
    generator = np.random.default_rng(seed)
    return np.array([generator.choice(np.flatnonzero(labels == name)) for name in np.unique(labels)])


def accuracy(train: np.ndarray, truth: np.ndarray, test: np.ndarray, test_truth: np.ndarray) -> float:
    """Accuracy of a logistic regression."""
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LogisticRegression(C=1.0, max_iter=300).fit(train, truth)
    return float(model.score(test, test_truth))


def differences(
    systems: dict[str, dict[str, dict[str, float | None]]], methods: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Paired minus shuffled of each method and score, means over folds."""
    found: dict[str, dict[str, float]] = {}
    for method in methods:
        first, second = systems.get(f"{method}-paired"), systems.get(f"{method}-shuffled")
        if first is None or second is None:
            continue
        found[method] = {
            name: _mean(first, name) - _mean(second, name)
            for name in SCORES
            if all(scores[name] is not None for scores in first.values())
        }
    return found


def _values(folds: dict[str, dict[str, float | None]], name: str) -> list[float]:
    return [value for scores in folds.values() if (value := scores[name]) is not None]


def _mean(folds: dict[str, dict[str, float | None]], name: str) -> float:
    return float(np.mean(_values(folds, name)))


def _percent(scores: dict[str, float | None]) -> str:
    return "/".join("-" if scores[name] is None else f"{100 * float(scores[name] or 0):.1f}" for name in SCORES)


def _table(systems: dict[str, dict[str, dict[str, float | None]]]) -> list[str]:
    lines = ["| system | " + " | ".join(_HEADINGS) + " |", "|---" * (len(SCORES) + 1) + "|"]
    for name, folds in systems.items():
        cells = []
        for key in SCORES:
            values = [100 * value for value in _values(folds, key)]
            spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.1f}{spread}" if values else "-")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _lines(gaps: dict[str, dict[str, float]]) -> list[str]:
    return [
        f"{method}, paired minus shuffled, in points: "
        + ", ".join(f"{_HEADINGS[SCORES.index(name)]} {100 * value:+.1f}" for name, value in scores.items())
        for method, scores in gaps.items()
    ]
