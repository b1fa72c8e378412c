"""egs/speech_pool and egs/cifar10: what is trained on and what is tested on, on miniatures of the corpora's layouts."""

from __future__ import annotations

import importlib.util
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy
import pytest
import soundfile
from PIL import Image

from mmssl.data.manifest import read_manifest
from mmssl.errors import DataError
from mmssl.stages.bench_suite import read_suite

ROOT = Path(__file__).parents[2]


def load(folder: str) -> Any:
    spec = importlib.util.spec_from_file_location("prepare", ROOT / "egs" / folder / "ssl" / "local" / "prepare.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sound(path: Path, samples: int = 3200) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * numpy.sin(numpy.arange(samples) / 10), 16000)


@pytest.fixture
def corpora(tmp_path: Path) -> Path:
    root = tmp_path / "corpora"
    for digit in range(10):
        for speaker in ("george", "jackson", "lucas", "nicolas", "theo", "yweweler"):
            sound(root / "fsdd" / f"{digit}_{speaker}_0.wav")
    # too short for one of the encoders
    sound(root / "fsdd" / "0_george_1.wav", 2000)
    for speaker in ("03", "08", "09", "10", "14", "15", "16"):
        for letter in "WF":
            sound(root / "emodb" / "wav" / f"{speaker}a01{letter}a.wav")
    for actor in ("01", "02", "03", "07", "08"):
        for emotion in ("03", "05"):
            sound(root / "ravdess" / f"Actor_{actor}" / f"03-01-{emotion}-01-01-01-{actor}.wav")
    return root


def test_the_pool_leaves_out_who_is_tested(corpora: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ssl"
    pool = load("speech_pool").prepare(corpora, folder / "data")
    assert Counter(clip.labels["corpus"] for clip in pool) == {"fsdd": 30, "emodb": 8, "ravdess": 6}
    trained = {(clip.labels["corpus"], clip.speaker) for clip in pool}
    for name in ("digits", "speakers", "emodb", "ravdess"):
        for clip in read_manifest(folder / "data" / "probe" / f"{name}.jsonl"):
            if clip.split == "test":
                assert (clip.labels["corpus"], clip.speaker) not in trained
    speakers = read_manifest(folder / "data" / "probe" / "speakers.jsonl")
    assert {clip.speaker for clip in speakers} == {"nicolas", "theo", "yweweler"}
    assert {clip.labels["digit"] for clip in speakers if clip.split == "test"} == set("56789")


def test_the_comparison_is_a_suite_of_the_pool(corpora: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ssl"
    load("speech_pool").prepare(corpora, folder / "data")
    (folder / "compare.yaml").write_text((ROOT / "egs/speech_pool/ssl/compare.yaml").read_text(encoding="utf-8"))
    suite = read_suite(folder / "compare.yaml")
    for corpus in suite.corpora:
        by_id = {clip.id: clip for clip in corpus.clips}
        (fold,) = corpus.folds
        assert all(by_id[name].split == "test" for name in fold.test)
        assert fold.dev
    objectives = ("wav2vec2", "hubert", "data2vec", "audio_mae", "byol_a")
    assert {s.name for s in suite.systems} == {"log-mel", *objectives, *(f"{name} untrained" for name in objectives)}
    nano = {path.stem for path in (ROOT / "egs/speech_pool/ssl/conf/nano").glob("*.yaml")}
    assert nano == set(objectives)


def test_further_recordings_join_the_pool_without_labels(corpora: Path, tmp_path: Path) -> None:
    sound(tmp_path / "more" / "a" / "x.wav")
    (tmp_path / "empty").mkdir()
    prepare = load("speech_pool").prepare
    pool = prepare(corpora, tmp_path / "ssl", extra=str(tmp_path / "more"))
    assert [(clip.id, clip.labels, clip.speaker) for clip in pool[44:]] == [("extra-a/x", {}, None)]
    with pytest.raises(DataError, match="no recording"):
        prepare(corpora, tmp_path / "ssl", extra=str(tmp_path / "empty"))
    with pytest.raises(DataError, match=r"add data\.root=FOLDER"):
        prepare(None, tmp_path / "ssl")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    root = tmp_path / "cifar"
    for split, count in (("train", 11), ("test", 2)):
        for kind in ("cat", "ship"):
            (root / split / kind).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (32, 32)).save(root / split / kind / f"{number:04d}.jpg")
    return root


def test_pictures_come_from_a_folder_or_a_tar(pictures: Path, tmp_path: Path) -> None:
    prepare = load("cifar10").prepare
    clips = prepare(pictures, tmp_path / "ssl")
    assert Counter((clip.split, clip.labels["class"]) for clip in clips) == {
        (split, kind): count for kind in ("cat", "ship") for split, count in (("train", 9), ("dev", 2), ("test", 2))
    }
    archive = tmp_path / "some" / "cifar10.tar"
    archive.parent.mkdir()
    with tarfile.open(archive, "w") as file:
        for name in ("train", "test"):
            file.add(pictures / name, arcname=name)
    for root in (archive, archive.parent, archive):
        again = prepare(root, tmp_path / "ssl2")
        assert [(clip.id, clip.split) for clip in again] == [(clip.id, clip.split) for clip in clips]
        assert all(Path(str(clip.image)).is_file() for clip in again)


def test_pictures_that_are_not_there_are_explained(pictures: Path, tmp_path: Path) -> None:
    prepare = load("cifar10").prepare
    for root, message in ((None, "add data.root"), (tmp_path / "cifar" / "train" / "cat", "neither train/ nor one")):
        with pytest.raises(DataError, match=message):
            prepare(root, tmp_path / "ssl")
    for path in (pictures / "test").rglob("*.jpg"):
        path.unlink()
    with pytest.raises(DataError, match="both train and test"):
        prepare(pictures, tmp_path / "ssl")
