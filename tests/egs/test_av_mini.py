"""The audio-visual recipes of egs/mini share one corpus, and the options of their configurations fit it."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path
from typing import Any

import pytest

import mmssl.stages.av_mini as av_mini
from mmssl.errors import ConfigError
from mmssl.stages.compose import compose
from mmssl.types import Clip

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("task", ["aver", "av_retrieval", "av_sync"])
def test_recipes_take_it(task: str) -> None:
    folder = ROOT / "egs" / "mini" / task
    spec = importlib.util.spec_from_file_location("prepare_mini", folder / "local" / "prepare.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.prepare is av_mini.prepare
    options = compose(folder).config["data"]["options"]
    assert set(options) <= set(list(inspect.signature(module.prepare).parameters)[2:])


def test_other_speakers_are_for_pretraining(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []

    def make(folder: Path, **options: Any) -> list[Clip]:
        made.append({**options, "folder": folder})
        return [Clip(f"{s}{k}", video="v", speaker=s) for s in ("s3", "s1", "s2") for k in range(2)]

    monkeypatch.setattr(av_mini, "make_mini", make)
    clips = av_mini.prepare(None, tmp_path, seed=3, num_speakers=3, task_speakers=2, pretrain_speakers=3)
    assert {c.speaker for c in clips if c.split == "pretrain"} == {"s3", "pre_s1", "pre_s2", "pre_s3"}
    assert {c.speaker for c in clips if c.split is None} == {"s1", "s2"}
    assert len({c.id for c in clips}) == len(clips) == 12
    assert [(m["folder"], m["seed"], m["video"]) for m in made] == [
        (tmp_path / "mini", 3, True),
        (tmp_path / "mini_pretrain", 4, True),
    ]
    assert len(av_mini.prepare(tmp_path / "there", tmp_path, pretrain_speakers=0)) == 6
    assert made[2]["folder"] == tmp_path / "there" / "mini"
    assert len(made) == 3
    with pytest.raises(ConfigError, match="task_speakers must be 1 to num_speakers=3"):
        av_mini.prepare(None, tmp_path, num_speakers=3, task_speakers=4)
