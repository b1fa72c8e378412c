"""The report of a pretraining run: RESULTS.md and one HTML page with the curves of losses and health."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmssl.errors import StageError
from mmssl.files import replace_file
from mmssl.report.figures import Line, line_plot
from mmssl.report.pretraining_health import findings

KIND = "pretraining"
_NOT_DRAWN = ("step", "clips", "epoch")


def write_pretraining_report(results: Mapping[str, Any], folder: str | Path) -> None:
    """Write RESULTS.md and report.html, each whole or not at all.

    Args:
        results: what stage 6 of recipes/ssl gathers, see `mmssl.stages.ssl_probe.report`.
        folder: made if it does not exist.

    Raises:
        StageError: the results are of another kind.
    """
    target = Path(folder)
    texts = {"RESULTS.md": pretraining_markdown(results), "report.html": pretraining_html(results)}
    target.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        with replace_file(target / name) as file:
            file.write(text.encode("utf-8"))


def pretraining_summary(results: Mapping[str, Any]) -> str:
    """The tables as plain text."""
    _check(results)
    lines = [*_markdown(*runs_table(results)), ""]
    for header, rows in (held_out_table(results), probe_table(results)):
        lines += [*_markdown(header, rows), ""] if rows else []
    lines += [f"WARNING: {text}" for text in warnings_of(results)]
    return "\n".join(lines)


def runs_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Heading and one row for each iteration: loss at the start and at the end, speed, targets."""
    rows = []
    for run in results["iterations"]:
        history, made = run["history"], run["targets"]
        rows.append(
            [
                str(run["iteration"]),
                str(run["steps"]),
                _number(history[0]["loss"]),
                _number(history[-1]["loss"]),
                "-" if run["steps_per_second"] is None else f"{run['steps_per_second']:.2f}",
                "-" if made is None else _targets(made),
            ]
        )
    return ["iteration", "steps", "loss, first rows", "loss, last rows", "steps/s", "label file"], rows


def probe_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Heading and one row for each probed system; no row where the corpus has no labels."""
    found = results["probe"]
    metric = found.get("metric", "uar")
    rows = []
    for row in found["scores"]:
        interval = "" if row["low"] is None else f"{_score(row['low'], metric)} to {_score(row['high'], metric)}"
        rows.append([row["system"], row["stream"], _score(row[metric], metric), interval, str(row["clips"])])
    return ["probe on", "stream", f"{metric.upper()} of {found['label']}", "95 % interval", "test clips"], rows


def held_out_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Heading and one row for each number that says how the objective's own task is solved for held-out speakers.

    Beside an accuracy stands what the last rows of the training had. No row for label files, which only clips to train
    on have.
    """
    rows = []
    for run in results["iterations"]:
        for name, score in sorted((run.get("held_out") or {}).items(), key=lambda item: _place(item[0])):
            last = run["history"][-1].get(name)
            interval = f"{_number(score['low'])} to {_number(score['high'])}"
            rows.append([name, "-" if last is None else _number(last), _number(score["mean"]), interval])
    return ["own task", "training, last rows", "held-out speakers", "95 % interval"], rows


def warnings_of(results: Mapping[str, Any]) -> list[str]:
    """What the trainer warned of, and what the last rows of the history show."""
    found = []
    for run in results["iterations"]:
        where = f"Iteration {run['iteration']}: " if len(results["iterations"]) > 1 else ""
        found += [f"{where}{text}" for text in [*run["warnings"], *findings(run["history"])]]
    return found


def pretraining_markdown(results: Mapping[str, Any]) -> str:
    """RESULTS.md."""
    _check(results)
    corpus = results["corpus"]
    hours = "" if corpus["hours"] is None else f", {corpus['hours']:.2f} hours in all"
    lines = [
        f"# {results['objective']} on {corpus['name']}: {results['upstream']}",
        "",
        f"{corpus['clips']} clips to train on{hours}; {corpus['held_out']} held out; started from "
        f"{results['init'] or 'weights drawn from the seed'}.",
        "",
        *[f"> **Warning.** {text}\n" for text in warnings_of(results)],
        *_markdown(*runs_table(results)),
        "",
    ]
    header, rows = held_out_table(results)
    lines += [*_markdown(header, rows), ""] if rows else []
    header, rows = probe_table(results)
    lines += [*_markdown(header, rows), ""] if rows else ["No probe: the corpus was used without labels.", ""]
    return "\n".join([*lines, f"    {results['command']}", ""])


