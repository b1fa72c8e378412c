from __future__ import annotations

import json
import wave
from pathlib import Path

import pytest

from mmssl.data.manifest import read_manifest, write_manifest
from mmssl.data.splits import Fold, write_folds
from mmssl.stages.cli import main
from mmssl.types import Clip


def write_wav(path: Path, seconds: float = 1.0, first: int = 1) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as stream:
        stream.setnchannels(1)
        stream.setsampwidth(2)
        stream.setframerate(8000)
        stream.writeframes(bytes([first, 0]) * round(8000 * seconds))
    return str(path)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    clips = [
        Clip(
            f"c{n}",
            audio=write_wav(tmp_path / f"wav/c{n}.wav", 1.0 + n, n + 1),
            labels={"emotion": "ab"[n % 2]},
            speaker=f"s{n // 2}",
        )
        for n in range(6)
    ]
    write_manifest(tmp_path / "m.jsonl", clips)
    return tmp_path / "m.jsonl"


def test_validate_a_good_manifest(manifest: Path, capsys) -> None:
    assert main(["data", "validate", str(manifest), "--label", "emotion", "--require-speaker"]) == 0
    assert "6 clips, no fault" in capsys.readouterr().out


def test_validate_names_all_faults_of_lines_clips_and_files(manifest: Path, capsys) -> None:
    (manifest.parent / "wav/c1.wav").unlink()
    (manifest.parent / "wav/c2.wav").write_text("this is text")
    with manifest.open("a") as stream:
        stream.write('{"id": "c0"}\n{"id": "long", "audio": "wav/c0.wav", "duration": 9}\n{"idd": 3}\n')
    assert main(["data", "validate", str(manifest), "--label", "emotion"]) == 1
    out, err = capsys.readouterr()
    assert [line.split(": ")[0].removeprefix(str(manifest)) for line in out.splitlines() if line.strip()] == [
        ":7",
        ":9",
        ":9",
        "c1",
        "c2",
        "long",
        "long",
    ]
    assert "Did you mean 'id'" in out
    assert "ends at 9 s" in out
    assert "7 faults" in err
    assert main(["data", "validate", str(manifest), "--no-media"]) == 1
    out = capsys.readouterr().out
    assert "c1" in out
    assert "c2" not in out


def test_a_missing_manifest_is_one_message(tmp_path: Path, capsys) -> None:
    assert main(["data", "validate", str(tmp_path / "no.jsonl")]) == 1
    assert "does not exist" in capsys.readouterr().err


def test_audit_reads_durations_and_folds(manifest: Path, tmp_path: Path, capsys) -> None:
    write_folds(tmp_path / "folds.json", [Fold("f", ("c0", "c2"), ("c4",), ("c1",))])
    arguments = ["data", "audit", str(manifest), "--label", "emotion", "--folds", str(tmp_path / "folds.json")]
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["hours"] == pytest.approx(21 / 3600)
    assert result["overlaps"] == [{"fold": "f", "parts": ["train", "test"], "speakers": ["s0"], "duplicates": []}]
    assert main(arguments) == 0
    assert "f: train and test share 1 speakers: s0" in capsys.readouterr().out
    assert main(["data", "audit", str(manifest), "--no-media"]) == 0
    assert "6 clips without a known duration" in capsys.readouterr().out
    assert main(["data", "audit", str(manifest), "--label", "emotoin"]) == 1


def test_kaldi_and_back(manifest: Path, tmp_path: Path) -> None:
    assert main(["data", "export", "kaldi", str(manifest), str(tmp_path / "kaldi")]) == 0
    assert main(["data", "import", "kaldi", str(tmp_path / "kaldi"), str(tmp_path / "again.jsonl")]) == 0
    assert read_manifest(tmp_path / "again.jsonl") == read_manifest(manifest)


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_csv_and_back(manifest: Path, tmp_path: Path, name: str) -> None:
    assert main(["data", "export", "csv", str(manifest), str(tmp_path / "x" / name)]) == 0
    assert ("\t" in (tmp_path / "x" / name).read_text()) == (name == "t.tsv")
    assert main(["data", "import", "csv", str(tmp_path / "x" / name), str(tmp_path / "again.jsonl")]) == 0
    assert read_manifest(tmp_path / "again.jsonl") == read_manifest(manifest)


def test_csv_columns_are_renamed_and_numbers_read(tmp_path: Path, capsys) -> None:
    (tmp_path / "t.csv").write_text("name,valence,extra\na,0.5,x\n")
    arguments = ["data", "import", "csv", str(tmp_path / "t.csv"), str(tmp_path / "m.jsonl"), "--numeric", "valence"]
    assert main([*arguments, "--column", "name=id", "--column", "extra="]) == 0
    assert read_manifest(tmp_path / "m.jsonl") == [Clip("a", labels={"valence": 0.5})]
    assert main([*arguments, "--column", "name"]) == 1
    assert "NAME=FIELD" in capsys.readouterr().err
    assert main([*arguments, "--split", "train"]) == 1


def test_mini_writes_a_manifest(tmp_path: Path, monkeypatch) -> None:
    seeds = []

    def make_mini(folder: Path, *, seed: int) -> list[Clip]:
        seeds.append(seed)
        return [Clip("a", audio=str(folder / "wav/a.wav"))]

    monkeypatch.setattr("mmssl.media.mini.make_mini", make_mini)
    assert main(["data", "mini", str(tmp_path / "mini"), "--seed", "3"]) == 0
    assert seeds == [3]
    assert json.loads((tmp_path / "mini/manifest.jsonl").read_text()) == {"id": "a", "audio": "wav/a.wav"}


def test_wrong_usage_leaves_with_two(capsys) -> None:
    for arguments in (["data"], ["data", "validate"], ["data", "import", "xml", "a", "b"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
