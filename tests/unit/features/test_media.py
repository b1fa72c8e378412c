"""Extraction of video files, of sound and video together, and of pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmssl.errors import ConfigError, DataError, MediaError, StoreError
from mmssl.faces.write import write_video
from mmssl.features.extract import ExtractOptions, extract
from mmssl.features.media import Feed, load_media, make_feed, shown_at
from mmssl.features.plan import Item, item_from_record, item_to_record
from mmssl.features.store import FeatureStore
from mmssl.media.sync import load_audio_video
from mmssl.types import Clip
from mmssl.upstreams.base import load_upstream

DUMMY = "mmssl.testing.dummies.DummyAudioVisual"
QUIET = ExtractOptions(progress=False)
Make = Callable[..., Clip]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """make(name, seconds, fps=, sound=) writes a lossless clip of noise and gives its `Clip`."""

    def write(name: str, seconds: float = 0.6, fps: float = 25.0, sound: bool = True, size: int = 20) -> Clip:
        rng = np.random.default_rng(sum(name.encode()))
        pictures = rng.integers(0, 256, (round(seconds * fps), size, size, 3), dtype=np.uint8)
        waveform = (0.2 * rng.standard_normal(round(seconds * 16_000))).astype(np.float32) if sound else None
        path = tmp_path / f"{name}.mkv"
        write_video(path, pictures, fps, None if waveform is None else waveform[None], 16_000)
        return Clip(name, video=str(path))

    return write


def run(clips: list[Clip], folder: Path, upstream: str = DUMMY, **kwargs: Any) -> FeatureStore:
    extract(upstream, clips, folder, options=QUIET, **kwargs)
    return FeatureStore(folder)


def test_each_stream_is_what_the_upstream_gives_for_the_clip_alone(make, tmp_path):
    clips = [make("a", 0.6), make("b", 1.0), make("c", 0.8)]
    store = run(clips, tmp_path / "store")
    upstream = load_upstream(DUMMY)
    assert set(store.streams) == set(upstream.spec.streams) == {"audio", "video", "fusion"}
    for clip in clips:
        both = load_audio_video(clip.video, fps=25.0, size=(16, 16), sample_rate=16_000)
        alone = upstream(both.waveform[None], video=both.video[None])
        assert store.streams_of(clip.id) == list(store.streams)
        for stream, layers in store[clip.id].items():
            for stored, expected in zip(layers.hidden_states, alone[stream].hidden_states, strict=True):
                torch.testing.assert_close(stored, expected[0], rtol=0, atol=2e-6)
            mean = store.pooled(clip.id, stream).hidden_states[0][0]
            torch.testing.assert_close(mean, alone[stream].hidden_states[0][0].mean(0), rtol=0, atol=2e-6)


def test_batches_do_not_matter_and_nothing_is_computed_twice(make, tmp_path):
    clips = [make("a", 0.6), make("b", 1.0), make("c", 0.8)]
    store = run(clips, tmp_path / "one")
    small = ExtractOptions(progress=False, batch_seconds=0.1)
    summary = extract(DUMMY, clips[::-1], tmp_path / "two", options=small)
    assert (summary.done, summary.audio_seconds) == (3, pytest.approx(2.4))
    for clip in clips:
        for stream in store.streams:
            one, two = (FeatureStore(tmp_path / name).read(clip.id, stream) for name in ("one", "two"))
            torch.testing.assert_close(one.hidden_states, two.hidden_states, rtol=0, atol=2e-6)
    again = extract(DUMMY, clips, tmp_path / "one", options=QUIET)
    assert (again.done, again.reused) == (0, 3)


def test_a_new_sound_file_is_a_new_input(make, tmp_path):
    silent, other = make("a", sound=False), make("other")
    clip = replace(silent, audio=other.video)
    assert run([clip], tmp_path / "store").streams_of("a") == ["audio", "video", "fusion"]
    make("other", 1.0)
    assert extract(DUMMY, [clip], tmp_path / "store", options=QUIET).done == 1


def test_a_stretch_is_that_slice_of_the_whole(make, tmp_path):
    whole = make("whole", 1.2)
    part = Clip("part", video=whole.video, start=0.4, duration=0.48)
    store = run([whole, part], tmp_path / "store")
    full, cut = store.read("whole", "video").hidden_states[0], store.read("part", "video").hidden_states[0]
    torch.testing.assert_close(cut, full[10:22], rtol=0, atol=2e-6)
    full, cut = store.read("whole").hidden_states[0], store.read("part").hidden_states[0]
    torch.testing.assert_close(cut, full[10:22], rtol=0, atol=2e-6)


def test_clips_without_sound_or_video_are_refused_listed_or_partial(make, tmp_path):
    both, silent = make("both"), make("silent", sound=False)
    blind = Clip("blind", audio=both.video)
    clips = [both, silent, blind]
    with pytest.raises(MediaError, match=r"'silent' has no sound \(.*silent.mkv has no sound stream\): partial=True"):
        run([both, silent], tmp_path / "raise")
    with pytest.raises(MediaError, match="'blind' has no video"):
        run([both, blind], tmp_path / "raise")
    summary = extract(DUMMY, clips, tmp_path / "skip", on_error="skip", options=QUIET)
    assert [(s.id, Path(s.path).name) for s in summary.skipped] == [("silent", "silent.mkv"), ("blind", "both.mkv")]
    store = run(clips, tmp_path / "partial", partial=True)
    assert [store.streams_of(c) for c in ("both", "silent", "blind")] == [
        ["audio", "video", "fusion"],
        ["video"],
        ["audio"],
    ]
    assert list(store["silent"]) == ["video"]
    # what a clip has is not changed by what it lacks
    torch.testing.assert_close(store.read("blind").hidden_states, store.read("both").hidden_states, rtol=0, atol=2e-6)
    with pytest.raises(StoreError, match=r"'silent' has no stream 'audio'.*It has video"):
        store.read("silent")
    with pytest.raises(StoreError, match="no stream 'video'"):
        store.pooled("blind", "video")
    with pytest.raises(DataError, match="'x' has no sound or video"):
        run([Clip("x")], tmp_path / "nothing", partial=True)


def test_inputs_and_streams_choose_and_are_part_of_the_fingerprint(make, tmp_path):
    clips = [make("a"), make("b", 1.0)]
    full = run(clips, tmp_path / "full")
    sound = run([*clips, Clip("c", audio=clips[0].video)], tmp_path / "sound", inputs=["waveforms"])
    assert list(sound.streams) == ["audio", "fusion"]
    assert sound.streams_of("c") == ["audio"]
    torch.testing.assert_close(sound.read("b").hidden_states, full.read("b").hidden_states, rtol=0, atol=2e-6)
    sight = run([make("silent", sound=False)], tmp_path / "sight", inputs=["video"], streams=["video"])
    assert list(sight.streams) == ["video"]
    fused = run(clips, tmp_path / "fused", streams=["fusion"])
    assert list(fused["a"]) == ["fusion"]
    stores = (full, sound, sight, fused)
    assert len({store.fingerprint.digest for store in stores}) == 4
    with pytest.raises(StoreError, match="streams"):
        run(clips, tmp_path / "fused")
    for wrong, message in (
        ({"inputs": ["images"]}, "takes waveforms, video; inputs asks for 'images'"),
        ({"streams": ["sound"]}, "streams must be some of audio, video, fusion"),
        ({"streams": []}, "got 'none'"),
        ({"inputs": ["video"], "streams": ["audio"]}, "some of video, fusion"),
        ({"inputs": ["video"], "partial": True}, "partial is for several inputs"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(clips, tmp_path / "wrong", **wrong)
    with pytest.raises(ConfigError, match="cuts audio alone"):
        extract(DUMMY, clips, tmp_path / "wrong", options=ExtractOptions(chunk_seconds=1.0, progress=False))


HICMAE = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "feed_forward_size": 24, "image_size": 32}


def test_short_clips_are_stored_or_named(make, tmp_path):
    short = make("short", 0.12, size=96)
    store = run([short], tmp_path / "av", "av_hubert", upstream_kwargs={"preset": "tiny"})
    assert [len(store.read("short", s).hidden_states[0]) for s in ("audio", "video", "fusion")] == [3, 3, 3]
    with pytest.raises(
        MediaError, match=r"'short' has 1920 samples at 16000 Hz \(0.1200 s\); the upstream takes at least"
    ):
        run([short], tmp_path / "hicmae", "hicmae", upstream_kwargs=HICMAE)
    # a video too short for a slice is found by the upstream itself, and costs no other clip
    silent = make("silent", 0.12, sound=False)
    kwargs = {"upstream_kwargs": HICMAE, "partial": True, "on_error": "skip", "frames": False}
    summary = extract("hicmae", [make("long", 0.8), silent], tmp_path / "skip", options=QUIET, **kwargs)
    assert summary.done == 1
    assert "The clip 'silent' cannot be used: HiCMAE takes videos of at least 2 frames" in summary.skipped[0].reason


def test_pictures_at_a_lower_rate_are_those_on_screen_and_no_sound_is_lost(make):
    spec = load_upstream("hicmae", **HICMAE).spec
    clip = make("a", 1.2)
    media = load_media(clip, spec, make_feed(spec))
    both = load_audio_video(clip.video, size=(32, 32), sample_rate=16_000, as_uint8=True)
    assert len(media.waveform) == 19_200
    # 6.25 Hz of 25 Hz: every fourth
    torch.testing.assert_close(media.video, both.video[::4], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("own", "wanted"), [(25.0, 6.25), (30.0, 16.0), (30000 / 1001, 7.5), (12.0, 25.0), (25.0, 1.0)]
)
def test_shown_at_against_the_definition(own, wanted):
    frames = torch.arange(37)[:, None, None, None]
    exact, rate = Fraction(own).limit_denominator(1001), Fraction(wanted)
    expected = [max(j for j in range(37) if j / exact <= k / rate) for k in range(400) if k / rate < 37 / exact]
    assert shown_at(frames, own, wanted).flatten().tolist() == expected
    assert shown_at(frames, 29.97, 30000 / 1001) is frames
    assert shown_at(frames, own, None) is frames


def test_video_and_image_upstreams(make, tmp_path):
    from PIL import Image

    clip = make("a", 0.6, sound=False)
    store = run([clip], tmp_path / "video", "mmssl.testing.dummies.DummyVideo")
    assert store.read("a", "video").hidden_states[0].shape == (15, 8)
    Image.fromarray(np.full((30, 20, 3), 90, np.uint8)).save(tmp_path / "p.png")
    picture = Clip("p", image=str(tmp_path / "p.png"))
    store = run([picture], tmp_path / "image", "mmssl.testing.dummies.DummyImage")
    assert store.read("p", "image").hidden_states[0].shape == (4, 8)
    with pytest.raises(DataError, match="'p' has no video"):
        run([picture], tmp_path / "wrong", "mmssl.testing.dummies.DummyVideo")
    kwargs = {"image_size": 32, "hidden_size": 16, "num_layers": 1, "num_heads": 2, "feed_forward_size": 8}
    with pytest.raises(MediaError, match=r"has 1 video frames at 7.5 Hz .* takes at least 2"):
        run([make("b", 0.12)], tmp_path / "short", "video_mae", upstream_kwargs=kwargs)


def test_half_precision_is_measured_on_clips_with_the_same_streams(make, tmp_path):
    clips = [make("a"), make("silent", sound=False)]
    options = ExtractOptions(progress=False, precision="bf16")
    summary = extract(DUMMY, clips, tmp_path / "store", partial=True, options=options)
    assert "relative error" in summary.precision_error


def test_what_a_worker_gets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clip = Clip("a", audio="s3://b/x.wav", video="v.mkv", image=None, start=0.5, duration=1.0)
    record = item_to_record(Item(clip, 1.0, "key"))
    assert item_from_record(record) == Item(replace(clip, video=str(tmp_path / "v.mkv")), 1.0, "key")
    assert make_feed(load_upstream("fbank").spec) is None
    assert make_feed(load_upstream(DUMMY).spec, ["video"]) == Feed(("video",))


@pytest.mark.slow
def test_jobs_give_the_same(make, tmp_path):
    clips = [make(name, 0.6) for name in "abcd"] + [make("silent", sound=False)]
    store = run(clips, tmp_path / "one", partial=True)
    two = ExtractOptions(progress=False, jobs=2, batch_seconds=1.0)
    extract(DUMMY, clips, tmp_path / "two", partial=True, options=two)
    for clip in clips:
        other = FeatureStore(tmp_path / "two")[clip.id]
        for stream, layers in store[clip.id].items():
            torch.testing.assert_close(layers.hidden_states, other[stream].hidden_states, rtol=0, atol=2e-6)
