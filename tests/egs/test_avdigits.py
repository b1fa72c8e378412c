"""The recipe of spoken and handwritten digits in miniature: tones instead of voices, all stages, seconds."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from mmssl.data.folds import read_folds
from mmssl.data.manifest import read_manifest
from mmssl.errors import DataError
from mmssl.stages.files import read_json
from mmssl.stages.pairs_probe import one_of_each
from mmssl.stages.recipe import main

FOLDER = Path(__file__).parents[2] / "egs" / "avdigits" / "av_ssl"
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")


def prepare() -> Any:
    spec = importlib.util.spec_from_file_location("prepare_avdigits", FOLDER / "local" / "prepare.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.prepare


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three digits, each a tone of its own, by six speakers of different loudness; four takes."""
    root = tmp_path_factory.mktemp("fsdd")
    generator = np.random.default_rng(0)
    for digit, speaker, take in np.ndindex(3, 6, 4):
        time = np.arange(1200 + 40 * take) / 8000
        sound = 0.1 * (1 + speaker) / 6 * np.sin(2 * np.pi * (400 + 700 * digit) * time)
        sound = sound + 0.002 * generator.standard_normal(len(time))
        soundfile.write(root / f"{digit}_{SPEAKERS[speaker]}_{take}.wav", sound, 8000)
    return root


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A copy of the recipe's folder, so that data and results stay out of the tree."""
    folder = tmp_path / "egs" / "avdigits" / "av_ssl"
    for source in (FOLDER / "conf" / "config.yaml", FOLDER / "local" / "prepare.py"):
        target = folder / source.relative_to(FOLDER)
        target.parent.mkdir(parents=True)
        target.write_bytes(source.read_bytes())
    (tmp_path / "recipes").symlink_to(FOLDER.parents[2] / "recipes")
    return folder


def test_every_clip_has_one_picture_of_its_digit_and_speakers_share_none(corpus: Path, tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    clips = prepare()(corpus, tmp_path)
    assert len(clips) == 72
    truth = load_digits().target
    owners: dict[str, set[str]] = {}
    for clip in clips:
        assert str(truth[int(clip.labels["picture"])]) == clip.labels["digit"]
        owners.setdefault(clip.image, set()).add(clip.speaker)
    assert all(len(speakers) == 1 for speakers in owners.values())
    assert len(owners) == 72
    assert prepare()(corpus, tmp_path) == clips
    assert prepare()(corpus, tmp_path, seed=1) != clips
    (tmp_path / "bad").mkdir()
    soundfile.write(tmp_path / "bad" / "seven.wav", np.zeros(100), 8000)
    with pytest.raises(DataError, match="not named"):
        prepare()(tmp_path / "bad", tmp_path)


def test_all_stages(corpus: Path, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        f"data.root={corpus}",
        "exp=tiny",
        "methods=[cross_modal,correspondence]",
        "upstream.width=16",
        "pretrain.steps=12",
        "pretrain.warmup_steps=2",
        "pretrain.batch_size=12",
        "objectives.cross_modal.hidden_size=16",
        "probing.draws=2",
    ]
    assert main(words, recipe) == 0, capsys.readouterr().err
    folds = read_folds(recipe / "data" / "folds.json")
    clips = {clip.id: clip for clip in read_manifest(recipe / "data" / "manifest.jsonl")}
    assert len(folds) == 3
    for fold in folds:
        assert len({clips[name].speaker for name in fold.test}) == 2
        seen = {clips[name].image for name in (*fold.train, *fold.dev)}
        assert not seen & {clips[name].image for name in fold.test}
    results = read_json(recipe / "exp" / "tiny" / "pairs.json")
    assert set(results["systems"]) == {
        "untrained",
        "cross_modal-paired",
        "cross_modal-shuffled",
        "correspondence-paired",
        "correspondence-shuffled",
    }
    scores = results["systems"]["cross_modal-paired"][folds[0].name]
    assert all(0 <= scores[name] <= 1 for name in ("audio_1shot", "audio_all", "image_1shot", "retrieval"))
    assert results["systems"]["correspondence-paired"][folds[0].name]["retrieval"] is None
    assert "paired minus shuffled" in (recipe / "exp" / "tiny" / "PAIRS.md").read_text(encoding="utf-8")

    # what was trained is kept, and the same run again gives the same numbers
    weights = recipe / "exp" / "tiny" / "pretrained" / "cross_modal-paired" / folds[0].name / "objective.safetensors"
    before = weights.read_bytes()
    assert main([*words, "--stage", "train", "--stop_stage", "train"], recipe) == 0
    assert "0 runs" in capsys.readouterr().out
    (weights.parent / "history.json").unlink()
    assert main([*words, "--stage", "train", "--stop_stage", "train"], recipe) == 0
    assert weights.read_bytes() == before


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("methods=[clip]", "clip"),
        ("pairings=[rolled]", "rolled"),
        ("pretrain.batch_size=1", "batch_size"),
        ("pretrain.max_seconds=0", "max_seconds"),
    ],
)
def test_bad_settings_stop_with_a_message(
    word: str, message: str, corpus: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"data.root={corpus}", "--stop_stage", "train", word], recipe) == 1
    assert message in capsys.readouterr().err


def test_one_of_each_draws_every_class_once() -> None:
    labels = np.array(["b", "a", "b", "c", "a"])
    rows = one_of_each(labels, 3)
    assert labels[rows].tolist() == ["a", "b", "c"]
    assert len({tuple(one_of_each(labels, seed)) for seed in range(30)}) == 4
