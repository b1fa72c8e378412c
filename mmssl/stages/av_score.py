"""Stages 5 and 6 of recipes/av: sound, pictures and both against each other and against chance, and the report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from mmssl.data.folds import read_folds, speaker_overlap
from mmssl.data.manifest import read_manifest
from mmssl.metrics.bootstrap import bootstrap_interval, fold_interval
from mmssl.metrics.classification import confusion_matrix, per_class_recall, uar, weighted_accuracy, weighted_f1
from mmssl.metrics.regression import ccc, pearson, rmse
from mmssl.report.build import write_report
from mmssl.report.figures import ForestRow, forest
from mmssl.stages.av_bootstrap import paired_interval, percent, scored, speaker_draws
from mmssl.stages.av_extract import FEATURES
from mmssl.stages.av_media import BOTH
from mmssl.stages.av_page import Figure, Section, write_page
from mmssl.stages.av_pretrain import RECORD
from mmssl.stages.av_report import protocol_section, warnings_of
from mmssl.stages.av_train import PREDICTIONS, RESULT, system_name, targets_of, views_of
from mmssl.stages.context import Context, versions
from mmssl.stages.engine import compared
from mmssl.stages.files import digest, read_json, write_json
from mmssl.stages.utterance_prepare import CORPUS, FOLDS, MANIFEST, SKIPPED
from mmssl.stages.utterance_score import finite, protocol_of

RESULTS = "results.json"
METRICS: dict[str, dict[str, Any]] = {
    "classification": {"uar": uar, "wa": weighted_accuracy, "weighted_f1": weighted_f1},
    "regression": {"ccc": ccc, "pearson": pearson, "rmse": rmse},
}
_HOW = (
    "Learning rate and number of steps of every model are those with the best score on the development part; test "
    "clips are predicted once."
)
_PERCENT = ("uar", "wa", "weighted_f1")
_NAMES = {"uar": "UAR %", "wa": "WAR %", "weighted_f1": "WF1 %", "ccc": "CCC", "pearson": "Pearson r", "rmse": "RMSE"}


def score(context: Context) -> str:
    """Write exp/NAME/results.json: one system for each encoder and kind of input."""
    config, kind = context.config, context.config["task"]["kind"]
    records = read_json(context.exp_dir / FEATURES)
    classes, _ = targets_of(context)
    clips = {clip.id: clip for clip in read_manifest(context.data / MANIFEST)}
    folds = read_folds(context.data / FOLDS)
    tables: dict[str, dict[str, Any]] = {}
    systems = []
    for encoder, record in records.items():
        for view in views_of(config, record):
            for system, table in _systems(context, encoder, record, view, classes):
                systems.append(system)
                tables[system["name"]] = table | {"encoder": encoder, "view": view, "given": system["given"]}
    for system in systems:
        table = tables[system["name"]]
        draws = speaker_draws([clips[name].speaker for name in table["ids"]])
        for name, metric in METRICS[kind].items():
            found = scored(_statistic(metric, table, classes), len(table["ids"]), draws)
            system["metrics"][name] |= {"speaker_low": found["low"], "speaker_high": found["high"]}
    primary = next(iter(METRICS[kind]))
    features = {name: record["fingerprint"] for name, record in records.items()}
    results = {
        "schema": 1,
        "name": context.exp,
        "corpus": config["corpus"],
        "task": kind,
        "label": config["label"],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": context.command,
        "versions": versions(),
        "fingerprint": digest({"config": compared(config), "features": features}),
        "protocol": protocol_of(config["protocol"], folds, list(clips.values())),
        "data": read_json(context.data / CORPUS),
        "classes": classes,
        "chance": 1 / len(classes) if classes else 0.0,
        "primary_metric": primary,
        "skipped": _skipped(context, records),
        "differences": _differences(tables, records, METRICS[kind][primary], classes, clips),
        "pretraining": {k: v for k, v in read_json(context.exp_dir / RECORD).items() if k != "history"},
        "systems": systems,
    }
    results["overlap"] = any(speaker_overlap(fold, list(clips.values())) for fold in folds)
    write_json(context.exp_dir / RESULTS, finite(results))
    best = max(systems, key=lambda s: s["metrics"][primary]["pooled"])
    return f"best {primary.upper()} over all test clips: {best['metrics'][primary]['pooled']:.4f} ({best['name']})"


def _skipped(context: Context, records: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = read_json(context.data / SKIPPED) + [item for record in records.values() for item in record["skipped"]]
    return list({item["id"]: item for item in found}.values())


def _systems(
    context: Context, encoder: str, record: Mapping[str, Any], view: str, classes: Sequence[str]
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """A system for each kind of input that the models of a view met at test: results, and truth and prediction."""
    kind = context.config["task"]["kind"]
    folds = []
    rows: dict[str, list[tuple[dict[str, Any], list[dict[str, Any]]]]] = {}
    for fold in read_folds(context.data / FOLDS):
        folder = context.fold_dir(system_name(encoder, view), fold.name)
        folds.append(read_json(folder / RESULT))
        lines = [json.loads(line) for line in (folder / PREDICTIONS).read_text(encoding="utf-8").splitlines()]
        for given in dict.fromkeys(line["given"] for line in lines):
            rows.setdefault(given, []).append((folds[-1], [line for line in lines if line["given"] == given]))
    found = []
    for given, parts in rows.items():
        values = [_arrays(lines, classes) for _, lines in parts]
        truth, prediction = (np.concatenate(column) for column in zip(*values, strict=True))
        title = f"{record['title']}: {view}" + ("" if given == view else f", {given} alone at test")
        metrics = {}
        for name, metric in METRICS[kind].items():
            per_fold = [float(metric(*pair)) for pair in values]
            low, high = bootstrap_interval(name, truth, prediction)
            spread = fold_interval(per_fold)
            metrics[name] = {
                "mean": float(np.mean(per_fold)),
                "std": float(np.std(per_fold, ddof=1)) if len(per_fold) > 1 else None,
                "pooled": float(metric(truth, prediction)),
                "ci_low": low,
                "ci_high": high,
                "fold_ci_low": spread[0] if spread else None,
                "fold_ci_high": spread[1] if spread else None,
            }
        system: dict[str, Any] = {
            "name": title,
            "given": given,
            "upstream": {"name": record["title"], "target": record["target"], "kwargs": record["kwargs"]},
            "interface": "weighted_sum" if context.config["features"]["standardize"] else None,
            "head": context.config["head"]["_target_"].rpartition(".")[2],
            "fingerprint": record["fingerprint"],
            "pooled": record["statistics"] != "frames",
            "metrics": metrics,
            "folds": [_fold(part, pair, kind) for (part, _), pair in zip(parts, values, strict=True)],
        }
        if classes:
            system["confusion"] = confusion_matrix(truth, prediction, len(classes)).tolist()
            recalls = per_class_recall(truth, prediction, len(classes)).tolist()
            system["per_class_recall"] = dict(zip(classes, recalls, strict=True))
        ids = [line["id"] for _, lines in parts for line in lines]
        found.append((system, {"ids": ids, "truth": truth, "prediction": prediction}))
    return found


def _fold(record: Mapping[str, Any], pair: tuple[np.ndarray, np.ndarray], kind: str) -> dict[str, Any]:
    kept = {key: value for key, value in record.items() if key not in ("fingerprint", "layer_weights")}
    return kept | {"metrics": {name: float(metric(*pair)) for name, metric in METRICS[kind].items()}}


def _arrays(lines: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    index = {name: k for k, name in enumerate(classes)}
    columns = [[index[line[key]] if classes else line[key] for line in lines] for key in ("truth", "prediction")]
    return np.asarray(columns[0]), np.asarray(columns[1])


def _statistic(metric: Any, table: Mapping[str, Any], classes: Sequence[str]) -> Callable[[np.ndarray], float]:
    truth, prediction = table["truth"], table["prediction"]
    if not classes:
        return lambda rows: float(metric(truth[rows], prediction[rows]))
    return lambda rows: float(metric(truth[rows], prediction[rows], len(classes)))


def _differences(
    tables: Mapping[str, Mapping[str, Any]],
    records: Mapping[str, Any],
    metric: Any,
    classes: Sequence[str],
    clips: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Both against one stream of every encoder, and the main encoder against the others, on the same clips."""
    main = next(iter(records))
    whole = {(t["encoder"], t["view"]): name for name, t in tables.items() if t["view"] == t["given"]}
    pairs = [
        (whole[name, BOTH], whole[name, view])
        for name in records
        for view in ("audio", "video")
        if {(name, BOTH), (name, view)} <= set(whole)
    ]
    pairs += [
        (whole[main, view], whole[name, view])
        for name in list(records)[1:]
        for view in ("audio", "video", BOTH)
        if {(main, view), (name, view)} <= set(whole)
    ]
    found = []
    for first, second in pairs:
        shared = sorted({*tables[first]["ids"]} & {*tables[second]["ids"]})
        if not shared:
            continue
        one, other = (_statistic(metric, _rows(tables[name], shared), classes) for name in (first, second))
        every = np.arange(len(shared))
        span = paired_interval(one, other, speaker_draws([clips[name].speaker for name in shared]))
        low, high = span or (None, None)
        found.append({"first": first, "second": second, "value": one(every) - other(every), "low": low, "high": high})
    return found


