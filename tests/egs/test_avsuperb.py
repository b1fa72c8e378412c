"""AudioSet-20K, VoxCeleb2 and LRS3 of AV-SUPERB, on miniature trees of their layout with real video files."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from mmssl.data.trials import read_trials
from mmssl.errors import DataError
from mmssl.faces.write import write_video
from mmssl.metrics.verification import eer
from mmssl.stages.av_recognise import scores_of
from mmssl.stages.compose import compose
from mmssl.stages.recipe import main
from mmssl.stages.utterance_prepare import folds_of
from mmssl.types import Clip

ROOT = Path(__file__).parents[2]
ENCODER = ["upstream=l3", "+upstream.width=4", "+upstream.sample_rate=16000", "+upstream.image_size=16"]
TRAIN = ["train.learning_rates=[1e-2]", "train.max_steps=20", "train.eval_every=10", "train.batch_size=8"]


def prepare(recipe: str) -> Callable[..., list[Clip]]:
    path = ROOT / "egs" / recipe / "local" / "prepare.py"
    spec = importlib.util.spec_from_file_location(f"prepare_{recipe.replace('/', '_')}", path)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.prepare


def write(path: Path, tones: list[int], seed: int, frames: int = 15) -> None:
    """Tones that sound together, and a bright stripe for each of them."""
    rng = np.random.default_rng(seed)
    time = np.arange(frames * 640) / 16_000
    waveform = 0.02 * rng.standard_normal(len(time))
    pictures = rng.integers(0, 40, (frames, 16, 16, 3)).astype(np.uint8)
    for tone in tones:
        waveform += 0.2 * np.sin(2 * np.pi * 300 * 3**tone * time + rng.random())
        pictures[:, :, 4 * tone : 4 * tone + 4] += 150
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path.with_suffix(".mkv"), pictures, 25.0, waveform.astype(np.float32)[None], 16_000)
    # what is in a file is looked at, not how it is called
    path.with_suffix(".mkv").rename(path)


Run = Callable[..., tuple[int, Path]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """run("avsuperb/audioset20k", ...) -> exit code and the recipe's folder, a copy."""

    def call(recipe: str, *words: str) -> tuple[int, Path]:
        folder = tmp_path / "root" / "egs" / recipe
        if not folder.is_dir():
            shutil.copytree(ROOT / "egs" / recipe, folder)
            shutil.copytree(ROOT / "recipes", tmp_path / "root" / "recipes", dirs_exist_ok=True)
        monkeypatch.chdir(folder)
        return main(["--nj", "1", *ENCODER, "untrained=false", "plain=false", "exp=a", *words], folder), folder

    return call


def folds(recipe: str, clips: list[Clip]) -> list[Any]:
    return folds_of(clips, compose(ROOT / "egs" / recipe).config)


MIDS = {"/m/09x0r": "Speech", "/t/dd00003": "Male speech, man speaking", "/m/04rlf": "Music"}


@pytest.fixture
def audioset(tmp_path: Path) -> Path:
    """24 training and 12 test segments with one or two of three labels; the first line of a list has no video."""
    root = tmp_path / "audioset"
    rng = np.random.default_rng(0)
    names = list(MIDS)
    for name, count, folder in (("balanced_train_segments", 24, "train"), ("eval_segments", 12, "eval")):
        rows = ["# Segments csv", "# num_ytids=1", "# YTID, start_seconds, end_seconds, positive_labels"]
        rows.append(f'gone_{folder[0]}-aaaa, 0.000, 10.000, "{names[0]}"')
        for k in range(count):
            tones = sorted({k % 3, int(rng.integers(3))})
            video = f"-{folder[:2]}{k:08d}"
            rows.append(f'{video}, 30.000, 40.000, "{",".join(names[t] for t in tones)}"')
            write(root / folder / (f"{video}.mp4" if k % 2 else f"{video}_30000_40000.mp4"), tones, k)
        (root / f"{name}.csv").write_text("\n".join(rows) + "\n")
    quoted = [f'{k},{mid},"{name}"' for k, (mid, name) in enumerate(MIDS.items())]
    (root / "class_labels_indices.csv").write_text("\n".join(["index,mid,display_name", *quoted]) + "\n")
    return root


