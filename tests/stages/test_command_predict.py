from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
import yaml

from mmssl.stages.cli import main
from mmssl.stages.exporting import build_task, save_model
from mmssl.upstreams.base import load_upstream


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """Two folds of one system that says "loud" of what is loud."""
    streams = load_upstream("fbank").spec.streams["audio"]
    description: dict[str, Any] = {
        "upstream": {"_target_": "fbank"},
        "upstream_seed": 0,
        "stream": "audio",
        "sample_rate": 16000,
        "interface": {"name": "last_layer", "kwargs": {}},
        "hidden_sizes": list(streams.hidden_sizes),
        "hop_lengths": list(streams.hop_lengths),
        "head": {"name": "linear", "kwargs": {}},
        "task": "classification",
        "classes": ["quiet", "loud"],
        "label": "level",
    }
    for fold in ("a", "b"):
        task = build_task(description)
        save_model(tmp_path / "exp" / "systems" / "fbank" / "folds" / fold, task, description)
    return tmp_path / "exp"


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    path = tmp_path / "noise.wav"
    soundfile.write(path, 0.1 * torch.randn(8000, generator=torch.Generator().manual_seed(0)).numpy(), 16000)
    return path


def test_the_table_has_a_row_per_file(experiment: Path, wav: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(experiment), str(wav), str(wav)]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["file", "label", "quiet", "loud"]
    assert rows[0] == rows[1]
    path, label, *probabilities = rows[0].split()
    assert path == str(wav)
    assert label == ("quiet" if float(probabilities[0]) > float(probabilities[1]) else "loud")
    assert sum(map(float, probabilities)) == pytest.approx(1, abs=0.002)
    assert rows[-1] == "System fbank, mean over the models of 2 folds."


def test_json_has_one_object_per_file(experiment: Path, wav: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(experiment), str(wav), "--json", "--system", "fbank"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert found["path"] == str(wav)
    assert found["label"] == max(found["probabilities"], key=found["probabilities"].get)


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_an_unreadable_file_does_not_stop_the_others(
    experiment: Path, wav: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: list[str]
) -> None:
    (tmp_path / "text.wav").write_text("no sound")
    soundfile.write(tmp_path / "short.wav", [0.1, 0.2], 16000)
    bad = [str(tmp_path / name) for name in ("text.wav", "absent.wav", "short.wav")]
    assert main(["predict", str(experiment), bad[0], str(wav), *bad[1:], *form]) == 1
    captured = capsys.readouterr()
    messages = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    for path, message in zip(bad, messages, strict=False):
        assert path in message
    assert messages[-1] == "error: 3 of 4 files could not be labelled."
    assert "Traceback" not in captured.err
    assert str(wav) in captured.out
    if form:
        assert ["error" in json.loads(line) for line in captured.out.splitlines()] == [True, False, True, True]


def test_a_wrong_folder_is_one_message(tmp_path: Path, wav: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(tmp_path / "exp"), str(wav)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: The folder")
    assert len(captured.err.splitlines()) == 1


def test_export_then_predict(experiment: Path, wav: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["export", str(experiment), str(out)]) == 0
    assert "2 models" in capsys.readouterr().out
    assert yaml.safe_load((out / "model.yaml").read_text())["system"] == "fbank"
    assert main(["predict", str(experiment), str(wav), "--json"]) == 0
    assert main(["predict", str(out), str(wav), "--json"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    assert main(["export", str(experiment), str(out)]) == 1
    assert "not an empty folder" in capsys.readouterr().err


def test_a_foreign_part_needs_trust(
    experiment: Path, wav: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plug_in = tmp_path / "mine.py"
    plug_in.write_text("from mmssl.upstreams.spectral import Fbank\nclass Mine(Fbank): pass\n")
    for path in experiment.rglob("model.yaml"):
        fields = yaml.safe_load(path.read_text()) | {"upstream": {"_target_": f"{plug_in}:Mine"}}
        path.write_text(yaml.safe_dump(fields))
    assert main(["predict", str(experiment), str(wav)]) == 1
    assert "--trust" in capsys.readouterr().err
    assert main(["predict", str(experiment), str(wav), "--trust"]) == 0
