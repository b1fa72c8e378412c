"""The pages and the table of pretraining runs, from results made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmssl.errors import StageError
from mmssl.report.pretraining import (
    curves,
    pretraining_html,
    pretraining_markdown,
    pretraining_summary,
    write_pretraining_report,
)
from mmssl.report.pretraining_health import findings, indicators
from mmssl.report.pretraining_table import BEGIN, END, document_with, read_results, render_table


def history(losses: list[float], **more: float) -> list[dict[str, float]]:
    return [
        {"step": 10.0 * k, "loss": loss, "contrast/loss": loss, "contrast/ln_n": 3.0, "learning_rate": 1e-3, **more}
        for k, loss in enumerate(losses, 1)
    ]


def results(losses: tuple[float, ...] = (3.0, 2.5, 2.0, 1.5), **changes: Any) -> dict[str, Any]:
    run = {
        "iteration": 1,
        "steps": 40,
        "steps_per_second": 2.5,
        "warnings": [],
        "targets": None,
        "held_out": {
            "match/accuracy": {"mean": 0.75, "low": 0.7, "high": 0.8, "batches": 4, "clips": 20},
            "loss": {"mean": 1.6, "low": 1.55, "high": 1.65, "batches": 4, "clips": 20},
        },
        "history": history(
            list(losses), **{"contrast/representation_spread": 0.5, "contrast/representation_rank": 9.0}
        ),
    }
    scores = [
        {"system": name, "stream": "audio", "uar": value, "low": value - 0.1, "high": value + 0.1, "clips": 20}
        for name, value in (("trained", 0.6), ("untrained", 0.4), ("log-mel", 0.5))
    ]
    whole = {
        "schema": 1,
        "kind": "pretraining",
        "name": "x",
        "objective": "wav2vec2",
        "upstream": "wav2vec2",
        "init": None,
        "corpus": {"name": "mini <b>", "clips": 10, "held_out": 2, "hours": 0.25},
        "iterations": [run],
        "probe": {"label": "emotion", "metric": "uar", "scores": scores},
        "pretrain": {"max_steps": 40, "batch_size": None},
        "command": "./run.sh objective=wav2vec2",
        "versions": {"torch": "2"},
    }
    return whole | changes


def test_page_has_every_curve_and_escapes_what_it_is_given() -> None:
    page = pretraining_html(results())
    assert page.count("<figure>") == 5
    assert "mini &lt;b&gt;" in page
    assert "<b>" not in page
    assert "contrast/loss; dashed: ln(N)" in page
    assert "60.0 %" in page
    assert "0.7000 to 0.8000" in page
    assert page.index("1.6000") < page.index("match/accuracy")
    assert "http" not in page.replace("http-equiv", "")
    assert "warning" not in page.split("</style>")[1]


def test_losses_come_first_and_values_that_are_not_finite_are_left_out() -> None:
    rows = history([3.0, float("nan"), 1.0])
    names = [figure["text"] for figure in curves(rows)]
    assert names[0] == "loss"
    assert names[1].startswith("contrast/loss")
    assert names[-1] == "learning_rate"


def test_collapse_is_said_in_words() -> None:
    assert findings(history([3.0, 2.0, 1.5, 1.0])) == []
    assert any("did not fall" in text for text in findings(history([1.0, 1.0, 1.0, 1.1])))
    rising = history([1.0, 1.0, 1.0, 1.1])
    entropies = [{"dino/weight": 1.0, "dino/teacher_entropy": value} for value in (0.1, 0.2, 0.3, 0.5)]
    assert findings([row | more for row, more in zip(rising, entropies, strict=True)]) == []
    slower = [row | {"dino/teacher_entropy": 0.01 * k + 0.1} for k, row in enumerate(rising)]
    assert "the loss beyond the teacher's entropy did not fall: 0.9000" in findings(slower)[0]
    assert any("ln(N)" in text for text in findings(history([3.5, 3.2, 3.1, 2.995])))
    flat = findings(history([3.0, 2.0, 1.5, 1.0], **{"x/representation_spread": 1e-5, "x/representation_rank": 1.0}))
    assert len(flat) == 2
    assert "a collapse" in flat[0]
    bad = results((1.0, 1.0, 1.0, 1.2))
    assert 'class="warning"' in pretraining_html(bad)
    assert "WARNING" in pretraining_summary(bad)


def test_warnings_of_the_trainer_are_shown() -> None:
    told = results()
    told["iterations"][0]["warnings"] = ["codes collapsed at step 30"]
    assert "codes collapsed at step 30" in pretraining_html(told)


def test_a_label_file_is_named_by_what_was_clustered() -> None:
    made = {"clusters": 100, "source": "previous", "stream": "fusion", "layer": 2, "usage_entropy": 0.96}
    told = results()
    told["iterations"][0]["targets"] = {**made, "quality": {"phone_purity": 0.5, "pnmi": 0.4}}
    expected = "100 clusters of previous (fusion, layer 2), entropy 0.96, purity 0.50, PNMI 0.40"
    assert expected in pretraining_html(told)
    assert expected in pretraining_markdown(told)
    del made["stream"]
    told["iterations"][0]["targets"] = {**made, "quality": None}
    assert "100 clusters of previous (layer 2), entropy 0.96" in pretraining_html(told)


def test_files_and_other_kinds(tmp_path: Path) -> None:
    write_pretraining_report(results(), tmp_path)
    text = (tmp_path / "RESULTS.md").read_text()
    assert "| trained | audio | 60.0 % | 50.0 % to 70.0 % | 20 |" in text
    assert (tmp_path / "report.html").is_file()
    unlabelled = results(probe={"label": None, "scores": []})
    write_pretraining_report(unlabelled, tmp_path)
    assert "No probe" in (tmp_path / "RESULTS.md").read_text()
    with pytest.raises(StageError, match="no results of recipes/ssl"):
        pretraining_html({"schema": 1, "systems": []})


def test_one_table_over_all_runs(tmp_path: Path) -> None:
    for name, objective in (("b", "wav2vec2"), ("a", "mae")):
        (tmp_path / "exp" / name).mkdir(parents=True)
        (tmp_path / "exp" / name / "results.json").write_text(json.dumps(results(objective=objective, name=name)))
    (tmp_path / "exp" / "other").mkdir()
    (tmp_path / "exp" / "other" / "results.json").write_text('{"schema": 1}')
    found = read_results([tmp_path])
    assert [one["objective"] for one in found] == ["mae", "wav2vec2"]
    table = render_table(found)
    row = "| mini <b>, emotion | 3.000 -> 1.500 | 1.600, 75.0 % | 2.50 | audio | 40.0 | 60.0 | 50.0 | 0.50, 9.00 |"
    assert row in table
    of_a_teacher = results()
    of_a_teacher["iterations"][-1]["held_out"]["dino/divergence"] = {"mean": 0.75, "low": 0.7, "high": 0.8}
    assert "| 1.600, divergence 0.750, 75.0 % |" in render_table([of_a_teacher])
    text = document_with(table, None)
    assert document_with(table, text) == text
    assert document_with("new", f"before\n{BEGIN}\nold\n{END}\nafter") == f"before\n{BEGIN}\nnew\n{END}\nafter"
    with pytest.raises(StageError, match="needs the lines"):
        document_with(table, "no marks")


def test_indicators_are_the_last_values() -> None:
    rows = history([2.0, 1.0], **{"x/accuracy": 0.1})
    rows[-1]["x/accuracy"] = 0.9
    assert indicators(rows) == {"x/accuracy": 0.9}


def test_the_probe_begins_with_the_untrained_encoder_and_what_stands_still_is_not_drawn() -> None:
    rows = [
        {
            "step": 10.0,
            "loss": 2.0,
            "x/weight": 1.0,
            "probe/knn_untrained": 0.3,
            "probe/knn": 0.4,
            "probe/chance": 0.25,
        },
        {"step": 20.0, "loss": 1.0, "x/weight": 1.0, "probe/knn": 0.5, "probe/chance": 0.25},
    ]
    drawn = curves(rows)
    assert [figure["text"] for figure in drawn] == ["loss", "probe/knn; dashed: the commonest class"]
    assert "from 0.3 to 0.5" in str(drawn[1]["figure"])
    assert [figure["text"] for figure in curves(rows[:1])] == ["probe/knn; dashed: the commonest class"]
