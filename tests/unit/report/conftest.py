from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest


def make_results(
    systems: Sequence[str] = ("fbank", "hubert"),
    classes: Sequence[str] = ("anger", "joy", "neutral"),
    folds: int = 4,
    layers: int = 5,
    kind: str = "classification",
    seed: int = 0,
) -> dict[str, Any]:
    """A results.json of schema 1 with random but consistent numbers; the last system is the best one."""
    rng = random.Random(seed)
    metrics = ("uar", "wa", "macro_f1") if kind == "classification" else ("ccc", "pearson", "rmse")
    return {
        "schema": 1,
        "name": "weighted_linear",
        "corpus": "mini",
        "task": "ser",
        "label": "emotion",
        "created": "2025-01-31T12:00:00+00:00",
        "command": "./run.sh upstream=hubert",
        "versions": {"mmssl": "0.1.0", "torch": "2.11.0"},
        "fingerprint": "ab12" * 16,
        "protocol": {
            "name": "leave one speaker out",
            "description": "One speaker per fold.",
            "speaker_overlap": False,
            "notes": "",
        },
        "data": {
            "clips": 120,
            "speakers": folds,
            "hours": 0.123,
            "per_class": {c: 40 + k for k, c in enumerate(classes)},
        },
        "classes": list(classes) if kind == "classification" else [],
        "chance": 1 / len(classes) if kind == "classification" else None,
        "primary_metric": metrics[0],
        "skipped": [],
        "systems": [
            _system(name, 0.5 + 0.1 * k, metrics, classes, folds, layers if k else 0, rng)
            for k, name in enumerate(systems)
        ],
    }


def _system(
    name: str,
    level: float,
    metrics: Sequence[str],
    classes: Sequence[str],
    folds: int,
    layers: int,
    rng: random.Random,
) -> dict[str, Any]:
    made = [_fold(k, level, metrics, layers, rng) for k in range(folds)]
    confusion = [
        [rng.randrange(1, 9) + (30 if r == c else 0) for c in range(len(classes))] for r in range(len(classes))
    ]
    aggregated = {}
    for k, metric in enumerate(metrics):
        mean = sum(fold["metrics"][metric] for fold in made) / folds
        aggregated[metric] = {
            "mean": mean,
            "std": 0.0123 + k / 100 if folds > 1 else None,
            "pooled": mean + 0.0071,
            "ci_low": mean - 0.0417,
            "ci_high": mean + 0.0433,
            "fold_ci_low": mean - 0.0611 if folds > 1 else None,
            "fold_ci_high": mean + 0.0629 if folds > 1 else None,
        }
    system: dict[str, Any] = {
        "name": name,
        "upstream": {
            "name": name,
            "target": "mmssl.upstreams.spectral.Fbank",
            "kwargs": {},
            "num_layers": layers or 1,
            "hidden_sizes": [80] * (layers or 1),
            "frame_shift": 0.01,
        },
        "interface": "weighted_sum" if layers else "last_layer",
        "head": "linear",
        "fingerprint": "cd34" * 16,
        "pooled": True,
        "selection": "best dev score",
        "metrics": aggregated,
        "folds": made,
    }
    if metrics[0] == "uar":
        system["confusion"] = confusion
        system["per_class_recall"] = {c: confusion[k][k] / sum(confusion[k]) for k, c in enumerate(classes)}
    points = 30
    system["map"] = {
        "x": [rng.gauss(0, 1) for _ in range(points)],
        "y": [rng.gauss(0, 1) for _ in range(points)],
        "label": [classes[k % len(classes)] if metrics[0] == "uar" else rng.random() for k in range(points)],
        "speaker": [f"speaker{k % folds}" for k in range(points)],
        "layer": 2,
        "method": "PCA",
    }
    return system


def _fold(k: int, level: float, metrics: Sequence[str], layers: int, rng: random.Random) -> dict[str, Any]:
    score = level + rng.uniform(-0.05, 0.05)
    return {
        "name": f"fold{k}",
        "num_train": 80,
        "num_dev": 20,
        "num_test": 20,
        "test_groups": [f"speaker{k}"],
        "learning_rate": 0.001,
        "sweep": [
            {"learning_rate": rate, f"dev_{metrics[0]}": score - abs(math.log10(rate) + 3) / 50, "best_step": 100}
            for rate in (1e-2, 1e-3, 1e-4)
        ],
        "metrics": {metric: score + j / 100 for j, metric in enumerate(metrics)},
        "layer_weights": [1 / layers] * layers if layers else None,
        "history": [
            {"step": 10 * s, "train_loss": 1 / s, "dev_loss": 1.2 / s, f"dev_{metrics[0]}": score - 1 / (s + 3)}
            for s in range(1, 6)
        ],
    }


@pytest.fixture
def make() -> Callable[..., dict[str, Any]]:
    return make_results