def test_audioset(audioset: Path, tmp_path: Path) -> None:
    clips = prepare("avsuperb/audioset20k")(audioset, tmp_path)
    assert [sum(c.split == split for c in clips) for split in ("train", "test")] == [24, 12]
    assert clips[0].id == "-tr00000000"
    assert {name for c in clips for name in c.labels["sounds"]} == set(MIDS.values())
    assert {len(c.labels["sounds"]) for c in clips} == {1, 2}
    (fold,) = folds("avsuperb/audioset20k", clips)
    split = {c.id: c.split for c in clips}
    assert {split[i] for i in (*fold.train, *fold.dev)} == {"train"}
    assert len(fold.test) == 12
    (audioset / "eval_segments.csv").write_text('-ev00000000, 0.000, 10.000, "/m/unknown"\n')
    with pytest.raises(DataError, match=r"/m/unknown of -ev00000000"):
        prepare("avsuperb/audioset20k")(audioset, tmp_path)
    (audioset / "eval_segments.csv").write_text("-ev00000000, 0.000\n")
    with pytest.raises(DataError, match=r"eval_segments\.csv:1: expected YouTube id"):
        prepare("avsuperb/audioset20k")(audioset, tmp_path)


@pytest.mark.slow
def test_several_labels_run_through_the_recipe(run: Run, audioset: Path) -> None:
    code, folder = run("avsuperb/audioset20k", f"data.root={audioset}", *TRAIN, "protocol.dev_groups=6")
    assert code == 0
    results = json.loads((folder / "exp" / "a" / "results.json").read_text())
    assert (results["task"], results["primary_metric"], set(results["classes"])) == (
        "multilabel",
        "map",
        set(MIDS.values()),
    )
    assert sum(results["data"]["per_class"].values()) > results["data"]["clips"] == 36
    rows = [
        json.loads(line)
        for line in (folder / "exp" / "a" / "systems" / "l3-audio" / "folds")
        .glob("*/predictions.jsonl")
        .__next__()
        .open()
    ]
    truth = np.zeros((12, 3))
    for row, clip in zip(truth, rows, strict=True):
        row[clip["truth"]] = 1
    wanted = average_precision_score(truth, np.asarray([row["probabilities"] for row in rows]))
    systems = {system["name"]: system for system in results["systems"]}
    found = systems["l3: audio"]
    assert found["metrics"]["map"]["pooled"] == pytest.approx(wanted)
    assert np.mean(list(found["per_label_average_precision"].values())) == pytest.approx(wanted)
    assert found["metrics"]["map"]["speaker_low"] <= wanted <= found["metrics"]["map"]["speaker_high"]
    assert set(systems) == {
        "l3: audio",
        "l3: video",
        "l3: both",
        "l3: both, audio alone at test",
        "l3: both, video alone at test",
    }
    assert results["chance"] == pytest.approx(truth.mean(0).mean())
    # tones and stripes are easy to tell
    assert wanted > results["chance"] + 0.1
    page = (folder / "exp" / "a" / "RESULTS.md").read_text()
    assert "mAP" in page
    assert "mAP" in (folder / "exp" / "a" / "details" / "report.html").read_text()


