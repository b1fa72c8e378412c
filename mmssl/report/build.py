"""Write the report of an experiment: RESULTS.md and one HTML page, both from results.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmssl.files import replace_file
from mmssl.report.html import render_html
from mmssl.report.markdown import render_markdown
from mmssl.report.summary import summary_table

__all__ = ["ReportPaths", "summary_table", "write_report"]


@dataclass(frozen=True)
class ReportPaths:
    """Where a report was written.

    Attributes:
        markdown: RESULTS.md.
        html: report.html, one file that needs no network.
    """

    markdown: Path
    html: Path


def write_report(results: Mapping[str, Any], folder: str | Path) -> ReportPaths:
    """Write RESULTS.md and report.html, each atomically; both are rendered before either is written.

    Args:
        results: the content of `results.json`, schema 1.
        folder: made if it does not exist.

    Raises:
        StageError: the results are of another schema or hold no system.
    """
    target = Path(folder)
    paths = ReportPaths(target / "RESULTS.md", target / "report.html")
    texts = {paths.markdown: render_markdown(results), paths.html: render_html(results)}
    target.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        _write(path, text)
    return paths


def _write(path: Path, text: str) -> None:
    with replace_file(path) as file:
        file.write(text.encode("utf-8"))