def pretraining_html(results: Mapping[str, Any]) -> str:
    """The page; text is escaped, nothing is fetched, no script runs."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    _check(results)
    environment = Environment(
        loader=PackageLoader("mmssl.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    corpus = results["corpus"]
    return environment.get_template("pretraining.html.j2").render(
        title=f"{results['objective']} on {corpus['name']}",
        upstream=results["upstream"],
        init=results["init"] or "weights drawn from the seed",
        corpus=corpus,
        warnings=warnings_of(results),
        runs=runs_table(results),
        held_out=held_out_table(results),
        probe=probe_table(results),
        iterations=[{"number": run["iteration"], "figures": curves(run["history"])} for run in results["iterations"]],
        settings={key: value for key, value in results["pretrain"].items() if value is not None},
        command=results["command"],
        versions=results["versions"],
    )


def curves(history: Sequence[Mapping[str, float]]) -> list[dict[str, Any]]:
    """One figure for each number of the history that changes, losses first: its name and the drawing.

    Beside a contrastive or classifying loss stands the dashed line ln(N), what guessing gives, and beside the online
    probe the share of the commonest class; the probe's line begins with the untrained encoder at step 0.
    """
    names = sorted({name for row in history for name in row if name not in _NOT_DRAWN}, key=_place)
    found = []
    for name in names:
        if name.endswith(("/ln_n", "/chance", "_untrained")):
            continue
        points = [(0.0, value) for _, value in _points(history, f"{name}_untrained")[:1]] + _points(history, name)
        if len(points) < 2 or (name.endswith("/weight") and len({value for _, value in points}) == 1):
            continue
        lines = [Line(points, 0, name, "mean")]
        chance, meaning = f"{name.removesuffix('loss')}ln_n", "ln(N), what guessing gives"
        if name.startswith("probe/"):
            chance, meaning = "probe/chance", "the commonest class"
        text = name
        if (name.endswith("/loss") or name.startswith("probe/")) and any(chance in row for row in history):
            lines.append(Line(_points(history, chance), 1, meaning.partition(",")[0], "dashed"))
            text += f"; dashed: {meaning}"
        words = f"{name} over steps: from {points[0][1]:.4g} to {points[-1][1]:.4g}"
        found.append({"text": text, "figure": line_plot(lines, "step", name, words, height=200)})
    return found


def _points(history: Sequence[Mapping[str, float]], name: str) -> list[tuple[float, float]]:
    return [(row["step"], row[name]) for row in history if name in row and math.isfinite(row[name])]


def _place(name: str) -> tuple[int, str]:
    if name == "loss":
        return 0, name
    return (1 if name.endswith("/loss") else 3 if name in ("learning_rate", "grad_norm") else 2), name


def _targets(made: Mapping[str, Any]) -> str:
    # label files of before streams were named lack theirs
    where = ", ".join([*([made["stream"]] if "stream" in made else []), f"layer {made['layer']}"])
    text = f"{made['clusters']} clusters of {made['source']} ({where}), entropy {made['usage_entropy']:.2f}"
    if made["quality"] is not None:
        text += f", purity {made['quality']['phone_purity']:.2f}, PNMI {made['quality']['pnmi']:.2f}"
    return text


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *escaped)]


def _score(value: float, metric: str) -> str:
    return f"{100 * value:.1f} %" if metric == "uar" else f"{value:.3f}"


def _number(value: float) -> str:
    return f"{value:.4f}"


def _check(results: Mapping[str, Any]) -> None:
    if results.get("kind") != KIND or results.get("schema") != 1:
        raise StageError(
            f"These are no results of recipes/ssl of schema 1, but {results.get('kind')!r} of schema "
            f"{results.get('schema')!r}: run stage report again."
        )
