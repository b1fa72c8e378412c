"""RESULTS.md: the same numbers as the page, for reading in a repository."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmssl.report import summary


def render_markdown(results: Mapping[str, Any]) -> str:
    """The content of RESULTS.md; every number comes from `results`.

    Args:
        results: the content of `results.json`.

    Raises:
        StageError: the results are of another schema or hold no system.
    """
    summary.check_results(results)
    title = " ".join(str(results[k]) for k in ("corpus", "task") if results.get(k)) or str(
        results.get("name", "Results")
    )
    blocks = [
        f"# Results: {escape(title)}",
        "<!-- Written by the report stage from results.json; change nothing here by hand. -->",
        "\n".join(f"{escape(s)}  " for s in summary.headline(results)).rstrip(),
        _skipped_warning(results),
        "## Systems",
        _systems(results),
        "## Protocol",
        _protocol(results),
        "## Folds",
        *_folds(results),
        *_confusions(results),
        "## Data",
        _data(results),
        "## Skipped clips",
        _skipped(results),
        "## How to get these numbers",
        _origin(results),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def escape(value: Any) -> str:
    """Text that Markdown shows as it is, also inside a table cell."""
    text = " ".join(str(value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", text)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table of cells that are already escaped; the first `left` columns flush left."""
    rule = [":--" if k < left else "--:" for k in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [list(header), rule, *(list(r) for r in rows)])


def _fenced(text: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def _skipped_warning(results: Mapping[str, Any]) -> str:
    return f"> **{summary.skipped_statement(results)}** See below." if results.get("skipped") else ""


def _systems(results: Mapping[str, Any]) -> str:
    metrics = summary.metrics_of(results)
    first = summary.metric_heading(metrics[0])
    header = [
        "System",
        "Upstream",
        "Interface",
        "Head",
        f"{first} (folds)",
        "95 % (folds)",
        f"{first} (clips)",
        "95 % (clips)",
    ]
    rows = []
    for system in summary.ranked(results):
        row = summary.system_row(system, metrics)
        main = row["scores"][0]
        cells = [row["name"], row["upstream"], row["interface"], row["head"]]
        scores = [main["mean"], main["fold_ci"], main["pooled"], main["ci"], *(s["mean"] for s in row["scores"][1:])]
        rows.append([escape(c) for c in [*cells, *scores]])
    note = (
        '"(folds)" is the mean ± standard deviation over folds with a 95 % interval over folds; '
        '"(clips)" is the score over all test clips at once with a 95 % bootstrap interval over clips. '
        "The other columns are means over folds."
    )
    return table([*header, *(summary.metric_heading(m) for m in metrics[1:])], rows, left=4) + "\n\n" + note


def _protocol(results: Mapping[str, Any]) -> str:
    protocol = results.get("protocol") or {}
    lines = [f"- Name: {escape(protocol.get('name') or summary.MISSING)}"]
    lines += [f"- {escape(protocol[k])}" for k in ("description", "notes") if protocol.get(k)]
    lines.append(f"- **{escape(summary.speaker_statement(results))}**")
    chosen: dict[str, list[str]] = {}
    for system in results["systems"]:
        if system.get("selection"):
            chosen.setdefault(system["selection"], []).append(escape(system["name"]))
    lines += [f"- Selection of {', '.join(names)}: {escape(how)}" for how, names in chosen.items()]
    return "\n".join(lines)


def _folds(results: Mapping[str, Any]) -> Iterator[str]:
    metrics = summary.metrics_of(results)
    for system in summary.ranked(results):
        rows = []
        for fold in system.get("folds") or []:
            measured = fold.get("metrics") or {}
            counts = [str(fold.get(k, summary.MISSING)) for k in ("num_train", "num_dev", "num_test")]
            rate = summary.number(fold.get("learning_rate"))
            groups = ", ".join(escape(g) for g in fold.get("test_groups") or []) or summary.MISSING
            cells = [escape(fold.get("name", "")), groups, *counts, summary.MISSING if rate is None else f"{rate:.3g}"]
            rows.append([*cells, *(summary.score(measured.get(m), m, unit=False) for m in metrics)])
        header = ["Fold", "Test groups", "Train", "Dev", "Test", "Learning rate", *map(summary.metric_heading, metrics)]
        yield f"### {escape(system['name'])}"
        yield table(header, rows, left=2) if rows else "No folds are recorded."


def _confusions(results: Mapping[str, Any]) -> Iterator[str]:
    classes = [str(c) for c in results.get("classes") or []]
    systems = [s for s in summary.ranked(results) if s.get("confusion")]
    if not systems or not classes:
        return
    yield "## Confusion (clips; rows are the true class, columns what was predicted)"
    for system in systems:
        recalls = system.get("per_class_recall") or {}
        rows = [
            [escape(name), *(str(n) for n in counts), summary.score(recalls.get(name), "uar", unit=False)]
            for name, counts in zip(classes, system["confusion"], strict=False)
        ]
        yield f"### {escape(system['name'])}"
        yield table(["True class", *(escape(c) for c in classes), "Recall %"], rows)


def _data(results: Mapping[str, Any]) -> str:
    data = results.get("data") or {}
    lines = [f"- {k.capitalize()}: {data[k]}" for k in ("clips", "speakers") if data.get(k) is not None]
    hours = summary.number(data.get("hours"))
    if hours is not None:
        lines.append(f"- Hours: {hours:.2f}")
    per_class = data.get("per_class") or {}
    if per_class:
        counts = ", ".join(f"{escape(k)} {v}" for k, v in per_class.items())
        lines.append(f"- Clips per class of {escape(results.get('label') or 'label')}: {counts}")
    return "\n".join(lines) or "Not recorded."


def _skipped(results: Mapping[str, Any]) -> str:
    skipped = results.get("skipped") or []
    if not skipped:
        return "Count: 0."
    rows = [[escape(s.get("id", "")), escape(s.get("path", "")), escape(s.get("reason", ""))] for s in skipped]
    return f"Count: {len(skipped)}.\n\n" + table(["Clip", "File", "Reason"], rows, left=3)


def _origin(results: Mapping[str, Any]) -> str:
    versions = results.get("versions") or {}
    parts = [_fenced(str(results["command"]))] if results.get("command") else []
    facts = [f"- Written: {escape(results['created'])}"] if results.get("created") else []
    facts += [f"- Fingerprint of the experiment: `{results['fingerprint']}`"] if results.get("fingerprint") else []
    for system in results["systems"]:
        upstream = {k: v for k, v in (system.get("upstream") or {}).items() if k in ("target", "kwargs")}
        described = json.dumps(upstream, ensure_ascii=False, default=str)
        features = escape(system.get("fingerprint") or summary.MISSING)
        facts.append(f"- {escape(system['name'])}: {escape(described)}, features {features}")
    if versions:
        facts.append("- Versions: " + ", ".join(f"{escape(k)} {escape(v)}" for k, v in versions.items()))
    return "\n\n".join([*parts, "\n".join(facts)])