def _rows(table: Mapping[str, Any], ids: Sequence[str]) -> dict[str, Any]:
    place = {name: k for k, name in enumerate(table["ids"])}
    rows = [place[name] for name in ids]
    return {"truth": table["truth"][rows], "prediction": table["prediction"][rows]}


def report(context: Context) -> str:
    """Write RESULTS.md and report.html, and details/report.html with folds, curves and confusions of every system."""
    results = read_json(context.exp_dir / RESULTS)
    write_report(results, context.exp_dir / "details")
    metric = results["primary_metric"]
    names = list(results["systems"][0]["metrics"])
    header = ["system", *(_NAMES.get(name, name) for name in names), "test clips"]
    rows = []
    for system in results["systems"]:
        cells = [_cell(system["metrics"][name], name) for name in names]
        rows.append([system["name"], *cells, str(sum(fold["num_test"] for fold in system["folds"]))])
    if results["classes"]:
        rows.append(["chance", f"{100 * results['chance']:.1f}", *[""] * len(names)])
    sections = [
        Section(
            f"{_NAMES[metric].removesuffix(' %')} of {results['label']}, sound, pictures and both",
            [
                "Over all test clips of all folds; in brackets the 95 % interval from speakers drawn anew. "
                '"alone at test": the model of both streams, without the other one.'
            ],
            header,
            rows,
            [Figure(_forest(results, metric), "Score over all test clips with the interval over speakers.")],
        ),
        Section(
            "Differences",
            ["On the same clips, with the same draws of speakers; an interval without 0 tells two systems apart."],
            ["first", "second", f"difference, {_NAMES[metric]}"],
            [[d["first"], d["second"], _cell(d, metric)] for d in results["differences"]],
        ),
        protocol_section(context, _HOW),
    ]
    sections = [section for section in sections if section.rows or section.texts[1:]]
    write_page(
        context.exp_dir,
        f"{results['corpus']}: audio-visual {results['label']}",
        _lead(results, metric),
        sections,
        warnings=warnings_of(context, results["overlap"]),
        command=results["command"],
        versions=results["versions"],
    )
    return "RESULTS.md, report.html and details/report.html"


