from __future__ import annotations

from pathlib import Path

import pytest

from mmssl.data.files import natural_key, relative_media, resolve_media, some, write_text
from mmssl.errors import DataError


def test_numbers_in_names_count_as_numbers() -> None:
    names = ["s10", "s9", "s2b", "s2a", "s02", "s2", "S3", "", "10", "9", "²", "s" + "9" * 5000]
    expected = ["", "9", "10", "S3", "s02", "s2", "s2a", "s2b", "s9", "s10", "s" + "9" * 5000, "²"]
    assert sorted(names, key=natural_key) == expected


@pytest.mark.parametrize(
    ("written", "absolute"),
    [
        ("wav/a.wav", "/m/wav/a.wav"),
        ("/other/a.wav", "/other/a.wav"),
        ("/mm/a.wav", "/mm/a.wav"),
        ("https://host/a/../b.wav", "https://host/a/../b.wav"),
        ("s3://bucket/a.wav", "s3://bucket/a.wav"),
    ],
)
def test_media_paths_both_ways(written: str, absolute: str) -> None:
    assert resolve_media(written, Path("/m")) == absolute
    assert relative_media(absolute, Path("/m")) == written


def test_a_step_up_after_a_link_leads_to_the_links_parent(tmp_path: Path) -> None:
    (tmp_path / "real/deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real/deep")
    assert resolve_media("link/../a.wav", tmp_path) == str(tmp_path.resolve() / "real/a.wav")
    assert resolve_media("link/a.wav", tmp_path) == str(tmp_path / "link/a.wav"), "links stay"


def test_text_that_is_not_utf8_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not UTF-8 text"):
        write_text(tmp_path / "x", "name \udcff.wav")
    assert list(tmp_path.iterdir()) == []


def test_some_cuts_a_list() -> None:
    assert some("abc") == "a, b, c"
    assert some("abcdefg") == "a, b, c, d, e (and 2 more)"
    assert some("ab", form=repr) == "'a', 'b'"
