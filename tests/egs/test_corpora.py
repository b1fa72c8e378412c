"""Every folder of egs: the same run.sh, a configuration that composes and binds, a README, and local/prepare.py."""

from __future__ import annotations

import importlib.util
import os
import stat
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import soundfile

from mmssl.errors import ConfigError, DataError
from mmssl.stages.compose import compose
from mmssl.stages.settings import check, stages_of
from mmssl.types import Clip

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(p.parent for p in ROOT.glob("egs/*/*/run.sh"))
PROTOCOL_WORDS = {
    "mini": "4 folds",
    "emodb": "leave one speaker out",
    "ravdess": "6 folds",
    "cremad": "5 folds",
    "iemocap": "leave one session out",
}


def prepare(corpus: str) -> Callable[..., list[Clip]]:
    path = ROOT / "egs" / corpus / "ser" / "local" / "prepare.py"
    spec = importlib.util.spec_from_file_location(f"prepare_{corpus}", path)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.prepare


def sound(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * numpy.sin(numpy.arange(1600) / 10), 16000)


def test_no_folder_is_overlooked() -> None:
    assert {p.parent.name for p in FOLDERS} >= {"mini", "emodb", "ravdess", "cremad", "iemocap"}
    assert {p.parent for p in (ROOT / "egs").glob("*/*/conf")} == set(FOLDERS)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_folder(folder: Path) -> None:
    script = folder / "run.sh"
    assert script.stat().st_mode & stat.S_IXUSR
    assert script.read_bytes() == (FOLDERS[0] / "run.sh").read_bytes()
    subprocess.run(["bash", "-n", script], check=True)
    composed = compose(folder)
    check(composed)
    for stage in stages_of(composed.config):
        assert callable(stage.function())
    text = " ".join((folder / "README.md").read_text(encoding="utf-8").lower().split())
    for word in (
        "protocol",
        "label",
        "speaker",
        "data.root",
        "licence",
        PROTOCOL_WORDS.get(folder.parent.name, "fold"),
    ):
        assert word in text, f"{folder}/README.md does not mention {word!r}"


def test_run_sh_hands_over_from_any_folder(tmp_path: Path) -> None:
    # a stand-in for tools/env.sh and Python: what is called, where, and with which words
    folder = tmp_path / "my root" / "egs" / "mini" / "ser"
    folder.mkdir(parents=True)
    (tmp_path / "my root" / "tools").mkdir()
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s|" "$PWD" "$MMSSL_CALLER_DIR" "$@"\n')
    python.chmod(0o755)
    (tmp_path / "my root" / "tools" / "env.sh").write_text(f'MMSSL_PYTHON="{python}"\n')
    # sourced without words of its own, it sees the script's: it must take none of them for extras
    assert "$@" not in (FOLDERS[0].parents[2] / "tools" / "env.sh").read_text()
    script = folder / "run.sh"
    script.write_bytes((FOLDERS[0] / "run.sh").read_bytes())
    script.chmod(0o755)
    words = ["--stage", "2", "data.root=a b"]
    out = subprocess.run(
        [script, *words], cwd=tmp_path, capture_output=True, text=True, check=True, env=os.environ
    ).stdout
    assert out.split("|")[:-1] == [str(folder), str(tmp_path), "-m", "mmssl.stages", *words]


def test_emodb(tmp_path: Path) -> None:
    for name in ("03a01Fa", "03a01Wa", "16b10Td"):
        sound(tmp_path / "wav" / f"{name}.wav")
    clips = prepare("emodb")(tmp_path, tmp_path)
    assert [(c.id, c.speaker, c.labels["emotion"], c.labels["text"]) for c in clips] == [
        ("03a01Fa", "03", "happiness", "a01"),
        ("03a01Wa", "03", "anger", "a01"),
        ("16b10Td", "16", "sadness", "b10"),
    ]
    assert prepare("emodb")(tmp_path / "wav", tmp_path) == clips
    sound(tmp_path / "wav" / "03a01Xa.wav")
    with pytest.raises(DataError, match="03a01Xa"):
        prepare("emodb")(tmp_path, tmp_path)


def test_ravdess(tmp_path: Path) -> None:
    sound(tmp_path / "Actor_01" / "03-01-05-02-01-02-01.wav")
    sound(tmp_path / "Actor_12" / "03-01-08-01-02-01-12.wav")
    # song is not speech
    sound(tmp_path / "Actor_12" / "03-02-03-01-02-01-12.wav")
    clips = prepare("ravdess")(tmp_path, tmp_path)
    assert [(c.speaker, c.labels["emotion"], c.labels["intensity"], c.labels["gender"]) for c in clips] == [
        ("01", "anger", "strong", "male"),
        ("12", "surprise", "normal", "female"),
    ]


def test_ravdess_folds_are_balanced_by_gender() -> None:
    folds = compose(ROOT / "egs" / "ravdess" / "ser").config["protocol"]["groups_per_fold"]
    actors = [actor for fold in folds.values() for actor in fold]
    assert sorted(actors) == [f"{n:02d}" for n in range(1, 25)]
    assert all(sum(int(a) % 2 for a in fold) == 2 for fold in folds.values())


