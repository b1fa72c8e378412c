from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmssl.data.audit import audit
from mmssl.data.splits import Fold, make_folds
from mmssl.errors import DataError
from mmssl.types import Clip


@pytest.fixture
def clips(tmp_path: Path) -> list[Clip]:
    """Eight clips of two speakers; clip 7 is a copy of clip 0 under another name and speaker."""
    made = []
    for n in range(8):
        path = tmp_path / f"{n}.wav"
        path.write_bytes(b"0" if n == 7 else str(n).encode())
        labels = {"emotion": "joy" if n < 2 else "anger", "text": f"words {n}", "valence": n / 10}
        made.append(Clip(str(n), audio=str(path), duration=float(n + 1), labels=labels, speaker=f"s{n % 2}"))
    return made


def test_counts_and_durations(clips: list[Clip]) -> None:
    clips[3] = Clip("3", audio=clips[3].audio)
    result = audit(clips, label="emotion", durations={"0": 3601.0})
    assert (result.clips, result.speakers, result.without_speaker, result.without_duration) == (8, 2, 1, 1)
    assert result.hours == pytest.approx((3601 + 2 + 3 + 5 + 6 + 7 + 8) / 3600)
    assert result.durations is not None
    assert (result.durations.min, result.durations.median, result.durations.max) == (2.0, 6.0, 3601.0)
    assert result.durations.mean == pytest.approx(3632 / 7)
    (label,) = result.labels
    assert label.total == {"anger": 5, "joy": 2}
    assert (label.missing, label.imbalance) == (1, 2.5)
    assert label.per_speaker == {"s0": {"anger": 3, "joy": 1}, "s1": {"anger": 2, "joy": 1}}
    assert label.per_part == {}
    assert result.parts == {}


def test_labels_of_few_strings_are_counted_unless_one_is_named(clips: list[Clip]) -> None:
    many = [Clip(f"m{n}", labels={"text": f"sentence {n}"}) for n in range(60)]
    assert [label.name for label in audit([*clips, *many], checksum=False).labels] == ["emotion"]
    with pytest.raises(DataError, match="Did you mean 'emotion'"):
        audit(clips, label="emotoin")


def test_overlap_and_copies_between_the_splits_of_the_manifest(clips: list[Clip]) -> None:
    splits = ["train", "train", "train", "dev", "dev", "test", "test", "test"]
    split = [Clip(**(vars(c) | {"split": s, "duration": None})) for c, s in zip(clips, splits, strict=True)]
    result = audit(split, label="emotion")
    assert result.parts == {"train": 3, "dev": 2, "test": 3}
    assert [o.parts for o in result.overlaps] == [("train", "dev"), ("train", "test"), ("dev", "test")]
    assert result.overlaps[1].speakers == ("s0", "s1")
    assert [o.duplicates for o in result.overlaps] == [(), (("0", "7"),), ()]
    assert result.labels[0].per_part["train"] == {"anger": 1, "joy": 2}
    assert result.labels[0].per_part["test"] == {"anger": 3, "joy": 0}


def test_copies_are_the_same_bytes_and_the_same_segment(clips: list[Clip]) -> None:
    whole = [Clip(c.id, audio=c.audio) for c in clips]
    assert audit(whole).duplicates == (("0", "7"),)
    for other in ({"start": 0.5}, {"duration": 0.5}):
        assert audit([*whole[:7], Clip("7", audio=clips[7].audio, **other)]).duplicates == ()
    assert audit(whole, checksum=False).duplicates == ()
    gone = [*whole, Clip("gone", audio="/nowhere/x.wav"), Clip("url", audio="https://host/x.wav"), Clip("none")]
    assert audit(gone).unreadable == ("gone",)


def test_folds_are_compared_one_by_one(clips: list[Clip]) -> None:
    bad = Fold("bad", ("0", "2"), ("1",), ("4", "7"))
    good = Fold("good", ("0", "2"), (), ("1", "3"))
    result = audit(clips, folds=[bad, good], label="emotion")
    assert [(o.fold, o.parts, o.speakers) for o in result.overlaps] == [
        ("bad", ("train", "test"), ("s0",)),
        ("bad", ("dev", "test"), ("s1",)),
    ]
    assert result.parts["good/test"] == 2
    assert result.labels[0].per_part["bad/test"] == {"anger": 2, "joy": 0}
    with pytest.raises(DataError, match="not in the manifest: zz"):
        audit(clips, folds=[Fold("x", ("zz",), (), ())])


def test_copies_leak_across_speaker_disjoint_folds() -> None:
    here = __file__
    clips = [Clip(f"{s}{n}", audio=here, start=float(n), speaker=s) for s in "abc" for n in range(2)]
    result = audit(clips, folds=make_folds(clips, scheme="leave_one_group_out"))
    assert all(not o.speakers and len(o.duplicates) == 2 for o in result.overlaps)
    assert len(result.overlaps) == 9


def test_the_result_is_plain_and_readable(clips: list[Clip]) -> None:
    result = audit(
        [Clip(**(vars(c) | {"duration": None})) for c in clips], folds=[Fold("f1", ("0",), ("1",), ("2", "7"))]
    )
    plain = json.loads(json.dumps(result.to_dict()))
    assert plain["labels"][0]["per_speaker"]["s0"] == {"anger": 3, "joy": 1}
    assert plain["durations"] is None
    text = result.render()
    assert "f1: train and test share 1 speakers: s0" in text
    assert "f1: train and test share 1 pieces of the same audio: 0 = 7" in text
    assert "largest / smallest class = 3.00" in text
    assert "(8 clips without a known duration)" in text
    assert "not known: the clips have no split" in audit(clips, checksum=False).render()
    assert "not looked for" in audit(clips, checksum=False).render()
    assert audit([]).clips == 0
    assert audit([]).render()
