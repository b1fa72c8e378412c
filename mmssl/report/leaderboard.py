"""A leaderboard as Markdown, as one HTML page and as LaTeX, from `leaderboard.json` alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mmssl.data.files import write_text
from mmssl.report import figures, summary
from mmssl.report.figures import ForestRow, Line

Row = Mapping[str, Any]
PUBLISHED_NOTE = (
    "Published numbers are those of the papers' own training, data lists and metric; they were not made with this "
    "program and are no target that a probe must meet."
)


def write_leaderboard(board: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write leaderboard.md, .html and .tex, each atomically; all are rendered before one is written."""
    texts = {"md": render_markdown(board), "html": render_html(board), "tex": render_latex(board)}
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for suffix, text in texts.items():
        paths.append(folder / f"leaderboard.{suffix}")
        write_text(paths[-1], text)
    return paths


def tables(board: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Per corpus: systems by protocols, best first by the mean over protocols.

    Returns:
        Per corpus its name, metric, note, protocols, and rows of a system's name and one cell per protocol: text,
        interval, whether it is the column's best; and published rows.
    """
    found = []
    for corpus in dict.fromkeys(row["corpus"] for row in board["rows"]):
        rows = [row for row in board["rows"] if row["corpus"] == corpus and row["layer"] is None]
        metric = rows[0]["metric"]
        protocols = list(dict.fromkeys(row["protocol"] for row in rows))
        cells = {(row["system"], row["protocol"]): row for row in rows}
        systems = sorted(dict.fromkeys(row["system"] for row in rows), key=lambda s: -_mean_of(s, protocols, cells))
        # of one system, nothing is the best
        best = {p: max(_value(cells.get((s, p))) for s in systems) if len(systems) > 1 else None for p in protocols}
        found.append(
            {
                "corpus": corpus,
                "metric": metric,
                "heading": summary.metric_heading(metric),
                "note": (board.get("notes") or {}).get(corpus, ""),
                "protocols": protocols,
                "rows": [
                    {"system": s, "cells": [_cell(cells.get((s, p)), metric, best[p]) for p in protocols]}
                    for s in systems
                ],
                "published": [p for p in board.get("published") or [] if p.get("corpus") == corpus],
            }
        )
    return found


def render_markdown(board: Mapping[str, Any]) -> str:
    """The tables as Markdown, aligned so that they read as plain text too."""
    lines = [f"# {board['name']}", "", *_explained()]
    for table in tables(board):
        lines += ["", f"## {_pipe(table['corpus'])}: {table['heading']}", ""]
        if table["note"]:
            lines += [table["note"], ""]
        header = ["Upstream", *(_pipe(p) for p in table["protocols"])]
        body = [
            [_pipe(row["system"]), *(f"**{c['text']}**" if c["best"] else c["text"] for c in row["cells"])]
            for row in table["rows"]
        ]
        lines += _markdown_table(header, body)
        if table["published"]:
            lines += ["", "Published numbers, for comparison:", ""]
            lines += _markdown_table(["Upstream", "Metric", "Value", "Source"], _published(table["published"]))
            lines += ["", PUBLISHED_NOTE]
        lines += _markdown_tests(board, table["corpus"])
    return "\n".join(lines) + "\n"


def render_latex(board: Mapping[str, Any]) -> str:
    """One booktabs table per corpus; the best of a column is bold."""
    lines = ["% needs \\usepackage{booktabs}"]
    for table in tables(board):
        columns = "l" + "c" * len(table["protocols"])
        lines += [
            "\\begin{table}",
            "\\centering",
            f"\\caption{{{_tex(table['corpus'])}: {_tex(table['heading'])}, mean over folds "
            "(95\\,\\% bootstrap interval over clips).}",
            f"\\begin{{tabular}}{{{columns}}}",
            "\\toprule",
            " & ".join(["Upstream", *(_tex(p) for p in table["protocols"])]) + " \\\\",
            "\\midrule",
        ]
        for row in table["rows"]:
            cells = [f"\\textbf{{{_tex(c['text'])}}}" if c["best"] else _tex(c["text"]) for c in row["cells"]]
            lines.append(" & ".join([_tex(row["system"]), *cells]) + " \\\\")
        lines += ["\\bottomrule", "\\end{tabular}", "\\end{table}"]
    return "\n".join(lines) + "\n"


def render_html(board: Mapping[str, Any]) -> str:
    """One page with style and figures inside, no script and nothing fetched; all text is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("mmssl.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    corpora = [
        {
            **table,
            "published": _published(table["published"]),
            "figures": _figures(board, table),
            "tests": _tests(board, table["corpus"]),
            "stability": _stability(board, table["corpus"]),
        }
        for table in tables(board)
    ]
    page = {"name": str(board["name"]), "explained": _explained(), "published_note": PUBLISHED_NOTE, "corpora": corpora}
    return environment.get_template("leaderboard.html.j2").render(page)


def _explained() -> list[str]:
    return [
        "Mean over folds, ± standard deviation over folds, and in brackets the 95 % bootstrap interval over all test "
        "clips. The best of a column is bold. Everything that is chosen (learning rate, layer, penalty) is chosen on "
        "development clips."
    ]


def _mean_of(system: str, protocols: Sequence[str], cells: Mapping[tuple[str, str], Row]) -> float:
    values = [_value(cells[(system, p)]) for p in protocols if (system, p) in cells]
    return sum(values) / len(values)


def _value(row: Row | None) -> float:
    """What ranks: higher is better."""
    value = None if row is None else summary.number(row["metrics"][row["metric"]]["mean"])
    return float("-inf") if value is None else value


def _cell(row: Row | None, metric: str, best: float | None) -> dict[str, Any]:
    if row is None:
        return {"text": summary.MISSING, "best": False}
    values = row["metrics"][metric]
    interval = summary.Interval(values["mean"], values["ci_low"], values["ci_high"])
    mean, std = (summary.score(values[key], metric, unit=False) for key in ("mean", "std"))
    spread = f" ± {std}" if len(row["folds"]) > 1 else ""
    return {"text": f"{mean}{spread} [{summary.span(interval, metric)}]", "best": _value(row) == best}


def _published(rows: Sequence[Row]) -> list[list[str]]:
    return [[str(row.get(key, summary.MISSING)) for key in ("system", "metric", "value", "source")] for row in rows]


def _tests(board: Mapping[str, Any], corpus: str) -> list[list[str]]:
    """Rows of the table of paired tests."""
    return [
        [
            test["protocol"],
            f"{test['systems'][0]} – {test['systems'][1]}",
            summary.score(test["difference"], test["metric"], unit=False),
            _p_value(test["mcnemar"]),
            _p_value(test["permutation"]),
        ]
        for test in board.get("tests") or []
        if test["corpus"] == corpus
    ]


def _p_value(value: float | None) -> str:
    if value is None:
        return summary.MISSING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _stability(board: Mapping[str, Any], corpus: str) -> list[str]:
    return [
        f"{entry['protocols'][0]} and {entry['protocols'][1]}: "
        + (summary.MISSING if entry["tau"] is None else f"{entry['tau']:.2f}")
        + f" ({entry['systems']} upstreams)"
        for entry in board.get("stability") or []
        if entry["corpus"] == corpus
    ]


TEST_HEADER = ("Protocol", "Upstreams", "Difference", "McNemar p", "Permutation p")


def _markdown_tests(board: Mapping[str, Any], corpus: str) -> list[str]:
    lines: list[str] = []
    rows = _tests(board, corpus)
    if rows:
        lines += ["", "Paired tests on the same test clips (exact McNemar; exchange of predictions):", ""]
        lines += _markdown_table(list(TEST_HEADER), [[_pipe(cell) for cell in row] for row in rows])
    stability = _stability(board, corpus)
    if stability:
        lines += ["", f"Do protocols rank the upstreams alike? Kendall's tau: {'; '.join(stability)}."]
    return lines


def _figures(board: Mapping[str, Any], table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A forest plot per protocol, and a plot of the layers where they were scanned."""
    metric, made = table["metric"], []
    scale = 100 if summary.is_percent(metric) else 1
    for protocol in table["protocols"]:
        rows = []
        for entry in table["rows"]:
            row = _find(board, table["corpus"], entry["system"], protocol)
            if row is None:
                continue
            values = row["metrics"][metric]
            mean, pooled = (
                tuple(None if values[key] is None else scale * values[key] for key in keys)
                for keys in (("mean", "fold_ci_low", "fold_ci_high"), ("pooled", "ci_low", "ci_high"))
            )
            folds = [(f"{name}: {summary.score(value, metric)}", scale * value) for name, value in row["folds"]]
            rows.append(ForestRow(entry["system"], mean, pooled, folds))  # type: ignore[arg-type]
        said = f"{table['heading']} of each upstream under {protocol}"
        made.append({"figure": figures.forest(rows, table["heading"], None, said), "text": said})
    layers = _layer_plots(board, table, scale)
    return made + layers


def _find(board: Mapping[str, Any], corpus: str, system: str, protocol: str) -> Row | None:
    for row in board["rows"]:
        if (row["corpus"], row["system"], row["protocol"]) == (corpus, system, protocol):
            return row
    return None


def _layer_plots(board: Mapping[str, Any], table: Mapping[str, Any], scale: float) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    scanned = [r for r in board["rows"] if r["corpus"] == table["corpus"] and r["layer"] is not None]
    for head, share in dict.fromkeys((row["head"], row["fraction"]) for row in scanned):
        lines = []
        for k, entry in enumerate(table["rows"]):
            points = sorted(
                (float(row["layer"]), scale * row["metrics"][table["metric"]]["mean"])
                for row in scanned
                if (row["head"], row["fraction"], row["system"]) == (head, share, entry["system"])
            )
            if points:
                lines.append(Line(points, k, entry["system"], "", points))
        of_labels = "" if share == 1 else f", {share:.0%} of the labels"
        said = f"{table['heading']} of single layers under {head}{of_labels}"
        figure: Markup = figures.line_plot(lines, "layer", table["heading"], said)
        legend = [(figures.key_mark(line.colour), line.title) for line in lines]
        made.append({"figure": figure, "text": said, "legend": legend})
    return made


def _markdown_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    rows = [list(header), *(list(row) for row in body)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(header))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    return [lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]]


def _pipe(text: object) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


_TEX = {"\\": "\\textbackslash{}", "{": "\\{", "}": "\\}", "±": "$\\pm$", "–": "--", "~": "\\textasciitilde{}"}
_TEX |= {character: f"\\{character}" for character in "&%$#_"} | {"^": "\\textasciicircum{}"}


def _tex(text: object) -> str:
    return "".join(_TEX.get(character, character) for character in str(text))
