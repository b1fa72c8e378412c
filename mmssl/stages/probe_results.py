"""RESULTS.md and error_rates.json of probes whose score is an error rate: one row per upstream and method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmssl.data.files import write_text
from mmssl.stages.context import Context, log
from mmssl.stages.files import write_json

RESULTS = "error_rates.json"
EXPLAINED = (
    "Error rates: lower is better; in brackets the 95 % bootstrap interval over {unit}. Everything that is chosen "
    "(layer, learning rate, step) is chosen on development {unit}."
)
Table = tuple[list[str], list[list[str]]]
"""Headings and rows of cells."""


def write_results(
    context: Context,
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[tuple[str, str, float]],
    unit: str,
    notes: Sequence[str],
    published: Sequence[Mapping[str, Any]],
) -> None:
    """Write exp/NAME/error_rates.json and RESULTS.md, and print the table.

    Args:
        context: the experiment.
        rows: system, method, chosen, metrics (name -> value) and intervals (name -> (low, high)).
        columns: metric, heading and factor of each column.
        unit: what the intervals are over.
        notes: sentences for the reader.
        published: rows with system, metric, value and source.
    """
    write_json(context.exp_dir / RESULTS, {"rows": list(rows), "notes": list(notes), "published": list(published)})
    table = _markdown(*rates_table(rows, columns))
    lines = [f"# {context.config['corpus']}", "", EXPLAINED.format(unit=unit), "", *notes, "", *table]
    if published:
        lines += ["", "Published numbers, for comparison:", "", *_markdown(*published_table(published))]
    write_text(context.exp_dir / "RESULTS.md", "\n".join(lines) + "\n")
    log.info("\n%s", "\n".join(table))


def rates_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, str, float]]) -> Table:
    """The table of `write_results`: rows by method, those of a method by their first metric."""
    body = []
    for row in sorted(rows, key=lambda r: (r["method"], r["metrics"][columns[0][0]])):
        chosen = ", ".join(f"{key} {value}" for key, value in row["chosen"].items())
        body.append([row["system"], row["method"], *(rate_cell(row, column) for column in columns), chosen])
    return ["Upstream", "Method", *(heading for _, heading, _ in columns), "Chosen"], body


def rate_cell(row: Mapping[str, Any], column: tuple[str, str, float]) -> str:
    """A metric of a row with its interval: "3.1 [2.2 to 4.5]"."""
    metric, _, factor = column
    ends = [f"{factor * end:.3g}" for end in row["intervals"].get(metric, ())]
    return f"{factor * row['metrics'][metric]:.3g}" + (f" [{' to '.join(ends)}]" if ends else "")


def published_table(published: Sequence[Mapping[str, Any]]) -> Table:
    """Numbers of others."""
    keys = ("system", "metric", "value", "source")
    return ["Upstream", "Metric", "Value", "Source"], [[str(p.get(k, "")) for k in keys] for p in published]


def _markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    rows = [[cell.replace("|", "\\|") for cell in row] for row in (header, *body)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(header))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    return [lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]]
