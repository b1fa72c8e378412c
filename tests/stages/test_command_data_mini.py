from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmssl.data.manifest import read_manifest
from mmssl.stages.cli import main
from mmssl.types import Clip


def test_video_writes_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def make_mini(folder: Path, **settings: object) -> list[Clip]:
        asked.append(settings)
        return [Clip("a", audio=str(folder / "wav/a.wav"), video=str(folder / "video/a.mp4"))]

    boxes = []
    monkeypatch.setattr("mmssl.media.mini.make_mini", make_mini)
    monkeypatch.setattr("mmssl.media.mini_boxes.write_boxes", lambda *given: boxes.append(given))
    assert main(["data", "mini", str(tmp_path / "mini"), "--seed", "3", "--video"]) == 0
    assert asked == [{"seed": 3, "video": True}]
    ((path, root, clips, seed),) = boxes
    assert (path, root, [clip.id for clip in clips], seed) == (
        tmp_path / "mini/face_boxes.json",
        tmp_path / "mini",
        ["a"],
        3,
    )
    row = json.loads((tmp_path / "mini/manifest.jsonl").read_text())
    assert row == {"id": "a", "audio": "wav/a.wav", "video": "video/a.mp4"}


def test_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    from mmssl.media import mini_images

    make = mini_images.make_mini_images
    monkeypatch.setattr(mini_images, "make_mini_images", lambda f, seed: make(f, seed=seed, images_per_class=1))
    assert main(["data", "mini", str(tmp_path), "--images"]) == 0
    clips = read_manifest(tmp_path / "manifest.jsonl")
    assert len(clips) == 10
    assert all(Path(str(clip.image)).is_file() for clip in clips)
    with pytest.raises(SystemExit) as stop:
        main(["data", "mini", str(tmp_path), "--images", "--video"])
    assert stop.value.code == 2
