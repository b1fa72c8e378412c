"""One table over pretraining runs: loss at start and end, probes, speed and what tells a collapse."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmssl.errors import StageError
from mmssl.report.pretraining import KIND, warnings_of
from mmssl.report.pretraining_health import indicators

BEGIN, END = "<!-- table of methods: begin -->", "<!-- table of methods: end -->"
_HEADER = (
    "method",
    "corpus, label",
    "loss, first and last rows",
    "held-out speakers: loss, accuracy",
    "steps/s",
    "stream",
    "untrained",
    "trained",
    "log-mel or pixels",
    "spread, rank of the representation",
    "warnings",
)
_INTRODUCTION = f"""# Pretraining: all methods on generated corpora

Each row is one run of `egs/mini/ssl/run.sh objective=METHOD`; how it works stands in `recipes/ssl/README.md`. Probes
are scored on speakers (pictures) that pretraining did not see: unweighted average recall in %. The encoders have about
a million weights and were trained for minutes on synthetic data: the table shows that methods run and whether their
losses fall, not which method is best.

{BEGIN}
{END}

Written by `tools/make_ssl_table.py`.
"""


def read_results(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """Results of all pretraining experiments of recipe folders, sorted by objective and name.

    Raises:
        StageError: a file is not readable JSON.
    """
    found = []
    for folder in folders:
        for path in sorted(folder.glob("exp/*/results.json")):
            try:
                results = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise StageError(f"{path} is not readable JSON: {error}. Run stage report again.") from error
            if results.get("kind") == KIND:
                found.append(results)
    return sorted(found, key=lambda results: (results["objective"], results["name"]))


def render_table(results: Sequence[Mapping[str, Any]]) -> str:
    """The table in Markdown: one row for each run and probed stream."""
    rows = [row for one in results for row in _rows(one)]
    lines = [_HEADER, ["---"] * len(_HEADER), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def document_with(table: str, before: str | None) -> str:
    """A document with the table between the marks.

    Raises:
        StageError: the document lacks the marks.
    """
    text = _INTRODUCTION if before is None else before
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise StageError(f"The document needs the lines {BEGIN} and {END}, once each and in this order.")
    return f"{text[: text.index(BEGIN)]}{BEGIN}\n{table}\n{text[text.index(END) :]}"


def _rows(results: Mapping[str, Any]) -> list[list[str]]:
    last = results["iterations"][-1]
    history, health = last["history"], indicators(last["history"])
    # what was seen; the causes that the watcher thinks of are on the run's own page
    warned = "; ".join(text.partition(" Likely causes:")[0].rstrip(".") for text in warnings_of(results)) or "none"
    found = results["probe"]
    metric = found.get("metric", "uar")
    scores = {(row["system"], row["stream"]): row[metric] for row in found["scores"]}
    streams = [stream for system, stream in scores if system == "trained"] or ["-"]
    plain = [value for (system, _), value in scores.items() if system in ("log-mel", "pixels")]
    speed = last["steps_per_second"]
    rows = []
    for stream in streams:
        own = [value for (system, name), value in scores.items() if system in ("log-mel", "pixels") and name == stream]
        rows.append(
            [
                results["objective"],
                f"{results['corpus']['name']}, {found['label'] or 'no label'}",
                f"{history[0]['loss']:.3f} -> {history[-1]['loss']:.3f}",
                _held_out(last.get("held_out")),
                "-" if speed is None else f"{speed:.2f}",
                stream,
                _score(scores.get(("untrained", stream)), metric),
                _score(scores.get(("trained", stream)), metric),
                _score(max(own or plain, default=None), metric),
                f"{_first(health, 'representation_spread')}, {_first(health, 'representation_rank')}",
                warned.replace("|", "\\|"),
            ]
        )
    return rows


def _held_out(scores: Mapping[str, Mapping[str, float]] | None) -> str:
    if not scores:
        return "-"
    accuracies = [f"{100 * one['mean']:.1f} %" for name, one in sorted(scores.items()) if name.endswith("/accuracy")]
    beyond = [f"divergence {one['mean']:.3f}" for name, one in sorted(scores.items()) if name.endswith("/divergence")]
    return ", ".join([f"{scores['loss']['mean']:.3f}", *beyond, *accuracies])


def _score(value: float | None, metric: str) -> str:
    return "-" if value is None else f"{100 * value:.1f}" if metric == "uar" else f"{value:.3f}"


def _first(health: Mapping[str, float], name: str) -> str:
    values = [value for key, value in health.items() if key.endswith(name)]
    return f"{values[0]:.2f}" if values else "-"
