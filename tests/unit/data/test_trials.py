from __future__ import annotations

from pathlib import Path

import pytest

from mmssl.data.trials import Trials, check_trials, make_trials, read_trials, write_trials
from mmssl.errors import DataError

SMALL = Trials(("a/1.wav", "a/1.wav", "b/1.wav"), ("a/2.wav", "b/1.wav", "c/1.wav"), (True, False, False))


@pytest.mark.parametrize("form", ["voxceleb", "kaldi"])
def test_both_forms_go_round(tmp_path: Path, form: str) -> None:
    path = tmp_path / "lists" / "trials"
    write_trials(path, SMALL, form)
    assert read_trials(path) == read_trials(path, form) == SMALL
    assert len(read_trials(path)) == 3


def test_the_published_layouts_are_read(tmp_path: Path) -> None:
    vox, kaldi = tmp_path / "veri_test2.txt", tmp_path / "trials"
    vox.write_text("1 id10270/5r0dWxy17C8/00001.wav id10270/8jEAjG6SegY/00008.wav\n\n0 id1/x/1.wav id2/y/2.wav \r\n")
    assert read_trials(vox) == Trials(
        ("id10270/5r0dWxy17C8/00001.wav", "id1/x/1.wav"),
        ("id10270/8jEAjG6SegY/00008.wav", "id2/y/2.wav"),
        (True, False),
    )
    kaldi.write_text("1 0 target\n0 2 nontarget\n")  # ids that look like labels
    assert read_trials(kaldi) == Trials(("1", "0"), ("0", "2"), (True, False))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no trial"),
        ("1 a b\n2 a b\n", "trials:2: '2 a b' is no trial.*1 enrol test"),
        ("1 a b\n1 a\n", ":2:"),
        ("a b target\n1 a b\n", ":2:.*target|nontarget"),
        ("a b true\n", ":1:"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "trials"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_trials(path)


def test_files_and_forms_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_trials(tmp_path / "none")
    with pytest.raises(DataError, match="auto, voxceleb or kaldi"):
        read_trials(tmp_path / "none", "sre")
    with pytest.raises(DataError, match="voxceleb or kaldi"):
        write_trials(tmp_path / "x", SMALL, "sre")
    with pytest.raises(DataError, match="no white space: 'a b'"):
        write_trials(tmp_path / "x", Trials(("a b",), ("c",), (True,)))
    assert not (tmp_path / "x").exists()


def test_rows_point_into_the_embeddings() -> None:
    assert SMALL.rows(["c/1.wav", "b/1.wav", "a/2.wav", "a/1.wav"]) == ([3, 3, 1], [2, 1, 0])
    with pytest.raises(DataError, match=r"1 clips of the trial list are not among the 3.*c/1.wav"):
        SMALL.rows(["b/1.wav", "a/2.wav", "a/1.wav"])
    with pytest.raises(DataError, match=r"more than once.*a/1.wav"):
        SMALL.rows(["c/1.wav", "b/1.wav", "a/2.wav", "a/1.wav", "a/1.wav"])


def test_a_good_list_has_nothing_to_say() -> None:
    ids = {*SMALL.enrol, *SMALL.test}
    assert check_trials(SMALL, ids, {i: i[0] for i in ids}) == ()


def test_oddities_are_stated() -> None:
    odd = Trials(("a", "a", "b", "c", "a"), ("b", "b", "a", "c", "d"), (True, True, True, True, False))
    assert check_trials(odd) == (
        "1 of 5 trials repeat another one and count again.",
        "1 pairs of clips occur in both orders.",
        "1 target trials compare a clip with itself and cannot fail.",
    )


@pytest.mark.parametrize(
    ("trials", "message"),
    [
        (Trials(("a", "b"), ("b", "c"), (True, True)), "2 target and 0 non-target"),
        (Trials(("a", "b"), ("b", "c"), (False, False)), "0 target and 2 non-target"),
        (Trials((), (), ()), "0 target"),
        (Trials(("a", "a"), ("a", "b"), (False, True)), "with itself and say non-target: a a"),
        (Trials(("a", "c"), ("c", "a"), (True, False)), "both labels: a c"),
        (Trials(("a", "a"), ("x", "b"), (True, False)), "not among the 3 clips given: x"),
        (Trials(("a", "a"), ("b", "c"), (True, False)), "speakers of their clips contradict: a b"),
    ],
)
def test_faults_are_refused(trials: Trials, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_trials(trials, ["a", "b", "c"], {"a": "s1", "b": "s2"})


def test_made_lists_are_balanced_and_clean() -> None:
    speakers = {f"{s}-{i}": s for s in ("anna", "ben", "cleo") for i in range(8)}
    trials = make_trials(speakers, per_speaker=10, seed=3)
    assert check_trials(trials, speakers, speakers) == ()
    assert sum(trials.is_target) == 30
    assert len(trials) == 60
    assert trials == make_trials(dict(reversed(speakers.items())), per_speaker=10, seed=3)
    assert trials != make_trials(speakers, per_speaker=10, seed=4)
    for name in ("anna", "ben", "cleo"):
        assert sum(a.startswith(name) for a in trials.enrol) == 20


def test_made_lists_take_what_there_is() -> None:
    trials = make_trials({"a1": "a", "a2": "a", "b1": "b"}, per_speaker=50)
    assert check_trials(trials) == ()
    assert sum(trials.is_target) == 1
    for wrong in ({"a1": "a", "a2": "a"}, {"a1": "a", "b1": "b"}):
        with pytest.raises(DataError, match="two speakers and two clips"):
            make_trials(wrong)
    with pytest.raises(DataError, match="per_speaker"):
        make_trials({"a1": "a", "a2": "a", "b1": "b"}, per_speaker=0)