def test_cremad(tmp_path: Path) -> None:
    names = ["1001_DFA_ANG_XX", "1001_IEO_HAP_LO", "1091_TSI_NEU_XX"]
    for name in names:
        sound(tmp_path / "AudioWAV" / f"{name}.wav")
    run = prepare("cremad")
    clips = run(tmp_path, tmp_path)
    assert [(c.speaker, c.labels["emotion"]) for c in clips] == [
        ("1001", "anger"),
        ("1001", "happiness"),
        ("1091", "neutral"),
    ]
    with pytest.raises(DataError, match=r"summaryTable.csv"):
        run(tmp_path, tmp_path, labels="perceived")
    with pytest.raises(ConfigError, match="intended or perceived"):
        run(tmp_path, tmp_path, labels="heard")
    table = tmp_path / "processedResults" / "summaryTable.csv"
    table.parent.mkdir()
    rows = [f'"1","{names[0]}","D",60', f'"2","{names[1]}","H:N",50', f'"3","{names[2]}","N",40']
    table.write_text('"","FileName","VoiceVote","VoiceLevel"\n' + "\n".join(rows) + "\n")
    perceived = run(tmp_path, tmp_path, labels="perceived")
    # the tie is left out
    assert [(c.id, c.labels["emotion"], c.labels["intended"]) for c in perceived] == [
        (names[0], "disgust", "anger"),
        (names[2], "neutral", "neutral"),
    ]
    assert [c.labels.get("perceived") for c in run(tmp_path, tmp_path)] == ["disgust", None, "neutral"]


def test_iemocap(tmp_path: Path) -> None:
    lines = {
        "Ses01F_impro01": [
            ("Ses01F_impro01_F000", "neu"),
            ("Ses01F_impro01_M001", "exc"),
            ("Ses01F_impro01_M002", "xxx"),
        ],
        "Ses02M_script03_2": [("Ses02M_script03_2_F010", "hap"), ("Ses02M_script03_2_M011", "fru")],
    }
    for dialogue, entries in lines.items():
        session = tmp_path / f"Session{dialogue[4]}"
        text = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
        for name, emotion in entries:
            text += f"[6.2901 - 8.2357]\t{name}\t{emotion}\t[2.5000, 3.5000, 1.0000]\nC-E2:\tNeutral;\t()\n\n"
            sound(session / "sentences" / "wav" / dialogue / f"{name}.wav")
        evaluation = session / "dialog" / "EmoEvaluation" / f"{dialogue}.txt"
        evaluation.parent.mkdir(parents=True)
        evaluation.write_text(text)
    clips = prepare("iemocap")(tmp_path, tmp_path)
    assert [(c.id, c.speaker, c.labels["emotion"], c.labels["session"], c.labels["kind"]) for c in clips] == [
        ("Ses01F_impro01_F000", "Session1_F", "neutral", "Session1", "improvised"),
        ("Ses01F_impro01_M001", "Session1_M", "happiness", "Session1", "improvised"),
        ("Ses02M_script03_2_F010", "Session2_F", "happiness", "Session2", "scripted"),
    ]
    assert clips[0].labels["activation"] == 3.5
    (tmp_path / "Session1" / "sentences" / "wav" / "Ses01F_impro01" / "Ses01F_impro01_F000.wav").unlink()
    with pytest.raises(DataError, match="copy of IEMOCAP is not whole"):
        prepare("iemocap")(tmp_path, tmp_path)


@pytest.mark.parametrize("corpus", ["emodb", "ravdess", "cremad", "iemocap"])
def test_a_missing_folder_is_explained(corpus: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not given: add data.root=FOLDER. .* is expected as"):
        prepare(corpus)(None, tmp_path)
    with pytest.raises(DataError, match=r"nowhere does not exist. .*Give it as data.root=FOLDER"):
        prepare(corpus)(tmp_path / "nowhere", tmp_path)


@pytest.mark.data
def test_the_real_emodb(corpora: Callable[[str], Path], tmp_path: Path) -> None:
    clips = prepare("emodb")(corpora("emodb"), tmp_path)
    assert len(clips) == 535
    assert len({c.speaker for c in clips}) == 10
    assert Counter(c.labels["emotion"] for c in clips) == {
        "anger": 127,
        "boredom": 81,
        "disgust": 46,
        "fear": 69,
        "happiness": 71,
        "neutral": 79,
        "sadness": 62,
    }


@pytest.mark.data
def test_the_real_ravdess(corpora: Callable[[str], Path], tmp_path: Path) -> None:
    clips = prepare("ravdess")(corpora("ravdess"), tmp_path)
    assert {c.speaker for c in clips} == {f"{n:02d}" for n in range(1, 9)}
    assert len({c.labels["emotion"] for c in clips}) == 8
