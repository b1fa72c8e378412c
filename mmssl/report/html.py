"""The report page: one HTML file with its style and figures inside, no script and nothing fetched."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from mmssl.report import figures, summary
from mmssl.report.figures import ForestRow, Line
from mmssl.report.svg import heat

_MANY_GROUPS = 32
_NUM_LISTED = 200


def render_html(results: Mapping[str, Any]) -> str:
    """The whole page. Text from results is escaped, whatever it holds.

    Args:
        results: the content of `results.json`.

    Raises:
        StageError: the results are of another schema or hold no system.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    summary.check_results(results)
    environment = Environment(
        loader=PackageLoader("mmssl.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(page(results))


def page(results: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the template shows, as text, lists and figures."""
    metrics = summary.metrics_of(results)
    metric = metrics[0]
    systems = summary.ranked(results)
    classes = [str(c) for c in results.get("classes") or []]
    skipped = results.get("skipped") or []
    title = " ".join(str(results[k]) for k in ("corpus", "task") if results.get(k)) or "Results"
    return {
        "title": title,
        "name": str(results.get("name") or ""),
        "created": str(results.get("created") or ""),
        "headline": summary.headline(results),
        "skipped_statement": summary.skipped_statement(results),
        "skipped": [{k: str(s.get(k, "")) for k in ("id", "path", "reason")} for s in skipped[:_NUM_LISTED]],
        "skipped_more": max(len(skipped) - _NUM_LISTED, 0),
        "speaker_statement": summary.speaker_statement(results),
        "overlap": bool((results.get("protocol") or {}).get("speaker_overlap")),
        "metric": summary.metric_heading(metric),
        "metrics": [(summary.metric_heading(m), summary.metric_meaning(m)) for m in metrics],
        "rows": [summary.system_row(s, metrics) for s in systems],
        "forest": _forest(systems, metric, results),
        "systems": [_system(s, metrics, classes) for s in systems],
        "recalls": _recalls(systems, classes),
        "protocol": {k: str((results.get("protocol") or {}).get(k) or "") for k in ("name", "description", "notes")},
        "data": _data(results),
        "label": str(results.get("label") or "label"),
        "facts": _facts(results),
        "command": str(results.get("command") or ""),
        "versions": {str(k): str(v) for k, v in (results.get("versions") or {}).items()},
    }


def _plotted(value: float, metric: str) -> float:
    return 100 * value if summary.is_percent(metric) else value


def _forest(systems: Sequence[Mapping[str, Any]], metric: str, results: Mapping[str, Any]) -> Markup | None:
    def triple(interval: summary.Interval) -> tuple[float, float | None, float | None] | None:
        if interval.value is None:
            return None
        low, high = (None if v is None else _plotted(v, metric) for v in (interval.low, interval.high))
        return _plotted(interval.value, metric), low, high

    rows = [
        ForestRow(
            name=str(system["name"]),
            mean=triple(summary.over_folds(system, metric)),
            pooled=triple(summary.over_clips(system, metric)),
            folds=[(n, _plotted(v, metric)) for n, v in _fold_values(system, metric)],
        )
        for system in systems
    ]
    if not any(row.mean or row.pooled or row.folds for row in rows):
        return None
    chance = summary.number(results.get("chance"))
    reference = ("chance", _plotted(chance, metric)) if chance is not None and summary.is_percent(metric) else None
    said = "; ".join(
        f"{r['name']} {r['scores'][0]['mean']}" for r in (summary.system_row(s, [metric]) for s in systems)
    )
    return figures.forest(
        rows, summary.metric_heading(metric), reference, f"{summary.metric_heading(metric)} by system: {said}"
    )


def _fold_values(system: Mapping[str, Any], metric: str) -> list[tuple[str, float]]:
    found = []
    for fold in system.get("folds") or []:
        value = summary.number((fold.get("metrics") or {}).get(metric))
        if value is not None:
            found.append((f"{fold.get('name', '')}: {summary.score(value, metric)}", value))
    return found


def _system(system: Mapping[str, Any], metrics: Sequence[str], classes: Sequence[str]) -> dict[str, Any]:
    upstream = system.get("upstream") or {}
    shift = summary.number(upstream.get("frame_shift"))
    sizes = dict.fromkeys(str(s) for s in upstream.get("hidden_sizes") or [])
    facts = {
        "Upstream": json.dumps(
            {k: upstream[k] for k in ("target", "kwargs") if upstream.get(k)}, ensure_ascii=False, default=str
        ),
        "Layers": f"{upstream.get('num_layers', summary.MISSING)}, width {', '.join(sizes) or summary.MISSING}",
        "Frame shift": summary.MISSING if shift is None else f"{1000 * shift:g} ms",
        "Interface and head": f"{system.get('interface') or summary.MISSING}, {system.get('head') or summary.MISSING}",
        "Trained on": "features averaged over each clip (the same result as from frames)"
        if system.get("pooled")
        else "frames",
        "Selection": str(system.get("selection") or summary.MISSING),
        "Features": str(system.get("fingerprint") or summary.MISSING),
    }
    return {
        "name": str(system["name"]),
        "facts": facts,
        "confusion": _confusion(system, classes),
        "weights": _weights(system),
        "losses": _losses(system),
        "dev_scores": _dev_scores(system, metrics[0]),
        "sweep": _sweep(system, metrics[0]),
        "maps": _maps(system),
        "folds": _fold_rows(system, metrics),
    }


def _confusion(system: Mapping[str, Any], classes: Sequence[str]) -> list[dict[str, Any]] | None:
    counts = system.get("confusion")
    if not counts or not classes:
        return None
    rows = []
    for name, row in zip(classes, counts, strict=False):
        total = sum(row)
        cells = []
        for predicted, count in zip(classes, row, strict=False):
            share = count / total if total else 0.0
            background, text = heat(share)
            shown = f"{100 * share:.0f} %" if total else summary.MISSING
            cells.append({"share": shown, "count": count, "fill": background, "text": text, "right": predicted == name})
        rows.append({"name": name, "cells": cells, "total": total})
    return rows


def _recalls(systems: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> list[dict[str, Any]] | None:
    if not classes or not any(s.get("per_class_recall") for s in systems):
        return None
    rows = []
    for name in classes:
        values = [summary.number((s.get("per_class_recall") or {}).get(name)) for s in systems]
        bars = [
            {"text": summary.score(v, "uar", unit=False), "width": f"{100 * min(max(v or 0.0, 0.0), 1.0):.1f}"}
            for v in values
        ]
        rows.append({"name": name, "bars": bars})
    return rows


def _weights(system: Mapping[str, Any]) -> Markup | None:
    weights = {}
    for k, fold in enumerate(system.get("folds") or []):
        given = [summary.number(w) or 0.0 for w in fold.get("layer_weights") or []]
        if given:
            weights[str(fold.get("name", k))] = given
    if not weights or max(map(len, weights.values())) < 2:
        return None
    return figures.layer_map(
        weights, f"Learned layer weights of {system['name']}, one row per fold, one column per layer"
    )


def _history(system: Mapping[str, Any], key: str) -> list[tuple[str, list[tuple[float, float]]]]:
    """(fold name, points) of one column of the training history; folds without it are left out."""
    found = []
    for fold in system.get("folds") or []:
        pairs = [(summary.number(h.get("step")), summary.number(h.get(key))) for h in fold.get("history") or []]
        points = [(x, y) for x, y in pairs if x is not None and y is not None]
        if points:
            found.append((str(fold.get("name", "")), points))
    return found


def _losses(system: Mapping[str, Any]) -> Markup | None:
    lines = [
        Line(points, colour, f"{fold}: {kind}", style)
        for key, kind, colour, style in (("train_loss", "train", 0, ""), ("dev_loss", "dev", 1, "dashed"))
        for fold, points in _history(system, key)
    ]
    if not lines:
        return None
    said = f"Training and development loss of {system['name']} over training steps, one line per fold"
    return figures.line_plot(lines, "training step", "loss", said)


def _dev_scores(system: Mapping[str, Any], metric: str) -> Markup | None:
    history = _history(system, f"dev_{metric}")
    if not history:
        return None
    lines = [Line([(x, _plotted(y, metric)) for x, y in points], 2, fold) for fold, points in history]
    heading = f"{summary.metric_heading(metric)} on the development split"
    return figures.line_plot(lines, "training step", heading, f"{heading} of {system['name']}, one line per fold")


def _sweep(system: Mapping[str, Any], metric: str) -> Markup | None:
    lines: list[Line] = []
    by_rate: dict[float, list[float]] = {}
    for fold in system.get("folds") or []:
        points = []
        for trial in fold.get("sweep") or []:
            rate, value = summary.number(trial.get("learning_rate")), summary.number(trial.get(f"dev_{metric}"))
            if rate is not None and rate > 0 and value is not None:
                points.append((rate, _plotted(value, metric)))
        points.sort()
        for rate, value in points:
            by_rate.setdefault(rate, []).append(value)
        chosen = summary.number(fold.get("learning_rate"))
        if points:
            lines.append(Line(points, 4, str(fold.get("name", "")), "", [p for p in points if p[0] == chosen]))
    if len(by_rate) < 2:
        return None
    if len(lines) > 1:
        lines.append(Line([(r, sum(v) / len(v)) for r, v in sorted(by_rate.items())], 5, "mean over folds", "mean"))
    heading = f"{summary.metric_heading(metric)} on the development split"
    said = f"{heading} of {system['name']} against learning rate, one line per fold, the chosen rate marked"
    return figures.line_plot(lines, "learning rate", heading, said, log_x=True)


def _maps(system: Mapping[str, Any]) -> dict[str, Any] | None:
    given = system.get("map") or {}
    x = [summary.number(v) for v in given.get("x") or []]
    y = [summary.number(v) for v in given.get("y") or []]
    if not x or len(x) != len(y):
        return None
    panels = []
    for key in ("label", "speaker"):
        names, groups = _grouped(given.get(key) or [])
        if len(names) != len(x):
            continue
        places = [float("nan") if v is None else v for v in x], [float("nan") if v is None else v for v in y]
        figure = figures.point_map(
            *places, [groups.index(n) for n in names], groups, f"Map of the clips of {system['name']} by {key}"
        )
        legend = [(figures.key_mark(k), g) for k, g in enumerate(groups)] if len(groups) <= _MANY_GROUPS else []
        panels.append({"key": key, "figure": figure, "legend": legend, "count": len(groups)})
    described = ", ".join(
        text
        for text in (
            str(given.get("method") or ""),
            f"layer {given['layer']}" if given.get("layer") is not None else "",
        )
        if text
    )
    return {"panels": panels, "described": described, "count": len(x)} if panels else None


def _grouped(values: Sequence[Any]) -> tuple[list[str], list[str]]:
    """A group name for each value, and the groups in order; numbers are put into five groups of about equal size."""
    known = sorted(v for v in map(summary.number, values) if v is not None)
    if not known or len(set(known)) <= 10:
        names = [str(v) for v in values]
        return names, sorted(set(names))
    limits = [known[min(len(known) * k // 5, len(known) - 1)] for k in range(6)]
    limits[-1] = known[-1]
    groups = [f"{a:.3g} to {b:.3g}" for a, b in pairwise(limits)]
    names = []
    for value in map(summary.number, values):
        if value is None:
            names.append(summary.MISSING)
        else:
            names.append(groups[min(max(bisect_right(limits, value) - 1, 0), 4)])
    return names, [g for g in dict.fromkeys([*groups, summary.MISSING]) if g in names]


def _fold_rows(system: Mapping[str, Any], metrics: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for fold in system.get("folds") or []:
        rate, measured = summary.number(fold.get("learning_rate")), fold.get("metrics") or {}
        rows.append(
            {
                "name": str(fold.get("name", "")),
                "groups": ", ".join(str(g) for g in fold.get("test_groups") or []) or summary.MISSING,
                "counts": [str(fold.get(k, summary.MISSING)) for k in ("num_train", "num_dev", "num_test")],
                "rate": summary.MISSING if rate is None else f"{rate:.3g}",
                "scores": [summary.score(measured.get(m), m, unit=False) for m in metrics],
            }
        )
    return rows


def _data(results: Mapping[str, Any]) -> dict[str, Any]:
    data = results.get("data") or {}
    hours = summary.number(data.get("hours"))
    facts = {k: str(data[k]) for k in ("clips", "speakers") if data.get(k) is not None}
    facts |= {} if hours is None else {"hours": f"{hours:.2f}"}
    per_class = {str(k): int(v) for k, v in (data.get("per_class") or {}).items()}
    largest = max(per_class.values(), default=1) or 1
    bars = [{"name": k, "text": str(v), "width": f"{100 * v / largest:.1f}"} for k, v in per_class.items()]
    return {"facts": facts, "bars": bars}


def _facts(results: Mapping[str, Any]) -> dict[str, str]:
    named = {"Experiment": "name", "Corpus": "corpus", "Task": "task", "Label": "label", "Written": "created"}
    facts = {text: str(results[key]) for text, key in named.items() if results.get(key)}
    return facts | {"Fingerprint": str(results.get("fingerprint") or summary.MISSING)}
