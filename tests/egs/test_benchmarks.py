"""The folders of egs that follow recipes/bench: their corpora, and a run from nothing to a leaderboard."""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import soundfile

from mmssl.errors import DataError
from mmssl.stages.recipe import main
from mmssl.types import Clip

ROOT = Path(__file__).parents[2]


def prepare(task: str) -> Callable[..., list[Clip]]:
    return runpy.run_path(str(ROOT / "egs" / "superb" / task / "local" / "prepare.py"))["prepare"]


def sound(path: Path, seconds: float = 0.1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * numpy.sin(numpy.arange(int(16000 * seconds)) / 10), 16000)


def test_keywords(tmp_path: Path) -> None:
    corpus, test = tmp_path / "speech_commands_v0.01", tmp_path / "speech_commands_test_set_v0.01"
    for name in ("yes/a_nohash_0", "yes/b_nohash_0", "yes/c_nohash_0", "bed/a_nohash_1"):
        sound(corpus / f"{name}.wav")
    sound(corpus / "_background_noise_" / "tap.wav", 5.2)
    sound(test / "_silence_" / "x.wav")
    sound(test / "_unknown_" / "d_nohash_0.wav")
    with pytest.raises(DataError, match="validation_list"):
        prepare("ks")(tmp_path, tmp_path)
    (corpus / "validation_list.txt").write_text("yes/b_nohash_0.wav\n")
    (corpus / "testing_list.txt").write_text("yes/c_nohash_0.wav\n")
    clips = prepare("ks")(tmp_path, tmp_path)
    spoken = {(c.labels["word"], c.labels["keyword"], c.speaker, c.split) for c in clips if c.start == 0}
    assert {s for s in spoken if not str(s[2]).startswith("noise")} == {
        ("yes", "yes", "a", "train"),
        ("yes", "yes", "b", "dev"),
        ("bed", "unknown", "a", "train"),
        ("silence", "silence", "x", "test"),
        ("unknown", "unknown", "d", "test"),
    }
    noise = [(c.start, c.duration, c.split) for c in clips if c.id.startswith("silence-tap")]
    assert noise == [(float(k), 1.0, "train" if k < 4 else "dev") for k in range(5)]


def test_intents(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        sound(tmp_path / "wavs" / "speakers" / "s1" / f"{split}.wav")
        table = tmp_path / "data" / f"{split}_data.csv"
        table.parent.mkdir(exist_ok=True)
        table.write_text(
            ",path,speakerId,transcription,action,object,location\n"
            f'0,wavs/speakers/s1/{split}.wav,s1,"Turn on, please",activate,lights,kitchen\n'
        )
    clips = prepare("ic")(tmp_path, tmp_path)
    assert sorted((c.id, c.split, c.labels["intent"]) for c in clips) == [
        ("test", "test", "activate lights kitchen"),
        ("train", "train", "activate lights kitchen"),
        ("valid", "dev", "activate lights kitchen"),
    ]


def test_speakers(tmp_path: Path) -> None:
    for top, name in (("dev/wav", "id10001/v/1.wav"), ("test/wav", "id10002/v/1.wav")):
        sound(tmp_path / top / name)
    (tmp_path / "iden_split.txt").write_text("1 id10001/v/1.wav\n3 id10002/v/1.wav\n")
    clips = prepare("sid")(tmp_path, tmp_path)
    assert [(c.id, c.labels["speaker_name"], c.split) for c in clips] == [
        ("id10001-v-1", "id10001", "train"),
        ("id10002-v-1", "id10002", "test"),
    ]
    (tmp_path / "iden_split.txt").write_text("1 id10009/v/1.wav\n")
    with pytest.raises(DataError, match=r"id10009/v/1\.wav"):
        prepare("sid")(tmp_path, tmp_path)


def test_emotions_are_those_of_iemocap(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="IEMOCAP"):
        prepare("er")(None, tmp_path)


def test_mini_from_nothing_to_a_leaderboard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("egs/mini/bench/conf", "egs/mini/bench/local", "egs/mini/ser/local", "recipes"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    folder = tmp_path / "egs" / "mini" / "bench"
    words = [
        "--nj",
        "1",
        "compare=[mel]",
        "data.options.num_speakers=6",
        "data.options.num_sentences=2",
        "data.options.sentences_per_speaker=2",
        "protocol.k=3",
        "protocol.dev_groups=1",
        "bench.protocols=[linear,knn]",
        "bench.probe={max_steps:20,learning_rates:[1e-2],fractions:[1],seeds:2}",
        "exp=x",
    ]
    assert main(words, folder) == 0, capsys.readouterr().err
    board: dict[str, Any] = json.loads((folder / "exp" / "x" / "leaderboard.json").read_text())
    assert [(r["system"], r["protocol"]) for r in board["rows"]] == [
        (system, protocol) for system in ("fbank", "mel") for protocol in ("linear", "knn")
    ]
    assert all(0 <= row["metrics"]["uar"]["mean"] <= 1 for row in board["rows"])
    page = (folder / "exp" / "x" / "leaderboard.html").read_text()
    assert "Synthetic speech" in page
    assert "mel" in capsys.readouterr().out
    # everything is there: nothing is computed again
    before = {p: p.stat().st_mtime_ns for p in (folder / "exp" / "x" / "results").rglob("*.json")}
    assert len(before) == 4
    assert main([*words, "--stage", "probe"], folder) == 0
    assert {p: p.stat().st_mtime_ns for p in (folder / "exp" / "x" / "results").rglob("*.json")} == before
