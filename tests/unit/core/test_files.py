from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from mmssl.errors import DataError
from mmssl.files import filesystem, is_url, replace_file


@pytest.mark.parametrize("named", [False, True])
def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool) -> None:
    path, temporary = tmp_path / "a.bin", tmp_path / "tmp-a" if named else None
    with replace_file(path, temporary=temporary) as file:
        file.write(b"old")
        assert not path.exists()
    assert path.read_bytes() == b"old"
    assert path.stat().st_mode & 0o600 == 0o600
    assert path.stat().st_mode & stat.S_IROTH

    def fails(_: int) -> None:
        raise OSError(28, "No space left on device")

    def work(error: bool) -> None:
        with replace_file(path, temporary=temporary) as file:
            file.write(b"new")
            if error:
                raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        work(error=True)
    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="No space"):
        work(error=False)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_urls() -> None:
    assert is_url("s3://bucket/a.wav")
    assert is_url("file:///a")
    assert not is_url("/a//b.wav")
    assert not is_url("a:b")


def test_file_systems_of_urls(tmp_path: Path) -> None:
    system, place = filesystem(tmp_path.as_uri(), DataError)
    assert place == str(tmp_path)
    assert system.isdir(place)
    with pytest.raises(DataError, match="Protocol not known: nosuch"):
        filesystem("nosuch://a/b", DataError)
