from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pytest

from mmssl.data.validate import END_TOLERANCE, validate
from mmssl.errors import MediaError
from mmssl.types import Clip


@dataclass
class Info:
    duration: float


def probe_of(seconds: float = 2.0):
    def probe(path: str) -> Info:
        if "broken" in path:
            raise MediaError(f"{path} is truncated.")
        return Info(seconds)

    return probe


@pytest.fixture
def wav(tmp_path: Path):
    def make(name: str = "a.wav") -> str:
        (tmp_path / name).write_bytes(name.encode())
        return str(tmp_path / name)

    return make


def found(clips: list[Clip], **arguments) -> list[tuple[str | None, str]]:
    faults = validate(clips, **arguments)
    assert all(f.problem and f.fix and f.field in str(f) for f in faults)
    return [(f.clip_id, f.field) for f in faults]


def test_good_clips_have_no_fault(wav) -> None:
    clips = [
        Clip("a", audio=wav(), start=0.0, duration=1.0, labels={"emotion": "joy", "valence": 0.5}, speaker="s"),
        Clip("b", audio=wav(), start=1.0, duration=1.0 + END_TOLERANCE, labels={"emotion": "anger"}, speaker="s"),
        Clip("c", image="https://host/c.png", labels={"emotion": "joy"}, speaker="t"),
    ]
    assert found(clips, probe=probe_of(), required_labels=["emotion"], require_speaker=True) == []
    assert found([]) == []


def test_media(wav, tmp_path: Path) -> None:
    empty = tmp_path / "empty.wav"
    empty.touch()
    clips = [
        Clip("none"),
        Clip("missing", audio=str(tmp_path / "x.wav"), video=str(tmp_path / "x.mp4")),
        Clip("folder", audio=str(tmp_path)),
        Clip("empty", image=str(empty)),
        Clip("broken", audio=wav("broken.wav")),
    ]
    expected = [("none", "audio"), ("missing", "audio"), ("missing", "video"), ("folder", "audio"), ("empty", "image")]
    assert found(clips) == expected
    assert found(clips, probe=probe_of()) == [*expected, ("broken", "audio")]


@pytest.mark.parametrize(
    ("start", "duration", "field"),
    [
        (-0.1, None, "start"),
        (math.nan, None, "start"),
        (2.0, None, "start"),
        (0.0, 0.0, "duration"),
        (0.0, -1.0, "duration"),
        (0.0, math.nan, "duration"),
        (0.0, math.inf, "duration"),
        (1.5, 0.56, "duration"),
        (0.0, 32000, "duration"),
    ],
)
def test_segments(wav, start: float, duration: float | None, field: str) -> None:
    assert found([Clip("a", audio=wav(), start=start, duration=duration)], probe=probe_of()) == [("a", field)]


def test_a_file_without_sound(wav) -> None:
    assert found([Clip("a", audio=wav())], probe=probe_of(0.0)) == [("a", "audio")]


def test_each_file_is_probed_once(wav) -> None:
    calls: list[str] = []

    def probe(path: str) -> Info:
        calls.append(path)
        return Info(10.0)

    assert found([Clip(str(n), audio=wav(), start=n, duration=1.0) for n in range(9)], probe=probe) == []
    assert len(calls) == 1


def test_duplicates_of_file_and_segment(wav, tmp_path: Path) -> None:
    (tmp_path / "link.wav").symlink_to(wav())
    clips = [
        Clip("a", audio=wav(), duration=1.0),
        Clip("b", audio=wav(), start=1.0),
        Clip("c", audio=str(tmp_path / "link.wav"), duration=1.0),
        Clip("d", audio=wav(), start=1.0, duration=1.0),
        Clip("a", audio=wav("other.wav")),
    ]
    assert found(clips) == [("c", "id"), ("a", "id")]
    assert found(clips, probe=probe_of()) == [("c", "id"), ("d", "id"), ("a", "id")]
    assert "as clip 'a'" in validate(clips)[0].problem


def test_labels(wav) -> None:
    clips = [
        Clip("a", audio=wav("a"), labels={"emotion": "joy", "sex": "f", "v": math.inf}),
        Clip("b", audio=wav("b"), labels={"emotoin": "joy", "sex": "f"}),
        Clip("c", audio=wav("c"), labels={"emotion": "", "sex": "f"}),
        Clip("d", audio=wav("d"), labels={"emotion": "anger", "sex": "f"}, speaker="s"),
    ]
    expected = [("a", "labels.v"), ("b", "labels.emotion"), ("c", "labels.emotion"), (None, "labels.sex")]
    assert found(clips, required_labels=["emotion", "sex"]) == expected
    faults = validate(clips, required_labels=["emotion"])
    assert "Did you mean 'emotoin'" in faults[1].fix
    assert [f for f in found(clips, require_speaker=True) if f[1] == "speaker"] == [(i, "speaker") for i in "abc"]


def test_a_label_that_no_clip_has_is_one_fault(wav) -> None:
    clips = [Clip(str(n), audio=wav(str(n)), labels={"emotion": "ab"[n % 2]}) for n in range(5)]
    (fault,) = validate(clips, required_labels=["emotoin"])
    assert fault.clip_id is None
    assert "Did you mean 'emotion'" in fault.fix


def test_values_that_look_alike(wav) -> None:
    values = [("joy", "S1"), ("Joy ", "s1"), ("joy", "s2"), ("anger", "s2")]
    clips = [Clip(str(n), audio=wav(str(n)), labels={"emotion": e}, speaker=s) for n, (e, s) in enumerate(values)]
    faults = validate(clips)
    assert [(f.clip_id, f.field) for f in faults] == [(None, "speaker"), (None, "labels.emotion")]
    assert "'Joy ' (1 clips), 'joy' (2 clips)" in faults[1].problem


def test_the_tolerance_is_that_of_the_loader() -> None:
    from mmssl.media import audio

    assert END_TOLERANCE == audio.END_TOLERANCE
