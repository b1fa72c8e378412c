"""The page of recognition and verification by sound and pictures: which errors it marks, and that it escapes text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup

from mmssl.data.folds import Fold, write_folds
from mmssl.data.manifest import write_manifest
from mmssl.metrics.sequences import edit_distance
from mmssl.stages.av_decoded import alignment, decoded_section
from mmssl.stages.av_extract import FEATURES
from mmssl.stages.av_pretrain import RECORD
from mmssl.stages.av_rates_page import write_rates
from mmssl.stages.av_verify import COLUMNS, _det_section
from mmssl.stages.av_view_jobs import ViewResult
from mmssl.stages.context import Context
from mmssl.stages.files import write_json
from mmssl.stages.trial_scores import det_curve
from mmssl.stages.utterance_prepare import CORPUS, FOLDS, MANIFEST, SKIPPED
from mmssl.types import Clip

SYMBOLS = st.lists(st.sampled_from("AB|"), max_size=9)
ODD = """<script>alert("1")</script> & 'x' | {{ 7 * 7 }}"""


@settings(max_examples=60, deadline=None)
@given(SYMBOLS, SYMBOLS)
def test_alignments_hold_both_sequences_and_the_fewest_errors(reference: list[str], hypothesis: list[str]) -> None:
    pairs = alignment(reference, hypothesis)
    assert [a for a, _ in pairs if a is not None] == reference
    assert [b for _, b in pairs if b is not None] == hypothesis
    assert (None, None) not in pairs
    numbers = [["AB|".index(symbol) for symbol in side] for side in (reference, hypothesis)]
    assert sum(a != b for a, b in pairs) == edit_distance(*numbers)


def decoded(reference: str, hypothesis: str) -> list[str]:
    """The cells of one clip, without what is around them."""
    section = decoded_section("t", [{"id": "c", "reference": reference, "hypothesis": hypothesis}])
    (row,) = section.rows
    return [row[1], *(re.fullmatch('<div class="wrap left">(.*)</div>', cell).group(1) for cell in row[2:])]  # type: ignore[union-attr]


def test_what_is_wrong_is_marked() -> None:
    assert decoded("A B | C", "A B | C") == ["0 of 4", "AB C", "AB C"]
    # replaced, missing, too many, a space that is missing, and nothing at all
    assert decoded("A B | C", "A X | C") == ["1 of 4", "A<mark>B</mark> C", "A<mark>X</mark> C"]
    assert decoded("A B | C", "A | C") == ["1 of 4", "A<mark>B</mark> C", "A C"]
    assert decoded("A | C", "A B A | C") == ["2 of 3", "A C", "<mark>AB</mark>A C"]
    assert decoded("A | C", "A C") == ["1 of 3", "A<mark> </mark>C", "AC"]
    assert decoded("A | C", "") == ["3 of 3", "<mark>A C</mark>", "–"]


def test_the_worst_and_the_middle_are_shown() -> None:
    # clip k of 40 has k errors in 40 symbols
    rows = [
        {"id": f"{k:02}", "reference": " ".join("A" * 40), "hypothesis": " ".join("A" * (40 - k) + "B" * k)}
        for k in range(40)
    ]
    shown = [row[0] for row in decoded_section("t", rows).rows]
    assert shown == ["39", "38", "37", "36", "35", "22", "21", "20", "19", "18"]
    # few clips are all shown, and none of eleven twice
    assert len(decoded_section("t", rows[:10]).rows) == 10
    eleven = [row[0] for row in decoded_section("t", rows[:11]).rows]
    assert eleven == ["10", "09", "08", "07", "06", "05", "04", "03", "02", "01"]


def result(title: str, view: str, role: str, seed: int) -> ViewResult:
    rng = np.random.default_rng(seed)
    target = np.arange(60) % 2 == 0
    record = {"title": title, "role": role}
    found = {
        "metrics": {"eer": 0.25, "min_dcf_p01": 0.5, "min_dcf_p05": 0.5},
        "intervals": {"eer": (0.125, 0.375)} if seed else {},
        "learning_rate": 0.1,
        "step": 3,
        "det": det_curve(rng.normal(size=60) + target, target),
    }
    return ViewResult(record, view, Fold("f", ("a",), ("b",), ("c",)), view, Path(), found)


def page_of(folder: Path, results: list[ViewResult], sections: list[Any]) -> str:
    protocol = {"scheme": "predefined", "notes": ODD, "group": "speaker", "dev_groups": 1, "name": ODD}
    context = Context(folder, "x", {"corpus": ODD, "protocol": protocol}, (), command=f"./run.sh exp={ODD}")
    write_manifest(context.data / MANIFEST, [Clip(name, audio=f"{name}.wav", speaker=name) for name in "abc"])
    write_folds(context.data / FOLDS, [Fold("f", ("a",), ("b",), ("c",))])
    write_json(context.data / SKIPPED, [{"id": "d", "path": "d", "reason": ODD}])
    write_json(context.data / CORPUS, {})
    write_json(context.exp_dir / FEATURES, {})
    write_json(context.exp_dir / RECORD, {"trained": False})
    published = [{"system": ODD, "metric": ODD, "value": 3.1, "source": ODD}]
    rows = [each.row() for each in results]
    write_rates(context, rows, COLUMNS, "clips", [ODD, f"{ODD}!"], published, what=ODD, how=ODD, sections=sections)
    return (context.exp_dir / "report.html").read_text()


def test_odd_names_and_texts_are_escaped(tmp_path: Path) -> None:
    results = [result(ODD, view, "main", k) for k, view in enumerate(("audio", "both"))]
    results.append(result(f"{ODD}2", "audio", "plain", 2))
    clips = [{"id": ODD, "reference": "<b> & | <unseen>", "hypothesis": "<i> &"}]
    page = page_of(tmp_path, results, [_det_section(results), decoded_section(ODD, clips)])
    assert "<script" not in page
    assert "<unseen>" not in page
    assert "&lt;b&gt;" in page
    assert "{{ 7 * 7 }}" in page
    # tags are closed where they should be: all marks hold escaped text
    assert all(re.fullmatch("[^<>]+", text) for text in re.findall("<mark>(.*?)</mark>", page))
    assert page.count(f'<th scope="row">{Markup.escape(ODD)}</th>') == 2 + 1 + 1
    # a note that the protocol has is said there alone
    assert page.count(f"<p>{Markup.escape(ODD)}!</p>") == 1
    # lines of encoders that nobody trained are dashed, in the figure and in its legend
    assert page.count('class="line mean s1 dashed"') == 2
    markdown = (tmp_path / "exp" / "x" / "RESULTS.md").read_text()
    assert ODD.replace("|", "\\|") in markdown


def test_models_without_a_curve_are_counted(tmp_path: Path) -> None:
    results = [result("l3", "audio", "main", 0), result("l3", "video", "main", 1)]
    del results[1].found["det"]  # type: ignore[attr-defined]
    section = _det_section(results)
    assert section.texts[1].startswith("1 models have no curve")
    assert [figure.text.count("<li>") for figure in section.figures] == [1]
    del results[0].found["det"]  # type: ignore[attr-defined]
    section = _det_section(results)
    assert section.texts[0].startswith("2 models have no curve")
    assert "2 models have no curve" in page_of(tmp_path, results, [section])
