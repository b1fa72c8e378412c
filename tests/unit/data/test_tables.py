from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl.data.tables import export_csv, import_csv
from mmssl.errors import DataError
from mmssl.types import Clip

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=8)


def table(folder: Path, text: str) -> Path:
    path = folder / "t.csv"
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_delimiter_is_found(tmp_path: Path, delimiter: str) -> None:
    rows = [["id", "audio", "start", "duration", "speaker", "emotion"], ["a", "wav/a.wav", "0.5", "2", "01", "anger"]]
    path = table(tmp_path, "\ufeff" + "\r\n".join(delimiter.join(row) for row in rows))
    assert import_csv(path) == [
        Clip("a", str(tmp_path / "wav/a.wav"), start=0.5, duration=2.0, speaker="01", labels={"emotion": "anger"})
    ]


def test_columns_are_renamed_or_left_out_and_empty_cells_are_absent(tmp_path: Path) -> None:
    path = table(tmp_path, 'name;file;rater;mood;note\nx;https://h/x.wav;r1;"a;b";\ny;;r2;;"two\nlines"\n')
    clips = import_csv(path, {"name": "id", "file": "audio", "rater": "", "mood": "emotion"})
    assert clips == [Clip("x", "https://h/x.wav", labels={"emotion": "a;b"}), Clip("y", labels={"note": "two\nlines"})]


def test_labels_are_numbers_only_where_named(tmp_path: Path) -> None:
    path = table(tmp_path, "id,valence,digit\na,-1.5,01\nb,3,1\n")
    clips = import_csv(path, numeric=("valence",))
    assert [c.labels for c in clips] == [{"valence": -1.5, "digit": "01"}, {"valence": 3.0, "digit": "1"}]
    assert type(clips[1].labels["valence"]) is float


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.builds(
            Clip,
            id=TEXT,
            start=st.floats(0, 1e6),
            duration=st.none() | st.floats(0, 1e6),
            speaker=st.none() | TEXT,
            split=st.none() | TEXT,
            labels=st.fixed_dictionaries(
                {}, optional={"word": TEXT, "value": st.floats(allow_nan=False, allow_infinity=False)}
            ),
        ),
        min_size=1,
        max_size=5,
        unique_by=lambda c: c.id,
    ),
    st.sampled_from([",", ";", "\t"]),
)
def test_round_trip_of_any_text(tmp_path_factory, clips: list[Clip], delimiter: str) -> None:
    path = tmp_path_factory.mktemp("t") / "t.csv"
    export_csv(path, clips, delimiter=delimiter)
    numeric = ("value",) if any("value" in c.labels for c in clips) else ()
    assert import_csv(path, numeric=numeric) == clips


def test_media_paths_are_relative_to_the_table(tmp_path: Path) -> None:
    clips = [Clip("a", audio=str(tmp_path / "w/a.wav"), video="/v/a.mp4", image="s3://b/a.png")]
    export_csv(tmp_path / "t.csv", clips)
    assert b"a,w/a.wav,/v/a.mp4,s3://b/a.png,," in (tmp_path / "t.csv").read_bytes()
    assert import_csv(tmp_path / "t.csv") == clips


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("id,audio\n", "no row"),
        ("idd,audio\na,b\n", "no column 'id'. Did you mean 'idd'"),
        ("id,x,x\na,1,2\n", "two columns for 'x'"),
        ("id,x\na,1\nb,1,2\n", r"t.csv:3: 3 cells, but the first line names 2"),
        ("id,x\na,1\na,2\n", r"t.csv:3: the id 'a' is already in line 2"),
        ("id,x\n,1\n", r"t.csv:2: the id is empty"),
        ("id;start\na;1,5\n", "start is '1,5', not a number"),
        ("id,duration\na,inf\n", "duration is 'inf'"),
        ('id,x\na,"b\n', "not a table"),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        import_csv(table(tmp_path, text))


def test_unknown_columns_and_numeric_labels_get_a_hint(tmp_path: Path) -> None:
    path = table(tmp_path, "id,valence\na,x\n")
    with pytest.raises(DataError, match=r"no column 'valense'. Did you mean 'valence'"):
        import_csv(path, {"valense": "v"})
    with pytest.raises(DataError, match=r"no label 'valense' .*Did you mean 'valence'"):
        import_csv(path, numeric=["valense"])
    with pytest.raises(DataError, match="valence is 'x', not a number"):
        import_csv(path, numeric=["valence"])


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        ([], "no clip"),
        ([Clip("a"), Clip("a")], "comes twice"),
        ([Clip("a", labels={"speaker": "x"})], "'speaker' is a clip's field"),
        ([Clip("a", labels={"x": ["y"]})], "text and finite numbers only"),
        ([Clip("a", labels={"x": float("nan")})], "text and finite numbers only"),
    ],
)
def test_what_a_table_cannot_hold(tmp_path: Path, clips: list[Clip], message: str) -> None:
    with pytest.raises(DataError, match=message):
        export_csv(tmp_path / "t.csv", clips)
    assert not (tmp_path / "t.csv").exists()
