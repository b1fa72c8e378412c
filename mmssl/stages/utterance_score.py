"""Stages 4 and 5 of a recipe on utterances: metrics with intervals, results.json, and the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from mmssl.data.manifest import read_manifest
from mmssl.data.splits import Fold, read_folds, speaker_overlap
from mmssl.features.store import FeatureStore
from mmssl.metrics.bootstrap import bootstrap_interval, fold_interval
from mmssl.metrics.classification import confusion_matrix, macro_f1, per_class_recall, uar, weighted_accuracy
from mmssl.metrics.regression import ccc, pearson, rmse
from mmssl.report.build import write_report
from mmssl.stages.context import Context, System, versions
from mmssl.stages.engine import compared
from mmssl.stages.files import digest, read_json, write_json
from mmssl.stages.fold_jobs import PREDICTIONS, RESULT
from mmssl.stages.utterance_extract import FEATURES
from mmssl.stages.utterance_prepare import CORPUS, FOLDS, MANIFEST, SKIPPED
from mmssl.stages.utterance_train import read_predictions
from mmssl.types import Clip

RESULTS = "results.json"
METRICS: dict[str, dict[str, Any]] = {
    "classification": {"uar": uar, "wa": weighted_accuracy, "macro_f1": macro_f1},
    "regression": {"ccc": ccc, "pearson": pearson, "rmse": rmse},
}
MAP_POINTS = 3000


def score(context: Context) -> str:
    """Write exp/NAME/results.json from the predictions of all folds of all systems."""
    config, kind = context.config, context.config["task"]["kind"]
    features = read_json(context.exp_dir / FEATURES)
    corpus = read_json(context.data / CORPUS)
    clips = read_manifest(context.data / MANIFEST)
    folds = read_folds(context.data / FOLDS)
    classes = list(corpus["per_class"])
    primary = next(iter(METRICS[kind]))
    systems = [_score_system(context, s, features[s.name], clips, folds, classes) for s in context.systems]
    skipped = read_json(context.data / SKIPPED)
    skipped += [item for record in features.values() for item in record["skipped"]]
    results = {
        "schema": 1,
        "name": context.exp,
        "corpus": config["corpus"],
        "task": kind,
        "label": config["label"],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": context.command,
        "versions": versions(),
        "fingerprint": digest(
            {"config": compared(config), "features": {n: f["fingerprint"] for n, f in features.items()}}
        ),
        "protocol": protocol_of(config["protocol"], folds, clips),
        "data": corpus,
        "classes": classes,
        "chance": 1 / len(classes) if classes else 0.0,
        "primary_metric": primary,
        "skipped": list({item["id"]: item for item in skipped}.values()),
        "systems": systems,
    }
    write_json(context.exp_dir / RESULTS, finite(results))
    best = max(systems, key=lambda s: s["metrics"][primary]["mean"])
    return f"best {primary.upper()} {best['metrics'][primary]['mean']:.4f} ({best['name']}), mean of {len(folds)} folds"


def report(context: Context) -> str:
    """Write RESULTS.md and report.html from results.json."""
    paths = write_report(read_json(context.exp_dir / RESULTS), context.exp_dir)
    return f"{paths.markdown.name} and {paths.html.name}"


def _score_system(
    context: Context,
    system: System,
    features: Mapping[str, Any],
    clips: Sequence[Clip],
    folds: Sequence[Fold],
    classes: Sequence[str],
) -> dict[str, Any]:
    config, kind = context.config, context.config["task"]["kind"]
    records, truths, predictions = [], [], []
    for fold in folds:
        folder = context.fold_dir(system.name, fold.name)
        record = read_json(folder / RESULT)
        truth, prediction = read_predictions(folder / PREDICTIONS, classes)
        record["metrics"] = {name: float(metric(truth, prediction)) for name, metric in METRICS[kind].items()}
        if classes:
            record["confusion"] = confusion_matrix(truth, prediction, len(classes)).tolist()
        records.append({k: v for k, v in record.items() if k != "fingerprint"})
        truths.append(truth)
        predictions.append(prediction)
    truth, prediction = np.concatenate(truths), np.concatenate(predictions)
    metrics = {
        name: _intervals(name, metric, [r["metrics"][name] for r in records], truth, prediction)
        for name, metric in METRICS[kind].items()
    }
    scored: dict[str, Any] = {
        "name": system.name,
        "upstream": {
            "name": system.name,
            "target": system.target,
            "kwargs": dict(system.kwargs),
            "num_layers": len(features["hidden_sizes"]),
            "hidden_sizes": features["hidden_sizes"],
            "frame_shift": features["frame_shift"],
        },
        "interface": _short(config["interface"]["_target_"]),
        "head": _short(config["head"]["_target_"]),
        "fingerprint": features["fingerprint"],
        "pooled": features["pooled"],
        "selection": _selection(config, features),
        "metrics": metrics,
        "folds": records,
        "map": _map(context, features, clips, _heaviest_layer(records, len(features["hidden_sizes"]))),
    }
    if classes:
        scored["confusion"] = confusion_matrix(truth, prediction, len(classes)).tolist()
        scored["per_class_recall"] = dict(
            zip(classes, per_class_recall(truth, prediction, len(classes)).tolist(), strict=True)
        )
    return scored


def _intervals(
    name: str, metric: Any, per_fold: Sequence[float], truth: np.ndarray, prediction: np.ndarray
) -> dict[str, float | None]:
    low, high = bootstrap_interval(name, truth, prediction)
    over_folds = fold_interval(per_fold)
    return {
        "mean": float(np.mean(per_fold)),
        "std": float(np.std(per_fold, ddof=1)) if len(per_fold) > 1 else None,
        "pooled": float(metric(truth, prediction)),
        "ci_low": low,
        "ci_high": high,
        "fold_ci_low": over_folds[0] if over_folds else None,
        "fold_ci_high": over_folds[1] if over_folds else None,
    }


def _selection(config: Mapping[str, Any], features: Mapping[str, Any]) -> str:
    train, default = config["train"], "UAR" if config["task"]["kind"] == "classification" else "CCC"
    monitor = (train["monitor"] or default).replace("dev_", "").replace("_", " ")
    seen = {
        "mean_std": "mean and standard deviation over time of each layer",
        "mean": "mean over time of each layer",
        "frames": "frames of each layer",
    }[features["statistics"]]
    scaled = ", standardised on the training clips" if config["features"]["standardize"] else ""
    rates = ", ".join(f"{rate:g}" for rate in train["learning_rates"])
    refit = (
        " The probe is then trained once more on training and development clips, nothing being selected."
        if train["refit"]
        else ""
    )
    return (
        f"The probe sees the {seen}{scaled}. Learning rate (of {rates}) and number of steps (at most "
        f"{train['max_steps']}) are those with the best {monitor} on the development split of each fold; "
        f"the test split is never looked at.{refit}"
    )


def protocol_of(protocol: Mapping[str, Any], folds: Sequence[Fold], clips: Sequence[Clip]) -> dict[str, Any]:
    """The section `protocol` of results.json: folds in words, speaker overlap and notes."""
    notes = [protocol["notes"], *dict.fromkeys(note for fold in folds for note in fold.notes)]
    group, dev = protocol["group"], protocol["dev_groups"]
    scheme = {
        "leave_one_group_out": f"each tests one {group}",
        "group_kfold": f"each tests some values of {group}, every clip is tested once",
        "groups_per_fold": f"each tests the values of {group} that the configuration lists",
        "predefined": "as the corpus gives them",
    }[protocol["scheme"]]
    share = f"{dev} values of {group}" if isinstance(dev, int) else f"{dev:.0%} of the values of {group}"
    return {
        "name": protocol["name"],
        "description": (
            f"{len(folds)} fold{'s' if len(folds) > 1 else ''}: {scheme}. The development part of a fold is {share} "
            f"taken out of its training part, so that it shares none with train and test."
        ),
        "speaker_overlap": any(speaker_overlap(fold, clips) for fold in folds),
        "notes": " ".join(note for note in notes if note),
    }


def _heaviest_layer(records: Sequence[Mapping[str, Any]], num_layers: int) -> int:
    """The layer with the largest learned weight, averaged over folds; the last where nothing was learned."""
    weights = [record["layer_weights"] for record in records if record["layer_weights"]]
    if not weights or any(len(w) != num_layers for w in weights):
        return num_layers - 1
    return int(np.argmax(np.mean(weights, axis=0)))


def _map(context: Context, features: Mapping[str, Any], clips: Sequence[Clip], layer: int) -> dict[str, Any]:
    """Two principal components of the clips' means of one layer."""
    from sklearn.decomposition import PCA

    store = FeatureStore(context.folder / features["folder"])
    shown = [clip for clip in clips if clip.id in store]
    shown = shown[:: math.ceil(len(shown) / MAP_POINTS)]
    stream = context.config["features"]["stream"]
    rows = np.stack([store.pooled(c.id, stream, "mean", [layer]).hidden_states[0][0].numpy() for c in shown]).astype(
        float
    )
    spread = rows.std(0)
    rows = (rows - rows.mean(0)) / np.where(spread > 0, spread, 1.0)
    points = np.zeros((len(rows), 2))
    components = min(2, *rows.shape)
    points[:, :components] = PCA(components, svd_solver="full").fit_transform(rows)
    return {
        "x": points[:, 0].round(4).tolist(),
        "y": points[:, 1].round(4).tolist(),
        "label": [str(clip.labels[context.config["label"]]) for clip in shown],
        "speaker": [clip.speaker for clip in shown],
        "layer": layer,
        "method": "PCA of each clip's mean over time, dimensions standardised",
    }


def _short(target: str) -> str:
    """Name of a part as users know it: weighted_sum for mmssl.interfaces.weighted_sum.WeightedSum."""
    from mmssl.registry import HEADS, INTERFACES

    for registry in (INTERFACES, HEADS):
        for name, path in registry.builtins.items():
            if path == target:
                return name
    return Path(target).name if "/" in target else target.rpartition(".")[2]


def finite(value: Any) -> Any:
    """NaN and infinity as None, which JSON can hold."""
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
