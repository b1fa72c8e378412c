from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mmssl.data.manifest import read_manifest, scan_manifest, write_manifest
from mmssl.errors import DataError
from mmssl.types import Clip


def write(folder: Path, *lines: str) -> Path:
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_round_trip_is_exact(tmp_path: Path) -> None:
    clips = [
        Clip("b2", audio=str(tmp_path / "wav/b.wav"), start=0.1, duration=1 / 3, labels={"valence": 0.1 + 0.2, "n": 3}),
        Clip(
            "a ü \u2028 日本",
            video=str(tmp_path.parent / "other/ä.mp4"),
            speaker="s1",
            split="fold1",
            labels={"e": "ärger"},
        ),
        Clip("url", audio="https://host/a.wav", image="s3://bucket/x.png", labels={"tags": ["x", 1.5], "none": None}),
        Clip("\udcff", audio=str(tmp_path / "not-utf8-\udcff.wav")),
    ]
    path = tmp_path / "manifest.jsonl"
    write_manifest(path, clips)
    again = read_manifest(path)
    assert again == clips
    assert isinstance(again[0].labels["n"], int)
    assert isinstance(again[0].labels["valence"], float)


def test_media_under_the_folder_is_written_relative_and_others_absolute(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "data" / "manifest.jsonl"
    outside = str(tmp_path / "corpus/x.wav")
    write_manifest(path, [Clip("a", audio=str(tmp_path / "data/wav/a.wav")), Clip("b", audio="corpus/x.wav")])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"id": "a", "audio": "wav/a.wav"}, {"id": "b", "audio": outside}]
    assert [c.audio for c in read_manifest("data/manifest.jsonl")] == [str(tmp_path / "data/wav/a.wav"), outside]


def test_a_path_that_climbs_out_of_the_folder_is_resolved(tmp_path: Path) -> None:
    path = write(tmp_path, '{"id": "a", "audio": "../wav/a.wav"}')
    assert read_manifest(path)[0].audio == str(tmp_path.resolve().parent / "wav" / "a.wav")


def test_absent_keys_have_the_defaults_and_blank_lines_do_not_count(tmp_path: Path) -> None:
    path = write(tmp_path, "", '{"id": "a", "start": 2, "speaker": null}', "  ")
    (clip,) = read_manifest(path)
    assert clip == Clip("a", start=2.0)
    assert isinstance(clip.start, float)


def test_a_byte_order_mark_and_carriage_returns_are_read(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": "a"}\r\n{"id": "b"}\r\n')
    assert [c.id for c in read_manifest(path)] == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "b", "speeker": "x"}', "unknown key 'speeker'. Did you mean 'speaker'?"),
        ('{"id": "a"}', "'a' is already the id of line 1"),
        ('{"audio": "x.wav"}', "no id"),
        ('{"id": 3}', "id is 3 \\(number\\). It must be a string"),
        ('{"id": ""}', "id is ''"),
        ('{"id": "b"', "not JSON"),
        ('["b"]', "a JSON list, not an object"),
        ('{"id": "b", "start": "1.0"}', "start is '1.0' \\(string\\). It must be a finite number"),
        ('{"id": "b", "start": true}', "start is True \\(boolean\\)"),
        ('{"id": "b", "start": null}', "start is None \\(null\\)"),
        ('{"id": "b", "duration": NaN}', "NaN is not a JSON number"),
        ('{"id": "b", "duration": 1e999}', "duration is inf"),
        ('{"id": "b", "labels": ["x"]}', "labels is \\['x'\\] \\(list\\)"),
        ('{"id": "b", "speaker": 3}', "speaker is 3 \\(number\\)"),
        ('{"id": "b", "audio": ""}', "audio is ''"),
        ('{"id": "b", "id": "c"}', "the key 'id' comes twice"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_each_fault_names_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path, '{"id": "a"}', line)
    with pytest.raises(DataError, match=f"manifest.jsonl:2: .*{message}"):
        read_manifest(path)


def test_all_faults_are_named_at_once_and_good_lines_are_scanned(tmp_path: Path) -> None:
    path = write(tmp_path, '{"id": "a", "x": 1, "start": "s"}', '{"id": "b"}', "nonsense")
    clips, faults = scan_manifest(path)
    assert [c.id for c in clips] == ["b"]
    assert [(f.line, f.field) for f in faults] == [(1, "x"), (1, "start"), (3, "")]
    with pytest.raises(DataError) as caught:
        read_manifest(path)
    assert str(caught.value).count("manifest.jsonl:") == 3


def test_a_long_list_of_faults_is_cut(tmp_path: Path) -> None:
    path = write(tmp_path, *["{"] * 25)
    with pytest.raises(DataError, match="15 more faults"):
        read_manifest(path)


def test_missing_empty_and_undecodable_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_manifest(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="holds no clip"):
        read_manifest(write(tmp_path, "", ""))
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "a"}\n{"id": "\xe4"}\n')
    with pytest.raises(DataError, match=r"latin.jsonl:2: not UTF-8"):
        read_manifest(tmp_path / "latin.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        ([], "no clip to write"),
        ([Clip("a"), Clip("a")], "Two clips have the id 'a'"),
        ([Clip("a", labels={"x": float("nan")})], "'a' cannot be written as JSON"),
        ([Clip("a", labels={"x": object()})], "'a' cannot be written as JSON"),
        ([Clip("a", labels={1: "x"})], "label name 1 is not a string"),  # type: ignore[dict-item]
        ([Clip("a", start=float("inf"))], "start is inf"),
    ],
)
def test_what_cannot_be_read_back_is_not_written(tmp_path: Path, clips: list[Clip], message: str) -> None:
    path = write(tmp_path, '{"id": "old"}')
    with pytest.raises(DataError, match=message):
        write_manifest(path, clips)
    assert [c.id for c in read_manifest(path)] == ["old"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch) -> None:
    path = write(tmp_path, '{"id": "old"}')

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="No space left on device"):
        write_manifest(path, [Clip("new")])
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.jsonl"]
    assert [c.id for c in read_manifest(path)] == ["old"]


def test_a_link_is_written_through(tmp_path: Path) -> None:
    real = write(tmp_path, '{"id": "old"}')
    link = tmp_path / "link.jsonl"
    link.symlink_to(real)
    write_manifest(link, [Clip("new")])
    assert link.is_symlink()
    assert [c.id for c in read_manifest(real)] == ["new"]
