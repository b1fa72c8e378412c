"""The page of recipes/spk: tables, DET curves on normal-deviate axes, and text that stays text."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest

from mmssl.errors import StageError
from mmssl.report.speaker import KIND, write_speaker_report
from mmssl.report.speaker_figures import DetCurve, det_plot

NORMAL = NormalDist()
METRICS = {
    "eer": 0.1234,
    "min_dcf_p01": 0.5,
    "min_dcf_p05": 0.4,
    "cllr": 0.6,
    "min_cllr": 0.55,
    "act_dcf_p01": 0.7,
    "act_dcf_p05": 0.8,
}


def row(method: str, eer: float, baseline: bool = False) -> dict[str, Any]:
    return {
        "list": "mine",
        "method": method,
        "baseline": baseline,
        "dev_eer": eer,
        "metrics": METRICS | {"eer": eer},
        "intervals": {"eer": [eer - 0.05, eer + 0.05]},
        "det": [[1.0, 0.1, 0.0], [0.0, 0.1, 1.0]],
    }


def results() -> dict[str, Any]:
    return {
        "schema": 1,
        "kind": KIND,
        "name": "try <b>",
        "corpus": {"name": "mine", "clips": 10, "speakers": 4, "hours": 0.5},
        "protocol": {"notes": "", "given": False},
        "trials": {"mine": {"trials": 8, "targets": 4, "speakers": 3, "clips": 6, "notes": ["2 trials | repeat."]}},
        "skipped": [],
        "training": {
            "system": "ecapa_tdnn on fbank",
            "trained_parameters": 123456,
            "clips": 5,
            "speakers": 2,
            "steps": 20,
            "seconds": 3.0,
            "best": {"step": 10, "stage": 1, "dev_eer": 0.2},
            "dev_trials": 7,
            "history": [
                {
                    "stage": 0,
                    "step": 10,
                    "loss": 3.0,
                    "accuracy": 0.1,
                    "margin": 0.0,
                    "learning_rate": 0.1,
                    "dev_eer": 0.4,
                },
                {
                    "stage": 1,
                    "step": 10,
                    "loss": 2.0,
                    "accuracy": 0.5,
                    "margin": 0.2,
                    "learning_rate": 0.1,
                    "dev_eer": 0.2,
                },
            ],
        },
        "scores": {
            "rows": [row("cosine", 0.1234), row("plda", 0.2), row("log_mel", 0.3, True)],
            "chosen": "cosine",
            "margins": [{"list": "mine", "baseline": "log_mel", "eer": 0.1766, "low": 0.1, "high": 0.25}],
            "dev": {"trials": 7, "speakers": 2},
            "cohort": {"clips": 5, "speakers": 2},
            "calibration": None,
            "warnings": ["no <calibration>"],
        },
        "settings": {"encoder": {"name": "ecapa_tdnn"}},
        "command": "./run.sh 'a<b'",
        "versions": {"torch": "2"},
    }


def test_the_report_says_what_was_measured(tmp_path: Path) -> None:
    said = write_speaker_report(results(), tmp_path)
    text = (tmp_path / "RESULTS.md").read_text()
    assert "mine: EER 12.34 [7.34 to 17.34] % (ecapa_tdnn on fbank, cosine), against 30.00 [25.00 to 35.00] %" in text
    assert "| cosine (chosen) | 12.34 [7.34 to 17.34] | 0.500 | 0.700 | 0.400 | 0.800 | 0.600 | 0.550 |" in said
    assert (
        "| scores | EER % | minDCF (P .01) | actDCF (P .01) | minDCF (P .05) | actDCF (P .05) | Cllr | min Cllr |"
        in text
    )
    assert "| mine | baseline: mean log-mel, cosine | 17.7 | 10.0 to 25.0 |" in text
    assert "kept is step 10 of stage 2, EER 20.00 % on 7 trials" in text
    assert "2 trials \\| repeat." in text
    page = (tmp_path / "report.html").read_text()
    assert "<b>" not in page
    assert "no &lt;calibration&gt;" in page
    assert "<script" not in page
    # the second stage goes on where the first one ended
    assert "from 3 to 2" in page


def test_other_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="'pretraining' of schema 1"):
        write_speaker_report(results() | {"kind": "pretraining"}, tmp_path)


def path_of(markup: str) -> list[tuple[float, float]]:
    found = re.search(r'<path class="line[^"]*" d="M([^"]+)"', markup)
    assert found is not None
    return [(float(x), float(y)) for x, y in (place.split() for place in found[1].split("L"))]


def test_gaussian_scores_give_a_straight_line() -> None:
    shifts = [k / 10 for k in range(-8, 23)]
    points = [(NORMAL.cdf(-s), NORMAL.cdf(s - 1.5)) for s in shifts]
    places = path_of(det_plot([DetCurve("g", points, 0)], "x"))
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(places)]
    # equal spreads: downwards on the page as fast as to the right
    assert slopes == pytest.approx([1.0] * len(slopes), rel=0.05)


@pytest.mark.parametrize("points", [[(1.0, 0.0), (0.0, 0.0), (0.0, 1.0)], [(1.0, 0.0), (0.8, 0.9), (0.0, 1.0)]])
def test_extreme_curves_stay_inside(points: list[tuple[float, float]]) -> None:
    markup = det_plot([DetCurve("<x>", points, 9, True)], "x")
    assert "&lt;x&gt;" in markup
    assert all(40 <= x <= 410 and 20 <= y <= 400 for x, y in path_of(markup))
