"""What turns a speaker model's cosine into a decision: `calibration.json` beside its weights."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mmssl.downstream.fusion import ScoreFusion
from mmssl.errors import CheckpointError, InputError
from mmssl.files import replace_file
from mmssl.metrics.verification import bayes_threshold
from mmssl.training.speaker_files import WEIGHTS

CALIBRATION = "calibration.json"
MEASURE = "cosine"
_NUMBERS = ("threshold", "scale", "offset", "prior")


@dataclass(frozen=True)
class Calibration:
    """Threshold and affine calibration of one model's scores.

    Attributes:
        threshold: two clips are of one speaker where their score is at or above it.
        scale, offset: scale * score + offset is the log-likelihood ratio (natural logarithm).
        weights_sha256: of the model's `model.safetensors`: other weights have other scores.
        measure: of two embeddings; "cosine".
        prior: P of a target trial for which the threshold was chosen.
        trials: how many development trials it was fitted on.
    """

    threshold: float
    scale: float
    offset: float
    weights_sha256: str
    measure: str = MEASURE
    prior: float = 0.5
    trials: int = 0

    def llr(self, score: float) -> float:
        """Log-likelihood ratio of a score."""
        return self.scale * score + self.offset

    def same(self, score: float) -> bool:
        """Whether a score says "one speaker"."""
        return score >= self.threshold


def fit_calibration(
    scores: npt.ArrayLike, is_target: npt.ArrayLike, weights_sha256: str, prior: float = 0.5
) -> Calibration:
    """Fit scale and offset by logistic regression (`ScoreFusion`); the threshold is Bayes' at the prior.

    Args:
        scores: (n,) cosines of development trials: never of trials that are reported.
        is_target: (n,) bool, or 0 and 1.
        weights_sha256: of the model that gave them, see `weights_sha256`.
        prior: P of a target trial; misses and false alarms cost the same.

    Raises:
        InputError: shapes do not fit, a class has no trial, or the scores do not grow with "the same speaker".
        ConfigError: `prior` does not lie in (0, 1).
    """
    fusion = ScoreFusion(prior).fit(scores, is_target)
    scale, offset = float(fusion.weights[0]), fusion.offset
    if not scale > 0:
        raise InputError(
            f"The scores of target trials are not above the others (fitted scale {scale:.3g}): these scores cannot "
            "tell speakers apart. Check the labels of the trials, or train on."
        )
    threshold = (bayes_threshold(prior) - offset) / scale
    return Calibration(threshold, scale, offset, weights_sha256, MEASURE, prior, len(np.asarray(scores)))


def weights_sha256(folder: str | Path) -> str:
    """Checksum of the weights in a folder of `save_speaker_model`.

    Raises:
        CheckpointError: there are none.
    """
    path = Path(folder) / WEIGHTS
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(
            f"The weights {path} cannot be read ({error.strerror}): copy the whole folder."
        ) from error


def write_calibration(folder: str | Path, calibration: Calibration) -> Path:
    """Write `calibration.json` into a model's folder, whole or not at all; returns its path."""
    path = Path(folder) / CALIBRATION
    with replace_file(path) as file:
        file.write((json.dumps(asdict(calibration), indent=2) + "\n").encode())
    return path


def read_calibration(folder: str | Path) -> Calibration | None:
    """The calibration in a model's folder; None where there is none.

    Raises:
        CheckpointError: it is damaged, of another measure, or of other weights than those in the folder.
    """
    path = Path(folder) / CALIBRATION
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Calibrate again, or delete it.") from error
    names = [field.name for field in fields(Calibration)]
    if not isinstance(given, dict) or any(name not in given for name in names):
        raise CheckpointError(f"{path} is damaged: it must have {', '.join(names)}. Calibrate again, or delete it.")
    wrong = [name for name in _NUMBERS if not _is_number(given[name])]
    if not isinstance(given["trials"], int) or not isinstance(given["weights_sha256"], str):
        wrong.append("trials or weights_sha256")
    if wrong or not given["scale"] > 0:
        raise CheckpointError(f"{path} holds values that cannot be: {', '.join(wrong) or 'scale'}. Calibrate again.")
    if given["measure"] != MEASURE:
        raise CheckpointError(f"{path} is for the measure {given['measure']!r}; this version scores by {MEASURE}.")
    found = weights_sha256(folder)
    if given["weights_sha256"] != found:
        raise CheckpointError(
            f"{path} was fitted to other weights (sha256 {given['weights_sha256'][:12]}..., the folder holds "
            f"{found[:12]}...): its threshold means nothing here. Calibrate this model, or delete the file to get "
            "scores without decisions."
        )
    return Calibration(**{name: given[name] for name in names})


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
