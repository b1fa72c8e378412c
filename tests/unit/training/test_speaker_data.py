from __future__ import annotations

import wave
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl.augment.base import Augmentation
from mmssl.augment.speed import resampled
from mmssl.errors import ConfigError, DataError, MediaError
from mmssl.media.audio import load_audio
from mmssl.training.readers import AudioReader
from mmssl.training.speaker_data import (
    SpeakerBatches,
    check_speeds,
    fingerprint,
    hold_out_speakers,
    refuse_overlap,
    speaker_loader,
    speaker_names,
    usable_clips,
)
from mmssl.types import Clip

READER = AudioReader(16000)


def named(counts: dict[str, int]) -> list[Clip]:
    return [
        Clip(f"{s}-{k}", audio=f"{s}-{k}.wav", speaker=s, duration=1.0) for s, n in counts.items() for k in range(n)
    ]


def written(folder: Path, counts: dict[str, int], samples: int = 4000) -> list[Clip]:
    rng = np.random.default_rng(0)
    clips = []
    for clip in named(counts):
        path = folder / str(clip.audio)
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16000)
            file.writeframes(rng.integers(-9000, 9000, samples).astype("<i2").tobytes())
        clips.append(replace(clip, audio=str(path), duration=samples / 16000))
    return clips


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.integers(1, 7), min_size=2, max_size=6),
    per_speaker=st.integers(1, 3),
    per_batch=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_speakers_and_the_clips_of_each_are_equally_frequent(
    counts: list[int], per_speaker: int, per_batch: int, seed: int
) -> None:
    clips = named({f"s{k}": n for k, n in enumerate(counts)})
    size = max(2, per_speaker * per_batch // per_speaker * per_speaker)
    size += -size % per_speaker
    batches = SpeakerBatches(clips, READER, size, (400, 400), clips_per_speaker=per_speaker, seed=seed)
    drawn = [item for number in range(25) for item in batches.chosen(number)]
    speakers = Counter(speaker for speaker, _ in drawn)
    assert max(speakers.values()) - min(speakers.get(s, 0) for s in range(len(counts))) <= per_speaker
    for speaker, name in enumerate(batches.speakers):
        own = Counter(index for s, index in drawn if s == speaker)
        members = [index for index, clip in enumerate(clips) if clip.speaker == name]
        assert set(own) <= set(members)
        assert max(own.values()) - min(own.get(index, 0) for index in members) <= 1


def test_a_pass_is_in_a_new_order_and_a_speaker_comes_with_its_own_clips_in_a_row() -> None:
    batches = SpeakerBatches(named({f"s{k}": 5 for k in range(8)}), READER, 16, (400, 400), clips_per_speaker=2, seed=3)
    first, second = ([speaker for speaker, _ in batches.chosen(number)] for number in (0, 1))
    assert first[0::2] == first[1::2]
    assert sorted(first[0::2]) == sorted(second[0::2]) == list(range(8))
    assert first != second
    indices = [index for _, index in batches.chosen(0)]
    assert all(a != b for a, b in zip(indices[0::2], indices[1::2], strict=True))


def test_a_batch_is_a_function_of_seed_and_number_alone(tmp_path: Path) -> None:
    clips = written(tmp_path, {"a": 3, "b": 2, "c": 4})

    def build(seed: int = 5, cache: int = 0) -> SpeakerBatches:
        return SpeakerBatches(clips, READER, 6, (800, 1200), speeds=(1.0, 0.9, 1.1), seed=seed, cache_bytes=cache)

    straight = [build()[number] for number in range(4)]
    turned = build(cache=2**20)
    for number in (3, 1, 0, 2):
        again = turned[number]
        assert torch.equal(again.waveforms.data, straight[number].waveforms.data)
        assert torch.equal(again.labels, straight[number].labels)
        assert again.seeds == straight[number].seeds
    assert not torch.equal(build(6)[0].labels, straight[0].labels) or build(6)[0].ids != straight[0].ids
    sizes = {batch.waveforms.data.shape[1] for batch in straight}
    assert len(sizes) > 1
    assert all(800 <= size <= 1200 for size in sizes)
    by_loader = list(speaker_loader(turned, 2, 4, num_workers=1))
    assert [batch.number for batch in by_loader] == [2, 3]
    assert torch.equal(by_loader[0].waveforms.data, straight[2].waveforms.data)


def test_every_speed_is_a_speaker_and_as_likely_as_the_others(tmp_path: Path) -> None:
    clips = written(tmp_path, {"a": 2, "b": 2}, samples=1200)
    batches = SpeakerBatches(clips, READER, 100, (400, 400), speeds=(1.0, 0.9, 1.1), seed=0, cache_bytes=2**20)
    labels = torch.cat([batches[number].labels for number in range(3)])
    counts = torch.bincount(labels, minlength=6)
    assert counts.sum() == 300
    # 50 expected, deviation 5.8
    assert counts.min() > 25
    assert counts.max() < 75
    speakers = [clips[0].speaker if clip.startswith("a") else "b" for clip in batches[0].ids]
    assert [batches.speakers[int(label) % 2] for label in batches[0].labels] == speakers


def test_a_crop_is_a_stretch_of_the_clip_played_at_its_speed(tmp_path: Path) -> None:
    clips = written(tmp_path, {"a": 1, "b": 1}, samples=1100)
    whole, _ = load_audio(str(clips[0].audio))
    batches = SpeakerBatches(clips, READER, 2, (700, 700), seed=1)
    generator = torch.Generator().manual_seed(0)
    plain = batches._crop(whole, Fraction(1), 700, generator)
    places = whole.unfold(0, 700, 1)
    assert (places == plain).all(1).any()
    for speed in (Fraction(9, 10), Fraction(11, 10)):
        fast = batches._crop(whole, speed, 700, torch.Generator().manual_seed(0))
        needed = -(-700 * speed.numerator // speed.denominator)
        every = torch.stack([resampled(stretch, speed)[:700] for stretch in whole.unfold(0, needed, 1)])
        assert (every - fast).abs().amax(1).min() < 1e-6


def test_a_short_clip_is_repeated(tmp_path: Path) -> None:
    clips = written(tmp_path, {"a": 1, "b": 1}, samples=500)
    crop = SpeakerBatches(clips, READER, 2, (1400, 1400), seed=0)[0].waveforms.data[0]
    torch.testing.assert_close(crop[:900], crop[500:])
    assert crop[:500].std() > 0


class AddOne(Augmentation):
    def __call__(self, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return x + 1


def test_crops_are_augmented(tmp_path: Path) -> None:
    clips = written(tmp_path, {"a": 1, "b": 1})
    plain, changed = (SpeakerBatches(clips, READER, 2, (700, 700), augmentation=a, seed=0)[0] for a in (None, AddOne()))
    torch.testing.assert_close(changed.waveforms.data, plain.waveforms.data + 1)


def test_holding_out_is_by_speaker_and_follows_the_seed() -> None:
    clips = named({f"s{k}": 3 for k in range(9)})
    train, dev = hold_out_speakers(clips, 3, seed=1)
    assert not set(speaker_names(train)) & set(speaker_names(dev))
    assert len(speaker_names(dev)) == 3
    assert sorted(c.id for c in (*train, *dev)) == sorted(c.id for c in clips)
    assert hold_out_speakers(clips[::-1], 3, seed=1)[1] == dev[::-1]
    assert any(hold_out_speakers(clips, 3, seed=k)[1] != dev for k in range(2, 6))
    with pytest.raises(DataError, match="From 9 speakers 2 to 7"):
        hold_out_speakers(clips, 8)
    with pytest.raises(DataError, match="1 clips have no speaker: s0-0"):
        hold_out_speakers([replace(clips[0], speaker=None), *clips[1:]], 3)


def test_leakage_is_refused() -> None:
    clips = named({"a": 2, "b": 2, "c": 2})
    with pytest.raises(DataError, match="1 speakers are both in training and development: b"):
        refuse_overlap(clips[:4], clips[2:])
    with pytest.raises(DataError, match="1 stretches of sound are both"):
        refuse_overlap(clips[:2], [replace(clips[0], speaker="z")])
    refuse_overlap(clips[:2], clips[2:])


def test_what_cannot_be_used_is_named_or_left_out(tmp_path: Path) -> None:
    clips = written(tmp_path, {"a": 2, "b": 2}, samples=8000) + written(tmp_path, {"c": 1}, samples=8000)
    tenth = written(tmp_path, {"d": 2}, samples=1600)
    with pytest.raises(DataError, match=r"2 of 7 clips are too short.*'d-0': It lasts 0.100 s.*0.300 s"):
        usable_clips(clips + tenth, READER, 0.3, 1, "raise")
    with pytest.raises(DataError, match="1 speakers have fewer than 2 usable clips: c"):
        usable_clips(clips, READER, 0.3, 2, "raise")
    missing = Clip("gone", audio=str(tmp_path / "gone.wav"), speaker="a")
    with pytest.raises(MediaError, match=r"gone\.wav"):
        usable_clips([missing], READER, 0.3, 1, "raise")
    good, skipped = usable_clips([*clips, *tenth, missing], READER, 0.3, 2, "skip")
    assert [clip.id for clip in good] == ["a-0", "a-1", "b-0", "b-1"]
    assert sorted(skipped) == ["c-0", "d-0", "d-1", "gone"]
    with pytest.raises(ConfigError, match="'raise' or 'skip'"):
        usable_clips(clips, READER, 0.3, 1, "ignore")


def test_settings_out_of_range_are_named() -> None:
    clips = named({"a": 2, "b": 2})
    with pytest.raises(ConfigError, match="multiple of clips_per_speaker, got 5 and 2"):
        SpeakerBatches(clips, READER, 5, (400, 400), clips_per_speaker=2)
    with pytest.raises(ConfigError, match="400 samples at least"):
        SpeakerBatches(clips, READER, 4, (300, 400))
    with pytest.raises(DataError, match="at least two speakers, got 1"):
        SpeakerBatches(named({"a": 3}), READER, 4, (400, 400))
    for wrong in ((), (0.9, 1.0), (1.0, 1.0), (1.0, 3.0)):
        with pytest.raises(ConfigError, match="the first of them 1"):
            check_speeds(wrong)


def test_a_fingerprint_follows_clips_and_settings() -> None:
    clips = named({"a": 2, "b": 2})
    base = fingerprint(clips, {"x": 1, "y": 2})
    assert base == fingerprint(clips, {"y": 2, "x": 1})
    assert base != fingerprint(clips[:3], {"x": 1, "y": 2})
    assert base != fingerprint(clips, {"x": 1, "y": 3})
