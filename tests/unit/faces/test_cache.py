from __future__ import annotations

from pathlib import Path

import pytest

from mmssl.errors import DataError
from mmssl.faces.cache import append_line, file_name, read_lines, same_settings


def test_half_a_line_costs_that_line_alone(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    append_line(file, {"id": "a", "x": 1})
    append_line(file, {"id": "b", "x": 2})
    file.write_bytes(file.read_bytes()[:-6])  # as a kill leaves it
    assert read_lines(file) == {"a": {"id": "a", "x": 1}}
    append_line(file, {"id": "c", "x": 3})
    append_line(file, {"id": "a", "x": 4})
    assert read_lines(file) == {"a": {"id": "a", "x": 4}, "c": {"id": "c", "x": 3}}


def test_settings_that_differ_are_named(tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    same_settings(file, {"a": 1, "b": (1, 2)})
    same_settings(file, {"b": [1, 2], "a": 1})
    with pytest.raises(DataError, match="a: 1 there, 2 asked for"):
        same_settings(file, {"a": 2, "b": [1, 2]})
    file.write_text("{")
    with pytest.raises(DataError, match="damaged"):
        same_settings(file, {"a": 1})


@pytest.mark.parametrize("identifier", ["a/b", "../x", "ü .", "x" * 400, "\udcff"])
def test_every_id_is_a_file_name_of_its_own(tmp_path: Path, identifier: str) -> None:
    name = file_name(identifier)
    (tmp_path / f"{name}.mkv").touch()
    assert "/" not in name
    assert len(name) <= 120
    assert name != file_name(identifier + "x")
