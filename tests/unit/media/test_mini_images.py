from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mmssl.errors import DataError
from mmssl.media.images import load_image
from mmssl.media.mini_images import FILLS, SHAPES, draw_image, make_mini_images


def sums(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.*") if path.is_file()}


def test_labels_files_and_splits(tmp_path: Path) -> None:
    clips = make_mini_images(tmp_path / "a", images_per_class=5)
    assert len(clips) == len({clip.id for clip in clips}) == 50
    assert Counter(clip.labels["shape"] for clip in clips) == dict.fromkeys(SHAPES, 5)
    assert {clip.labels["fill"] for clip in clips} <= set(FILLS)
    assert Counter(clip.split for clip in clips) == {"train": 40, "test": 10}
    for clip in clips:
        image = load_image(str(clip.image))
        assert image.shape == (3, 64, 64)
        assert image.std() > 0.02
    assert make_mini_images(tmp_path / "b", images_per_class=5) != clips
    assert sums(tmp_path / "a") == sums(tmp_path / "b")


def test_an_image_is_the_same_in_a_larger_set_and_another_under_another_seed(tmp_path: Path) -> None:
    few, more = make_mini_images(tmp_path / "a", images_per_class=1), tmp_path / "b"
    make_mini_images(more, images_per_class=2)
    make_mini_images(tmp_path / "c", images_per_class=1, seed=1)
    for clip in few:
        name = f"{clip.id}.png"
        assert sums(tmp_path / "a")[name] == sums(more)[name] != sums(tmp_path / "c")[name]


def test_reused_mended_and_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = make_mini_images(tmp_path, images_per_class=1)
    before = sums(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("mmssl.media.mini_images.draw_image", lambda *_: pytest.fail("made anew"))
        assert make_mini_images(tmp_path, images_per_class=1) == clips
    Path(str(clips[0].image)).write_bytes(b"x")
    assert make_mini_images(tmp_path, images_per_class=1) == clips
    assert sums(tmp_path) == before
    make_mini_images(tmp_path, images_per_class=2)
    make_mini_images(tmp_path, images_per_class=1)
    assert sums(tmp_path) == before


def test_no_mean_colour_tells_the_class() -> None:
    from sklearn.linear_model import LogisticRegression

    colours, classes = [], []
    for label, shape in enumerate(SHAPES):
        for index in range(40):
            rng = np.random.default_rng((7, label, index))
            colours.append(draw_image(shape, FILLS[index % 4], rng).mean((0, 1)) / 255)
            classes.append(label)
    features, labels = np.array(colours), np.array(classes)
    model = LogisticRegression().fit(features[::2], labels[::2])
    assert model.score(features[1::2], labels[1::2]) < 0.2


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"images_per_class": 0}, {"images_per_class": 1.5}])
def test_wrong_settings(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(DataError, match=next(iter(wrong))):
        make_mini_images(tmp_path, **wrong)


def test_an_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file"):
        make_mini_images(tmp_path / "file", images_per_class=1)
