from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmssl.errors import CheckpointError, InputError
from mmssl.training.speaker_calibration import (
    CALIBRATION,
    Calibration,
    fit_calibration,
    read_calibration,
    weights_sha256,
    write_calibration,
)
from mmssl.training.speaker_files import WEIGHTS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / WEIGHTS).write_bytes(b"weights")
    return tmp_path


def gaussian_trials(number: int = 20000) -> tuple[np.ndarray, np.ndarray]:
    """Scores whose log-likelihood ratio is known: N(0.6, 0.1) and N(0.2, 0.1) -> (0.4 / 0.01) (s - 0.4)."""
    generator = np.random.default_rng(0)
    labels = generator.random(number) < 0.3
    return np.where(labels, 0.6, 0.2) + 0.1 * generator.normal(size=number), labels


@pytest.mark.parametrize("prior", [0.5, 0.05])
def test_the_fit_finds_the_true_log_likelihood_ratio(prior: float) -> None:
    scores, labels = gaussian_trials()
    found = fit_calibration(scores, labels, "", prior)
    assert found.scale == pytest.approx(40, rel=0.1)
    assert found.offset == pytest.approx(-16, rel=0.1)
    # Bayes' threshold: where the ratio is (1 - P) / P
    assert found.llr(found.threshold) == pytest.approx(np.log((1 - prior) / prior))
    assert found.threshold == pytest.approx(0.4 + np.log((1 - prior) / prior) / 40, abs=0.01)
    assert found.trials == 20000
    assert found.same(found.threshold)
    assert not found.same(np.nextafter(found.threshold, -1))


def test_scores_that_fall_with_the_same_speaker_are_refused() -> None:
    scores, labels = gaussian_trials(200)
    with pytest.raises(InputError, match="cannot tell speakers apart"):
        fit_calibration(-scores, labels, "")


def test_a_calibration_is_read_back(folder: Path) -> None:
    assert read_calibration(folder) is None
    written = Calibration(0.4, 40.0, -16.0, weights_sha256(folder), prior=0.01, trials=7)
    write_calibration(folder, written)
    assert read_calibration(folder) == written


def test_other_weights_are_refused(folder: Path) -> None:
    write_calibration(folder, Calibration(0.4, 40.0, -16.0, weights_sha256(folder)))
    (folder / WEIGHTS).write_bytes(b"other weights")
    with pytest.raises(CheckpointError, match="fitted to other weights"):
        read_calibration(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": "high"}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"scale": 0.0}, "scale"),
        ({"trials": 1.5}, "trials"),
        ({"measure": "plda"}, "plda"),
        ({"offset": None}, "offset"),
    ],
)
def test_values_that_cannot_be_are_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    path = write_calibration(folder, Calibration(0.4, 40.0, -16.0, weights_sha256(folder)))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        read_calibration(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"threshold": 0.4}'])
def test_a_damaged_file_is_refused(folder: Path, text: str) -> None:
    (folder / CALIBRATION).write_text(text)
    with pytest.raises(CheckpointError, match=CALIBRATION):
        read_calibration(folder)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        weights_sha256(tmp_path)
