from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmssl.errors import StageError
from mmssl.report import build, summary
from mmssl.report.markdown import escape, render_markdown

Make = Callable[..., dict[str, Any]]


def tables(text: str) -> list[list[list[str]]]:
    """All Markdown tables: lists of rows of cells, the rule left out."""
    found, rows = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif rows:
            assert len({len(row) for row in rows}) == 1, f"ragged table: {rows}"
            found.append([rows[0], *rows[2:]])
            rows = []
    return found


def test_the_table_of_systems_has_the_numbers_of_the_json(make: Make) -> None:
    results = make()
    header, *rows = tables(render_markdown(results))[0]
    assert [row[0] for row in rows] == ["hubert", "fbank"]
    for row, system in zip(rows, reversed(results["systems"]), strict=True):
        uar, wa = system["metrics"]["uar"], system["metrics"]["wa"]
        cells = dict(zip(header, row, strict=True))
        assert cells["UAR % (folds)"] == f"{100 * uar['mean']:.1f} ± {100 * uar['std']:.1f}"
        assert cells["95 % (folds)"] == f"{100 * uar['fold_ci_low']:.1f} to {100 * uar['fold_ci_high']:.1f}"
        assert cells["UAR % (clips)"] == f"{100 * uar['pooled']:.1f}"
        assert cells["95 % (clips)"] == f"{100 * uar['ci_low']:.1f} to {100 * uar['ci_high']:.1f}"
        assert cells["WA %"] == f"{100 * wa['mean']:.1f} ± {100 * wa['std']:.1f}"


def test_the_fold_tables_have_the_numbers_of_the_json(make: Make) -> None:
    results = make()
    _, *rows = tables(render_markdown(results))[1]
    for row, fold in zip(rows, results["systems"][1]["folds"], strict=True):
        expected = [fold["name"], fold["test_groups"][0], "80", "20", "20", "0.001"]
        assert row == [*expected, *(f"{100 * fold['metrics'][m]:.1f}" for m in ("uar", "wa", "macro_f1"))]


def test_the_confusion_has_the_counts_of_the_json(make: Make) -> None:
    results = make()
    _, *rows = tables(render_markdown(results))[3]
    for row, counts in zip(rows, results["systems"][1]["confusion"], strict=True):
        assert [int(cell) for cell in row[1:-1]] == counts


def test_regression_has_its_own_metrics_and_no_confusion(make: Make) -> None:
    results = make(kind="regression")
    text = render_markdown(results)
    assert "Confusion" not in text
    header, *rows = tables(text)[0]
    value = results["systems"][1]["metrics"]["ccc"]
    assert rows[0][header.index("CCC (folds)")] == f"{value['mean']:.3f} ± {value['std']:.3f}"


def test_lower_is_better_for_rmse(make: Make) -> None:
    results = make(kind="regression") | {"primary_metric": "rmse"}
    assert [s["name"] for s in summary.ranked(results)] == ["fbank", "hubert"]


def test_protocol_command_and_skipped_count_are_there(make: Make) -> None:
    results = make()
    text = render_markdown(results)
    assert "```\n./run.sh upstream=hubert\n```" in text
    assert "Speaker-disjoint" in text
    assert "Count: 0." in text
    results["skipped"] = [{"id": "a|b", "path": "x_y.wav", "reason": "<empty>"}]
    text = render_markdown(results)
    assert "Count: 1." in text
    assert "> **1 clip was skipped and is in no score.**" in text
    assert tables(text)[-1][1] == ["a\\|b", "x\\_y.wav", "&lt;empty&gt;"]


def test_escape_and_fence() -> None:
    assert escape("a|b\nc <i> `x` *y*") == "a\\|b c &lt;i&gt; \\`x\\` \\*y\\*"


def test_a_command_with_backticks_stays_in_its_block(make: Make) -> None:
    text = render_markdown(make() | {"command": "run ```x"})
    assert "````\nrun ```x\n````" in text


@pytest.mark.parametrize("shape", [{"folds": 1, "systems": ("one",)}, {"folds": 40}, {"kind": "regression"}])
def test_every_shape_renders(make: Make, shape: dict[str, Any]) -> None:
    text = render_markdown(make(**shape))
    assert "nan" not in text.lower()
    assert "None" not in text
    tables(text)


def test_one_fold_leads_with_the_interval_over_clips(make: Make) -> None:
    results = make(folds=1)
    value = results["systems"][1]["metrics"]["uar"]
    sentence = summary.headline(results)[0]
    assert f"{100 * value['pooled']:.1f} % UAR (over all test clips, 95 % interval over clips" in sentence


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.4, 0.6, "lies above it"), (0.3, 0.5, "includes it"), (0.1, 0.2, "lies below it")],
)
def test_the_interval_is_held_against_chance(make: Make, low: float, high: float, words: str) -> None:
    results = make(systems=("one",))
    results["systems"][0]["metrics"]["uar"] |= {"fold_ci_low": low, "fold_ci_high": high}
    assert words in " ".join(summary.headline(results))


def test_the_terminal_table_is_aligned_and_complete(make: Make) -> None:
    results = make(systems=("fbank", "a much longer name\nwith a line break"))
    lines = summary.summary_table(results).splitlines()
    header, rule, best, other = lines[:4]
    assert rule == "-" * max(len(header), len(best), len(other))
    assert best.startswith("a much longer name with a line break")
    value = results["systems"][1]["metrics"]["uar"]
    assert f"{100 * value['mean']:.1f} ± {100 * value['std']:.1f}" in best
    column = header.index("interface")
    assert best[column:].startswith("weighted_sum")
    assert other[column:].startswith("last_layer")
    assert "Chance: 33.3 %." in lines[-3]
    assert lines[-1] == "No clip was skipped."


def test_write_report_writes_both_and_nothing_else(make: Make, tmp_path: Path) -> None:
    paths = build.write_report(make(), tmp_path / "new")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["RESULTS.md", "report.html"]
    assert paths.html.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert paths.markdown.read_text(encoding="utf-8").startswith("# Results: mini ser")


def test_a_failed_write_leaves_the_old_report(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = build.write_report(make(), tmp_path)
    before = paths.markdown.read_text(encoding="utf-8")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        build.write_report(make(seed=1), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["RESULTS.md", "report.html"]
    assert paths.markdown.read_text(encoding="utf-8") == before


@pytest.mark.parametrize(("change", "words"), [({"schema": 2}, "schema 2"), ({"systems": []}, "no system")])
def test_results_of_another_kind_are_refused(make: Make, tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(StageError, match=words):
        build.write_report(make() | change, tmp_path)
    assert not list(tmp_path.iterdir())
