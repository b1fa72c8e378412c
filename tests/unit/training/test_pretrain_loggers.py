"""What a run writes and says while it goes on."""

from __future__ import annotations

import csv
import importlib.util
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from mmssl.errors import ConfigError
from mmssl.objectives.methods.mae import mae
from mmssl.training.pretrain import PretrainResult, pretrain
from mmssl.training.pretrain_loggers import write_history
from mmssl.types import Clip
from mmssl.upstreams.vit_mae import MAE


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    folder = tmp_path_factory.mktemp("pictures")
    found = []
    for number in range(4):
        path = folder / f"{number}.png"
        Image.new("RGB", (16, 16), (40 * number, 80, 250 - 40 * number)).save(path)
        found.append(Clip(f"c{number}", image=str(path)))
    return found


def run(clips: list[Clip], folder: Path, **changes: Any) -> PretrainResult:
    torch.manual_seed(0)
    model = MAE("tiny", hidden_size=16, num_layers=1, num_heads=2, feed_forward_size=32, patch_size=4, image_size=16)
    objective = mae(model, decoder_size=16, decoder_layers=1, decoder_heads=2, health_every=2)
    settings = {"learning_rate": 1e-3, "max_steps": 4, "batch_size": 4, "log_every": 1, **changes}
    return pretrain(objective, clips, folder, **settings)


def test_the_table_has_the_rows_of_the_history(clips: list[Clip], tmp_path: Path) -> None:
    result = run(clips, tmp_path)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    for row, expected in zip(rows, result.history, strict=True):
        assert {name: float(value) for name, value in row.items() if value} == expected
    # health is looked at in every other step: the columns are those of all rows
    assert any(not value for value in rows[1].values())
    write_history(tmp_path, [])
    assert (tmp_path / "history.jsonl").read_text() == ""


def test_lines_of_progress(clips: list[Clip], tmp_path: Path, capfd: Any, caplog: Any) -> None:
    lines: list[str] = []
    run(clips, tmp_path / "a", log=lines.append)
    assert len(lines) == 2  # the first and the last: it took less than ten seconds
    assert lines[0].startswith("step 1/4  loss ")
    assert lines[1].startswith("step 4/4  loss ")
    assert all(part in lines[1] for part in ("lr ", " clips/s", "ETA 0:00:00"))
    capfd.readouterr()
    run(clips, tmp_path / "b")
    out, err = capfd.readouterr()
    assert out == ""
    assert "loss" not in err
    with caplog.at_level(logging.INFO, logger="mmssl.training"):
        run(clips, tmp_path / "c")
    assert sum("clips/s" in record.getMessage() for record in caplog.records) == 2


def test_loggers_of_lightning_get_the_rows(clips: list[Clip], tmp_path: Path, monkeypatch: Any) -> None:
    result = run(clips, tmp_path / "run", loggers=[CSVLogger(tmp_path / "log", name="", version="")])
    with (tmp_path / "log" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == [row["loss"] for row in result.history]
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4]
    with pytest.raises(ConfigError, match="'tensorboard' or a logger"):
        run(clips, tmp_path / "x", loggers=["wandb"])
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install 'mmssl\[tensorboard\]'"):
        run(clips, tmp_path / "x", loggers=["tensorboard"])
    assert not (tmp_path / "x").exists()


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard(clips: list[Clip], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(clips, tmp_path, loggers=["tensorboard"], max_steps=2, decay="constant")
    result = run(clips, tmp_path, loggers=["tensorboard"], decay="constant")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([row["loss"] for row in result.history])
