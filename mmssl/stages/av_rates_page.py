"""What the recipes write whose score is an error rate of each kind of input: results, tables and one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmssl.data.folds import read_folds, speaker_overlap
from mmssl.data.manifest import read_manifest
from mmssl.report.figures import ForestRow, forest
from mmssl.stages.av_page import Figure, Section, write_html
from mmssl.stages.av_report import protocol_section, warnings_of
from mmssl.stages.context import Context, versions
from mmssl.stages.probe_results import EXPLAINED, published_table, rate_cell, rates_table, write_results
from mmssl.stages.utterance_prepare import FOLDS, MANIFEST

Column = tuple[str, str, float]


def write_rates(
    context: Context,
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[Column],
    unit: str,
    notes: Sequence[str],
    published: Sequence[Mapping[str, Any]],
    *,
    what: str,
    how: str,
    sections: Sequence[Section],
) -> None:
    """Write error_rates.json, RESULTS.md and report.html.

    Args:
        context: the experiment.
        rows, columns, unit, notes, published: as `write_results`; the rows of the main encoder come first.
        what: is done, for the title.
        how: models are trained and selected, in words.
        sections: of the page, between the table and the protocol.
    """
    write_results(context, rows, columns, unit, notes, published)
    folds, clips = read_folds(context.data / FOLDS), read_manifest(context.data / MANIFEST)
    protocol = protocol_section(context, how)
    own = [note for note in notes if not any(note in text for text in protocol.texts)]
    parts = [_rates(rows, columns, [EXPLAINED.format(unit=unit), *own]), *sections]
    if published:
        parts.append(Section("Published numbers", [], *published_table(published)))
    (_, heading, _), main = columns[0], rows[0]["system"]
    said = "; ".join(f"{row['method']} {rate_cell(row, columns[0])}" for row in rows if row["system"] == main)
    write_html(
        context.exp_dir,
        f"{context.config['corpus']}: {what}",
        [f"{main}, {heading}: {said}."],
        [*parts, protocol],
        warnings=warnings_of(context, any(speaker_overlap(fold, clips) for fold in folds)),
        command=context.command,
        versions=versions(),
    )


def _rates(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], texts: Sequence[str]) -> Section:
    """The table of RESULTS.md, and its first column with intervals as a figure."""
    metric, heading, factor = columns[0]
    lines = []
    for row in rows:
        low, high = row["intervals"].get(metric, (None, None))
        mean = tuple(None if value is None else factor * value for value in (row["metrics"][metric], low, high))
        lines.append(ForestRow(f"{row['system']}: {row['method']}", mean, None, []))  # type: ignore[arg-type]
    words = "; ".join(f"{row['system']}, {row['method']}: {rate_cell(row, columns[0])}" for row in rows)
    drawn = forest(lines, heading, None, words)
    return Section("Error rates", texts, *rates_table(rows, columns), [Figure(drawn, f"{heading}, lower is better")])