def _cell(found: Mapping[str, Any], metric: str) -> str:
    value = found["pooled"] if "pooled" in found else found["value"]
    low, high = found.get("speaker_low", found.get("low")), found.get("speaker_high", found.get("high"))
    if metric in _PERCENT:
        return percent({"value": value, "low": low, "high": high})
    return f"{value:.3f}" + ("" if low is None else f" ({low:.3f} to {high:.3f})") if value is not None else "–"


def _forest(results: Mapping[str, Any], metric: str) -> Any:
    times = 100 if metric in _PERCENT else 1
    rows = []
    for system in results["systems"]:
        found = system["metrics"][metric]
        values = [found["pooled"], found["speaker_low"], found["speaker_high"]]
        place: Any = tuple(None if v is None else times * v for v in values)
        rows.append(ForestRow(system["name"], place if place[0] is not None else None, None, []))
    reference = ("chance", times * results["chance"]) if results["classes"] else None
    return forest(rows, _NAMES[metric], reference, "; ".join(f"{row.name} {row.mean}" for row in rows))


def _lead(results: Mapping[str, Any], metric: str) -> list[str]:
    main = results["systems"][0]["upstream"]["name"]
    own = [s for s in results["systems"] if s["upstream"]["name"] == main and s["name"].endswith(f": {s['given']}")]
    said = ", ".join(f"{s['given']} {_cell(s['metrics'][metric], metric)}" for s in own)
    chance = f"; chance is {100 * results['chance']:.1f}" if results["classes"] else ""
    told = [
        f"{d['first']} less {d['second']}: {_cell(d, metric)}{_told(d)}."
        for d in results["differences"]
        if d["first"] == f"{main}: both"
    ]
    return [f"{main}: {_NAMES[metric]} {said}{chance}.", *told]


def _told(difference: Mapping[str, Any]) -> str:
    low, high = difference["low"], difference["high"]
    return ", not told apart" if low is not None and low <= 0 <= high else ""