def test_labels_must_be_lists(run: Run, audioset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = run("avsuperb/audioset20k", f"data.root={audioset}", "label=source", "--stop_stage", "1")
    captured = capsys.readouterr()
    assert (code, "needs a list of names" in captured.out + captured.err) == (1, True)


@pytest.fixture
def voxceleb2(tmp_path: Path) -> Path:
    """6 training and 3 test speakers of 3 videos with 2 clips each; a speaker has a tone and a stripe."""
    root = tmp_path / "voxceleb2"
    for s in range(9):
        for v in range(3):
            for k in range(2):
                part = "dev" if s < 6 else "test"
                path = root / part / "mp4" / f"id{s:05d}" / f"video{v}" / f"{k:05d}.mp4"
                write(path, [s % 3], 100 * s + 10 * v + k)
    return root


def test_voxceleb2(voxceleb2: Path, tmp_path: Path) -> None:
    run = prepare("avsuperb/voxceleb2")
    clips = run(voxceleb2, tmp_path / "data", videos=2, clips=1)
    assert [sum(c.split == split for c in clips) for split in ("train", "test")] == [12, 9]
    assert clips[0].id == "id00000-video0-00000"
    trials = read_trials(tmp_path / "data" / "trials.txt")
    # every pair of videos of a speaker, and no pair of one video
    assert sum(trials.is_target) == 9
    assert all(a.rsplit("-", 1)[0] != b.rsplit("-", 1)[0] for a, b in zip(trials.enrol, trials.test, strict=True))
    assert {c.id for c in clips if c.split == "test"} == {*trials.enrol, *trials.test}
    assert len(run(voxceleb2, tmp_path / "data", videos=None)) == 36 + 9
    file = "test/mp4/id00006/video{}/00001.mp4"
    listed = [f"1,{file.format(0)},{file.format(2)}", f"0,{file.format(0)},test/mp4/id00008/video1/00000.mp4"]
    (voxceleb2 / "test.lst").write_text("\n".join(listed) + "\n")
    clips = run(voxceleb2, tmp_path / "data")
    assert [c.id for c in clips if c.split == "test"] == [
        "id00006-video0-00001",
        "id00006-video2-00001",
        "id00008-video1-00000",
    ]
    assert read_trials(tmp_path / "data" / "trials.txt").is_target == (True, False)
    (voxceleb2 / "test.lst").write_text("1,test/mp4/a/b/c.mp4,test/mp4/a/b/d.mp4\n")
    with pytest.raises(DataError, match="names 2 clips that are not there"):
        run(voxceleb2, tmp_path / "data")
    (voxceleb2 / "test.lst").write_text("yes,a,b\n")
    with pytest.raises(DataError, match=r"test\.lst:1: expected 1 or 0"):
        run(voxceleb2, tmp_path / "data")
    shutil.copytree(voxceleb2 / "dev" / "mp4" / "id00000", voxceleb2 / "test" / "mp4" / "id00000")
    with pytest.raises(DataError, match="1 speakers are in dev and in test"):
        run(voxceleb2, tmp_path / "data")


@pytest.mark.slow
def test_verification_runs_through_the_recipe(run: Run, voxceleb2: Path) -> None:
    # a test clip that cannot be read: its trials are left out, and that is said
    broken = voxceleb2 / "test" / "mp4" / "id00008" / "video2" / "00000.mp4"
    broken.write_bytes(b"no video")
    words = ["protocol.dev_groups=2", "verification.embedding_size=8", "data.options.clips=1", "compare=[mel]"]
    code, folder = run("avsuperb/voxceleb2", f"data.root={voxceleb2}", *TRAIN, *words)
    assert code == 0
    rows = json.loads((folder / "exp" / "a" / "error_rates.json").read_text())["rows"]
    assert [(row["system"], row["method"]) for row in rows] == [
        ("l3", "audio"),
        ("l3", "video"),
        ("l3", "both"),
        ("mel", "audio"),
    ]
    trials = read_trials(folder / "data" / "trials.txt")
    there = [broken.parts[-3] + "-video2-00000" not in pair for pair in zip(trials.enrol, trials.test, strict=True)]
    targets = np.asarray(trials.is_target)[there]
    for row in rows:
        assert len(row["scores"]) == len(targets) < len(trials)
        assert row["metrics"]["eer"] == pytest.approx(eer(np.asarray(row["scores"]), targets))
    # speakers are told by their tones and stripes
    assert min(row["metrics"]["eer"] for row in rows) < 0.2
    page = (folder / "exp" / "a" / "RESULTS.md").read_text()
    assert "EER %" in page
    left_out = f"l3, both: {len(targets)} of {len(trials)} trials"
    assert left_out in page
    page = (folder / "exp" / "a" / "report.html").read_text()
    assert left_out in page
    assert page.count("<tr>") == 1 + 4
    for row in rows:
        low, high = (f"{100 * end:.3g}" for end in row["intervals"]["eer"])
        assert f"<td>{100 * row['metrics']['eer']:.3g} [{low} to {high}]</td>" in page
    # the main encoder's three views, and sound of both encoders, each a line in the figure and one in its legend
    for name, lines in (("l3", ("audio", "video", "both")), ("All encoders: audio", ("l3", "mel"))):
        figure = next(part for part in page.split("<figure>") if f"<figcaption>{name}<" in part)
        assert f'aria-label="DET curves of {name}. {lines[0]}: EER' in figure
        assert re.findall("<title>(.*?)</title>", figure) == list(lines)
        assert figure.count("<li>") == len(lines)
    assert page.count('<svg class="key"') == 5
    assert "1 clips were skipped" in page


WORDS = ["AB", "BA", "C'A"]


@pytest.fixture
def lrs3(tmp_path: Path) -> Path:
    """5 speakers of 4 sentences to train on and 2 to test; each letter has a tone and a stripe."""
    root = tmp_path / "lrs3"
    letters = {"A": [0], "B": [1], "C": [2], "'": [0, 1]}
    for s in range(7):
        for k in range(4):
            text = [WORDS[(s + k) % 3], WORDS[k % 3]]
            path = root / ("trainval" if s < 5 else "test") / f"speaker{s}" / f"{k:05d}.mp4"
            write_letters(path, [letters.get(c, []) for c in " ".join(text)], 10 * s + k)
            path.with_suffix(".txt").write_text(f"Text:  {' '.join(text).lower()}\nConf:  4\n\nWORD START END\n")
    return root


def write_letters(path: Path, letters: list[list[int]], seed: int, frames: int = 4) -> None:
    """So many pictures for each letter."""
    rng = np.random.default_rng(seed)
    sounds, pictures = [], rng.integers(0, 40, (frames * len(letters), 16, 16, 3)).astype(np.uint8)
    for place, tones in enumerate(letters):
        time = np.arange(frames * 640) / 16_000
        sounds.append(sum((0.2 * np.sin(2 * np.pi * 300 * 3**t * time) for t in tones), 0.01 * np.sin(time)))
        for tone in tones:
            pictures[place * frames : (place + 1) * frames, :, 4 * tone : 4 * tone + 4] += 150
    path.parent.mkdir(parents=True, exist_ok=True)
    waveform = np.concatenate(sounds).astype(np.float32)[None]
    write_video(path.with_suffix(".mkv"), pictures, 25.0, waveform, 16_000)
    path.with_suffix(".mkv").rename(path)


def test_lrs3(lrs3: Path, tmp_path: Path) -> None:
    clips = prepare("avsuperb/lrs3")(lrs3, tmp_path)
    assert [sum(c.split == split for c in clips) for split in ("train", "test")] == [20, 8]
    assert (clips[2].id, clips[2].labels["characters"]) == ("trainval-speaker0-00002", "C ' A | C ' A")
    (fold,) = folds("avsuperb/lrs3", clips)
    speaker = {c.id: c.speaker for c in clips}
    assert not {speaker[i] for i in fold.train} & {speaker[i] for i in fold.dev}
    (lrs3 / "test" / "speaker6" / "00000.txt").write_text("Text:\n")
    with pytest.raises(DataError, match=r"00000\.txt is not there or does not begin"):
        prepare("avsuperb/lrs3")(lrs3, tmp_path)


@pytest.mark.slow
def test_recognition_runs_through_the_recipe(run: Run, lrs3: Path) -> None:
    words = ["protocol.dev_groups=1", "recognition.hidden_size=16", "recognition.projection_size=16"]
    words += [*TRAIN, "train.max_steps=60", "train.eval_every=30", "train.learning_rates=[2e-2]"]
    code, folder = run("avsuperb/lrs3", f"data.root={lrs3}", *words)
    assert code == 0
    rows = json.loads((folder / "exp" / "a" / "error_rates.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["audio", "video", "both"]
    best = min(rows, key=lambda row: row["metrics"]["cer"])
    # always the same answer would be wrong in most letters
    assert best["metrics"]["cer"] < 0.5
    for row in rows:
        (path,) = (folder / "exp" / "a" / "systems" / f"l3-{row['method']}" / "folds").glob("*/predictions.jsonl")
        decoded = [json.loads(line) for line in path.open()]
        assert {d["id"] for d in decoded} == {f"test-speaker{s}-{k:05d}" for s in (5, 6) for k in range(4)}
        metrics, _ = scores_of(decoded)
        assert metrics == pytest.approx(row["metrics"])
    assert "WER %" in (folder / "exp" / "a" / "RESULTS.md").read_text()
    page = (folder / "exp" / "a" / "report.html").read_text()
    for row in rows:
        low, high = (f"{100 * end:.3g}" for end in row["intervals"]["cer"])
        assert f"<td>{100 * row['metrics']['cer']:.3g} [{low} to {high}]</td>" in page
        (part,) = (part for part in page.split("<section>") if f"<h2>Decoded clips: {row['method']}</h2>" in part)
        assert part.count('<th scope="row">test-speaker') == 8
        # all errors of all clips
        assert sum(map(int, re.findall(r"<td>(\d+) of \d+</td>", part))) == round(row["metrics"]["cer"] * 45)
        assert ("<mark>" in part) == (row["metrics"]["cer"] > 0)
    assert "The official trainval and test sets." in page
