"""The batched engine leaves the files of an experiment as the ordinary trainer leaves them, but for rounding."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., tuple[int, str, str]]
WORDS = ("upstream=fbank", "compare=[]", "train.learning_rates=[1e-3,1e-2]")


def almost(one: Any, other: Any, where: str = "") -> None:
    """Equal in every key, name and count, and in numbers to rounding."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            almost(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for k, pair in enumerate(zip(one, other, strict=True)):
            almost(*pair, f"{where}/{k}")
    elif isinstance(one, float):
        assert one == pytest.approx(other, abs=1e-3), where
    else:
        assert one == other, where


def test_both_engines_write_the_same(run: Run, recipe: Path) -> None:
    for engine in ("lightning", "batched"):
        code, out, err = run(*WORDS, f"train.engine={engine}", f"exp={engine}", "--stop_stage", "3")
        assert code == 0, out + err
    folds = {}
    for engine in ("lightning", "batched"):
        paths = sorted((recipe / "exp" / engine / "systems" / "fbank" / "folds").glob("*/*"))
        assert {p.name for p in paths} == {"model.safetensors", "model.yaml", "predictions.jsonl", "result.json"}
        folds[engine] = [json.loads(p.read_text()) for p in paths if p.name == "result.json"]
        for record in folds[engine]:
            del record["fingerprint"]
    assert len(folds["batched"]) == 3
    almost(folds["batched"], folds["lightning"])
    models = [sorted((recipe / "exp" / e).rglob("model.yaml")) for e in ("lightning", "batched")]
    for one, other in zip(*models, strict=True):
        lines = [path.read_text().splitlines() for path in (one, other)]
        # the checksum of the weights, which are equal but for rounding
        assert sum(a != b for a, b in zip(*lines, strict=True)) <= 1


def test_a_wrong_engine_is_refused(run: Run) -> None:
    code, _, err = run(*WORDS, "train.engine=fast")
    assert code == 1
    assert "train.engine must be one of batched, lightning; got 'fast'" in err
