"""SUPERB's verification and phoneme recognition on miniature trees in the layout of the published corpora."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import soundfile

from mmssl.stages.recipe import main

ROOT = Path(__file__).parents[2]
NOISE = numpy.random.default_rng(0)


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[[str], Path]:
    """recipe("asv") -> a copy of egs/superb/asv beside the recipes."""

    def copy(task: str) -> Path:
        for part in (f"egs/superb/{task}/conf", f"egs/superb/{task}/local", "recipes"):
            shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
        return tmp_path / "egs" / "superb" / task

    return copy


def tone(path: Path, pitches: list[float], rate: int = 16000) -> None:
    """A tone of 0.08 s per pitch, with some noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time = numpy.arange(int(0.08 * rate)) / rate
    pieces = [0.2 * numpy.sin(2 * numpy.pi * pitch * time) for pitch in pitches]
    samples = numpy.concatenate(pieces)
    soundfile.write(path, samples + 0.005 * NOISE.standard_normal(len(samples)), rate)


@pytest.fixture
def voxceleb(tmp_path: Path) -> Path:
    """16 speakers of 4 files, each speaker a pitch; trials among every fourth speaker."""
    corpus = tmp_path / "voxceleb1"
    names = [f"id1{number:04d}" for number in range(16)]
    for number, name in enumerate(names):
        for k in range(4):
            pitch = 300 + 220 * number + 20 * k
            tone(corpus / ("test/wav" if number % 4 == 2 else "wav") / name / f"v{k}" / "1.wav", [pitch] * 4)
    trials = [
        f"{int(a == b)} {a}/v{i}/1.wav {b}/v{j}/1.wav"
        for x, a in enumerate(names[2::4])
        for b in names[2::4][x:]
        for i in range(3)
        for j in range(i + 1, 3)
    ]
    (corpus / "veri_test.txt").write_text("\n".join(trials) + "\n")
    return corpus


def test_verification(recipe: Callable[[str], Path], voxceleb: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = recipe("asv")
    words = [f"data.root={voxceleb}", "--nj", "1", "protocol.dev_groups=4", "exp=x", "compare=[mel]"]
    words += ["verification.bootstrap=20", "verification.methods=[cosine,plda]"]
    assert main(words, folder) == 0, capsys.readouterr().err
    results: dict[str, Any] = json.loads((folder / "exp" / "x" / "error_rates.json").read_text())
    assert [(r["system"], r["method"]) for r in results["rows"]] == [
        (system, method) for system in ("fbank", "mel") for method in ("cosine", "plda")
    ]
    # a pitch per speaker is easy to tell
    errors = [row["metrics"]["eer"] for row in results["rows"]]
    assert max(errors) < 0.25, errors
    assert "EER %" in (folder / "exp" / "x" / "RESULTS.md").read_text()
    manifest = [json.loads(line) for line in (folder / "data" / "manifest.jsonl").read_text().splitlines()]
    clips = [line for line in manifest if "id" in line]
    # of the test speakers only what a trial asks for: three of four files
    assert sum(clip["split"] == "test" for clip in clips) == 12
    assert sum(clip["split"] == "train" for clip in clips) == 48


@pytest.mark.slow
def test_verification_by_a_network_on_frames(
    recipe: Callable[[str], Path], voxceleb: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = recipe("asv")
    words = [f"data.root={voxceleb}", "--nj", "1", "protocol.dev_groups=4", "exp=x", "verification.methods=[xvector]"]
    words += ["verification.encoder={channels:16,wide_size:24,embedding_size:8}", "verification.bootstrap=0"]
    words += ["verification.train={learning_rates:[1.0e-2],max_steps:20,batch_size:16,eval_every:10}"]
    assert main(words, folder) == 0, capsys.readouterr().err
    (row,) = json.loads((folder / "exp" / "x" / "error_rates.json").read_text())["rows"]
    assert 0 <= row["metrics"]["eer"] < 0.5
    assert row["chosen"]["step"] <= 20


def test_verification_names_a_missing_file(
    recipe: Callable[[str], Path], voxceleb: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (voxceleb / "test" / "wav" / "id10002" / "v1" / "1.wav").unlink()
    assert main([f"data.root={voxceleb}", "--nj", "1"], recipe("asv")) == 1
    assert "id10002/v1/1.wav" in capsys.readouterr().err


@pytest.fixture
def librispeech(tmp_path: Path) -> Path:
    """Words of two phonemes each; every phoneme is a pitch."""
    corpus = tmp_path / "LibriSpeech"
    pitch = {"AA1": 400.0, "B": 900.0, "IY0": 1700.0, "S": 3000.0}
    lexicon = {"AB": "AA1 B", "SEE": "S IY0", "BE": "B IY0", "ASS": "AA1 S"}
    words = list(lexicon)
    for split, count in (("train-clean-100", 24), ("dev-clean", 4), ("test-clean", 6)):
        speaker = {"train-clean-100": "19", "dev-clean": "84", "test-clean": "61"}[split]
        chapter = corpus / split / speaker / "7"
        lines = []
        for number in range(count):
            name = f"{speaker}-7-{number:04d}"
            spoken = [words[k] for k in NOISE.integers(0, 4, 2)]
            sounds = [pitch[p] for word in spoken for p in lexicon[word].split()]
            tone(chapter / f"{name}.flac", sounds)
            lines.append(f"{name} {' '.join(spoken)}")
        (chapter / f"{speaker}-7.trans.txt").write_text("\n".join(lines) + "\n")
    text = "".join(f"{word}\t{phonemes}\n" for word, phonemes in lexicon.items())
    (corpus / "librispeech-lexicon.txt").write_text(text + "AB\tB AA1\n")
    return corpus


def test_phonemes(recipe: Callable[[str], Path], librispeech: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = recipe("pr")
    words = [f"data.root={librispeech}", "--nj", "1", "exp=x", "recognition.projection_size=16"]
    words += ["recognition.train={learning_rates:[3.0e-2],max_steps:80,batch_size:12,eval_every:40}"]
    assert main(words, folder) == 0, capsys.readouterr().err
    (row,) = json.loads((folder / "exp" / "x" / "error_rates.json").read_text())["rows"]
    assert row["metrics"]["error_rate"] < 0.2
    assert {p["reference"] for p in row["predictions"]} <= {
        f"{a} {b}" for a in ("AA1 B", "S IY0", "B IY0", "AA1 S") for b in ("AA1 B", "S IY0", "B IY0", "AA1 S")
    }
    assert "PER %" in (folder / "exp" / "x" / "RESULTS.md").read_text()


def test_phonemes_need_a_lexicon_with_every_word(
    recipe: Callable[[str], Path], librispeech: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (librispeech / "librispeech-lexicon.txt").write_text("AB AA1 B\nSEE S IY0\n")
    folder = recipe("pr")
    assert main([f"data.root={librispeech}", "--nj", "1"], folder) == 1
    assert "2 words are not in the lexicon, among them ASS, BE" in capsys.readouterr().err
