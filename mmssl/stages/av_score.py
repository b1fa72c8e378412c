"""Stages 5 and 6 of recipes/av: sound, pictures and both against each other and against chance, and the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from mmssl.data.folds import read_folds, speaker_overlap
from mmssl.data.manifest import read_manifest
from mmssl.metrics.bootstrap import fold_interval
from mmssl.report.build import write_report
from mmssl.report.figures import ForestRow, forest
from mmssl.stages.av_answers import IN_PERCENT, METRICS, NAMES, Answers, samples_of
from mmssl.stages.av_bootstrap import paired_interval, percent, scored, speaker_draws
from mmssl.stages.av_extract import FEATURES
from mmssl.stages.av_media import BOTH
from mmssl.stages.av_page import Figure, Section, write_page
from mmssl.stages.av_pretrain import RECORD
from mmssl.stages.av_report import protocol_section, warnings_of
from mmssl.stages.av_train import targets_of
from mmssl.stages.av_view_jobs import system_name, views_of
from mmssl.stages.context import Context, versions
from mmssl.stages.engine import compared
from mmssl.stages.files import digest, read_json, write_json
from mmssl.stages.fold_jobs import PREDICTIONS, RESULT
from mmssl.stages.utterance_prepare import CORPUS, FOLDS, MANIFEST, SKIPPED
from mmssl.stages.utterance_score import finite, protocol_of

RESULTS = "results.json"
_HOW = (
    "Learning rate and number of steps of every model are those with the best score on the development part; test "
    "clips are predicted once."
)


def score(context: Context) -> str:
    """Write exp/NAME/results.json: one system for each encoder and kind of input."""
    config, kind = context.config, context.config["task"]["kind"]
    records = read_json(context.exp_dir / FEATURES)
    classes, _ = targets_of(context)
    clips = {clip.id: clip for clip in read_manifest(context.data / MANIFEST)}
    folds = read_folds(context.data / FOLDS)
    tables: dict[str, Answers] = {}
    systems = []
    for encoder, record in records.items():
        for view in views_of(config, record):
            for system, answers in _systems(context, encoder, record, view, classes):
                systems.append(system | {"encoder": encoder, "view": view})
                tables[system["name"]] = answers
    for system in systems:
        answers = tables[system["name"]]
        draws = speaker_draws([clips[name].speaker for name in answers.ids], samples_of(kind))
        for name in METRICS[kind]:
            found = scored(answers.statistic(name), len(answers.ids), draws)
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
        "chance": next(iter(tables.values())).chance(),
        "primary_metric": primary,
        "skipped": _skipped(context, records),
        "differences": _differences(systems, tables, primary, clips),
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
) -> list[tuple[dict[str, Any], Answers]]:
    """A system for each kind of input that the models of a view met at test: results, and what was answered."""
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
        values = [Answers.of_rows(kind, classes, lines) for _, lines in parts]
        whole = Answers.joined(values)
        title = f"{record['title']}: {view}" + ("" if given == view else f", {given} alone at test")
        metrics = {}
        for name in METRICS[kind]:
            per_fold = [part.value(name) for part in values]
            low, high = whole.over_clips(name)
            spread = fold_interval(per_fold)
            metrics[name] = {
                "mean": float(np.mean(per_fold)),
                "std": float(np.std(per_fold, ddof=1)) if len(per_fold) > 1 else None,
                "pooled": whole.value(name),
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
            "folds": [_fold(part, answers) for (part, _), answers in zip(parts, values, strict=True)],
        }
        found.append((system | whole.details(), whole))
    return found


def _fold(record: Mapping[str, Any], answers: Answers) -> dict[str, Any]:
    kept = {key: value for key, value in record.items() if key not in ("fingerprint", "layer_weights")}
    return kept | {"metrics": {name: answers.value(name) for name in METRICS[answers.kind]}}


def _differences(
    systems: Sequence[Mapping[str, Any]], tables: Mapping[str, Answers], metric: str, clips: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Both against one stream of every encoder, and the main encoder against the others, on the same clips."""
    whole = {(s["encoder"], s["view"]): s["name"] for s in systems if s["view"] == s["given"]}
    names = list(dict.fromkeys(s["encoder"] for s in systems))
    wanted = [((name, BOTH), (name, view)) for name in names for view in ("audio", "video")]
    wanted += [((names[0], view), (name, view)) for name in names[1:] for view in ("audio", "video", BOTH)]
    found = []
    for first, second in ((whole[one], whole[other]) for one, other in wanted if {one, other} <= set(whole)):
        shared = sorted({*tables[first].ids} & {*tables[second].ids})
        if not shared:
            continue
        one, other = (tables[name].of_clips(shared).statistic(metric) for name in (first, second))
        every = np.arange(len(shared))
        draws = speaker_draws([clips[name].speaker for name in shared], samples_of(tables[first].kind))
        low, high = paired_interval(one, other, draws) or (None, None)
        found.append({"first": first, "second": second, "value": one(every) - other(every), "low": low, "high": high})
    return found


def report(context: Context) -> str:
    """Write RESULTS.md and report.html, and details/report.html with folds, curves and confusions of every system."""
    results = read_json(context.exp_dir / RESULTS)
    write_report(results, context.exp_dir / "details")
    metric = results["primary_metric"]
    names = list(results["systems"][0]["metrics"])
    header = ["system", *(NAMES.get(name, name) for name in names), "test clips"]
    rows = []
    for system in results["systems"]:
        cells = [_cell(system["metrics"][name], name) for name in names]
        rows.append([system["name"], *cells, str(sum(fold["num_test"] for fold in system["folds"]))])
    if results["classes"]:
        rows.append(["chance", f"{100 * results['chance']:.1f}", *[""] * len(names)])
    sections = [
        Section(
            f"{NAMES[metric].removesuffix(' %')} of {results['label']}, sound, pictures and both",
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
            ["first", "second", f"difference, {NAMES[metric]}"],
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
    if metric in IN_PERCENT:
        return percent({"value": value, "low": low, "high": high})
    return f"{value:.3f}" + ("" if low is None else f" ({low:.3f} to {high:.3f})") if value is not None else "–"


def _forest(results: Mapping[str, Any], metric: str) -> Any:
    times = 100 if metric in IN_PERCENT else 1
    rows = []
    for system in results["systems"]:
        found = system["metrics"][metric]
        values = [found["pooled"], found["speaker_low"], found["speaker_high"]]
        place: Any = tuple(None if v is None else times * v for v in values)
        rows.append(ForestRow(system["name"], place if place[0] is not None else None, None, []))
    reference = ("chance", times * results["chance"]) if results["classes"] else None
    return forest(rows, NAMES[metric], reference, "; ".join(f"{row.name} {row.mean}" for row in rows))


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
    return [f"{main}: {NAMES[metric]} {said}{chance}.", *told]


def _told(difference: Mapping[str, Any]) -> str:
    low, high = difference["low"], difference["high"]
    return ", not told apart" if low is not None and low <= 0 <= high else ""
