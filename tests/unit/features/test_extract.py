from __future__ import annotations

import dataclasses
import errno
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
import torch

from mmssl.errors import ConfigError, DataError, InputError, MediaError, StoreError
from mmssl.features.extract import ExtractOptions, extract
from mmssl.features.forward import forward_clips, split_clips
from mmssl.features.locks import FolderLock
from mmssl.features.maintain import verify
from mmssl.features.plan import Item, make_buckets
from mmssl.features.store import FeatureStore
from mmssl.registry import UPSTREAMS, register_upstream
from mmssl.types import Clip
from mmssl.upstreams.base import load_upstream


def alone(upstream: str, clip: Clip, **kwargs):
    samples, _ = soundfile.read(clip.audio, dtype="float32")
    with torch.no_grad():
        return load_upstream(upstream, **kwargs)(torch.from_numpy(samples)[None])["audio"]


def same(one: FeatureStore, two: FeatureStore) -> bool:
    """Whether two stores hold the same clips with the same bits."""
    return one.ids == two.ids and all(
        torch.equal(a, b)
        for clip_id in one
        for read in (lambda s, c: s.read(c), lambda s, c: s.pooled(c), lambda s, c: s.pooled(c, stat="std"))
        for a, b in zip(read(one, clip_id).hidden_states, read(two, clip_id).hidden_states, strict=True)
    )


@pytest.mark.parametrize("uneven", [False, True])
def test_features_in_the_store_are_those_of_each_clip_alone(conv_upstream, make_clips, tmp_path, uneven):
    clips = make_clips(12)
    kwargs = {"uneven": uneven}
    summary = extract(
        conv_upstream, clips, tmp_path / "s", upstream_kwargs=kwargs, options=ExtractOptions(batch_seconds=3.0)
    )
    assert (summary.done, summary.reused, summary.skipped) == (12, 0, [])
    assert summary.audio_seconds == pytest.approx(sum(soundfile.info(c.audio).duration for c in clips))
    store = FeatureStore(tmp_path / "s")
    assert store.fingerprint.digest == summary.fingerprint
    for clip in clips:
        expected, read = alone(conv_upstream, clip, **kwargs), store.read(clip.id)
        for k in range(3):
            assert int(read.lengths[k]) == int(expected.lengths[k]) == len(read.hidden_states[k])
            torch.testing.assert_close(read.hidden_states[k], expected.hidden_states[k][0], rtol=0, atol=1e-6)
            pooled = store.pooled(clip.id, stat="std").hidden_states[k][0]
            reference = expected.hidden_states[k][0].std(0, unbiased=False)
            torch.testing.assert_close(pooled, reference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["fbank", "mfcc"])
def test_spectral_upstreams_go_through_the_engine(make_clips, tmp_path, name):
    clips = make_clips(6)
    extract(name, clips, tmp_path / "s", options=ExtractOptions(batch_seconds=2.0))
    store = FeatureStore(tmp_path / "s")
    for clip in clips:
        expected, read = alone(name, clip).hidden_states[0][0], store.read(clip.id).hidden_states[0]
        torch.testing.assert_close(read, expected, rtol=0, atol=1e-5 * float(expected.abs().mean()))
        torch.testing.assert_close(store.pooled(clip.id).hidden_states[0][0], expected.mean(0), rtol=1e-5, atol=1e-5)


def test_a_second_run_computes_nothing_and_says_so(conv_upstream, make_clips, tmp_path):
    clips, log = make_clips(4), tmp_path / "log"
    for expected in ((4, 0), (0, 4)):
        summary = extract(conv_upstream, clips, tmp_path / "s", upstream_kwargs={"log": str(log)})
        assert (summary.done, summary.reused) == expected
    assert "nothing to compute" in str(summary)
    assert len(log.read_text().split()) == 4
    more = [*clips, dataclasses.replace(clips[0], id="segment", start=0.01, duration=0.05)]
    assert extract(conv_upstream, more, tmp_path / "s", upstream_kwargs={"log": str(log)}).done == 1
    assert log.read_text().split()[-1] == "800"


def test_a_changed_file_and_a_changed_segment_are_computed_again(conv_upstream, make_clips, tmp_path):
    clips = make_clips(4)
    extract(conv_upstream, clips, tmp_path / "s")
    before = FeatureStore(tmp_path / "s").read("clip-001").hidden_states[0]
    samples, rate = soundfile.read(clips[1].audio, dtype="float32")
    soundfile.write(clips[1].audio, 0.5 * samples, rate, subtype="FLOAT")
    clips[2] = dataclasses.replace(clips[2], duration=0.05)
    summary = extract(conv_upstream, clips, tmp_path / "s")
    assert (summary.done, summary.reused) == (2, 2)
    store = FeatureStore(tmp_path / "s")
    torch.testing.assert_close(
        store.read("clip-001").hidden_states[0], alone(conv_upstream, clips[1]).hidden_states[0][0]
    )
    assert not torch.equal(store.read("clip-001").hidden_states[0], before)
    assert len(store.read("clip-002").hidden_states[0]) == 3
    assert len(store) == 4


def break_clips(clips: list[Clip]) -> dict[str, str]:
    """Make some clips unusable; returns id -> part of the reason."""
    Path(clips[2].audio or "").write_text("this is not sound")
    Path(clips[5].audio or "").unlink()
    soundfile.write(clips[7].audio, torch.full((500,), 0.1).numpy(), 16000)
    return {clips[2].id: "", clips[5].id: "does not exist", clips[7].id: "at least 720"}


def test_skip_lists_unusable_clips_and_puts_nothing_in_their_place(conv_upstream, make_clips, tmp_path):
    clips = make_clips(10)
    broken = break_clips(clips)
    summary = extract(conv_upstream, clips, tmp_path / "s", on_error="skip", options=ExtractOptions(max_seconds=10))
    assert {s.id for s in summary.skipped} == set(broken)
    for skipped in summary.skipped:
        assert skipped.path in skipped.reason
        assert broken[skipped.id] in skipped.reason
    store = FeatureStore(tmp_path / "s")
    assert set(store.ids) == {c.id for c in clips} - set(broken)
    assert summary.done == len(store) == 7
    assert "3 skipped" in str(summary)


def test_raise_stops_at_the_file_and_keeps_what_was_finished(conv_upstream, make_clips, tmp_path):
    clips = make_clips(10)
    # the shortest clip comes last, and only decoding shows that it is too short
    soundfile.write(clips[7].audio, torch.full((500,), 0.1).numpy(), 16000)
    with pytest.raises(MediaError, match=f"{clips[7].id}.*at least 720"):
        extract(conv_upstream, clips, tmp_path / "s", options=ExtractOptions(batch_seconds=0.1))
    store = FeatureStore(tmp_path / "s")
    assert len(store) == 9
    assert verify(store).ok
    break_clips(clips)
    with pytest.raises(MediaError, match=clips[2].audio):
        extract(conv_upstream, clips, tmp_path / "s")


def test_too_long_clips_and_a_run_without_any_usable_clip(conv_upstream, make_clips, tmp_path):
    clips = make_clips(3)
    with pytest.raises(MediaError, match="max_seconds"):
        extract(conv_upstream, clips, tmp_path / "a", options=ExtractOptions(max_seconds=0.01))
    with pytest.raises(MediaError, match=r"None of the 3 clips(.|\n)*max_seconds"):
        extract(conv_upstream, clips, tmp_path / "b", on_error="skip", options=ExtractOptions(max_seconds=0.01))


def test_features_that_are_not_finite_are_a_fault(conv_upstream, make_clips, tmp_path):
    clips = make_clips(3)
    kwargs = {"scale": float("inf")}
    with pytest.raises(InputError, match="NaN or infinite"):
        extract(conv_upstream, clips, tmp_path / "a", upstream_kwargs=kwargs)


def test_ranks_share_a_folder_and_give_the_bytes_of_one_run(conv_upstream, make_clips, tmp_path):
    clips = make_clips(9)
    how = {"batch_seconds": 0.9}
    clips[4] = dataclasses.replace(clips[4], audio="missing.wav")
    one = extract(conv_upstream, clips, tmp_path / "one", on_error="skip", options=ExtractOptions(**how))
    shares = [
        extract(
            conv_upstream,
            clips,
            tmp_path / "two",
            on_error="skip",
            options=ExtractOptions(rank=rank, world_size=3, **how),
        )
        for rank in (2, 0, 1)
    ]
    assert all(share.done for share in shares)
    assert sum(share.done for share in shares) == one.done == 8
    assert [s.id for share in shares for s in share.skipped] == [clips[4].id]
    assert same(FeatureStore(tmp_path / "one"), FeatureStore(tmp_path / "two"))


def test_jobs_give_the_bytes_of_one_process_and_a_killed_one_is_named(conv_upstream, make_clips, tmp_path):
    clips, mark = make_clips(16), tmp_path / "mark"
    mark.touch()
    kwargs = {"die_if": str(mark)}
    how = ExtractOptions(batch_seconds=0.9, shard_seconds=0.0, progress=False)
    two = dataclasses.replace(how, jobs=2)
    with pytest.raises(StoreError, match=r"Worker [12] of 2 .*SIGKILL(.|\n)*same command again"):
        extract(conv_upstream, clips, tmp_path / "two", upstream_kwargs=kwargs, options=two)
    finished = len(FeatureStore(tmp_path / "two"))
    assert 0 < finished < 16
    mark.unlink()
    summary = extract(conv_upstream, clips, tmp_path / "two", upstream_kwargs=kwargs, options=two)
    assert (summary.done, summary.reused) == (16 - finished, finished)
    extract(conv_upstream, clips, tmp_path / "one", upstream_kwargs=kwargs, options=how)
    assert same(FeatureStore(tmp_path / "one"), FeatureStore(tmp_path / "two"))


def test_an_error_in_a_job_is_raised_as_what_it_is(conv_upstream, make_clips, tmp_path):
    clips = make_clips(4)
    soundfile.write(clips[1].audio, torch.full((500,), 0.1).numpy(), 16000)
    with pytest.raises(MediaError, match=f"{clips[1].id}.*at least 720"):
        extract(conv_upstream, clips, tmp_path / "s", options=ExtractOptions(jobs=2, batch_seconds=0.1))
    assert clips[1].id not in FeatureStore(tmp_path / "s")


def in_child(work: Callable[[], object]) -> int:
    """Run in a forked process, which costs no import of torch; returns its id."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            work()
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
            os._exit(1)
        os._exit(0)
    return child


def test_kill_at_random_moments_then_the_same_bytes_and_no_clip_twice(conv_upstream, make_clips, tmp_path):
    clips, log, folder = make_clips(100), tmp_path / "log", tmp_path / "killed"
    kwargs = {"delay": 0.01, "log": str(log)}
    how = ExtractOptions(batch_seconds=1.0, shard_seconds=0.0, progress=False)

    def run():
        return extract(conv_upstream, clips, folder, upstream_kwargs=kwargs, options=how)

    lengths = {str(soundfile.info(clip.audio).frames): clip.id for clip in clips}
    generator = random.Random(0)
    sizes = []
    for _ in range(20):
        finished = set(FeatureStore(folder).ids) if (folder / "store.json").exists() else set()
        logged = len(log.read_text().split()) if log.exists() else 0
        child = in_child(run)
        # some kills hit the start, most of them the work: counted in clips, as machines differ in speed
        wanted, until = logged + generator.choice([0, 1, 2, 5]), time.monotonic() + 10
        while (len(log.read_text().split()) if log.exists() else 0) < wanted and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(generator.uniform(0.0, 0.015))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        computed = {lengths[line] for line in log.read_text().split()[logged:]} if log.exists() else set()
        assert not computed & finished
        if (folder / "store.json").exists():
            store = FeatureStore(folder)
            assert verify(store).ok
            assert finished <= set(store.ids)
            sizes.append(len(store))
    # the kills hit the work, not only its start or end
    assert len(set(sizes)) > 5
    assert sizes[-1] < len(clips)
    child = in_child(run)
    assert os.waitpid(child, 0)[1] == 0
    store = FeatureStore(folder)
    extract(conv_upstream, clips, tmp_path / "whole", upstream_kwargs=kwargs, options=how)
    assert same(store, FeatureStore(tmp_path / "whole"))
    assert list(folder.glob("tmp-*")) == []
    assert len(list(folder.glob("*.safetensors"))) == len(list(folder.glob("*.jsonl")))


def test_a_second_run_in_the_same_folder_is_refused_while_the_first_lives(conv_upstream, make_clips, tmp_path):
    clips = make_clips(6)
    kwargs = {"delay": 5.0}
    child = in_child(lambda: extract(conv_upstream, clips, tmp_path / "s", upstream_kwargs=kwargs))
    try:
        lock = tmp_path / "s" / ".lock-run"
        until = time.monotonic() + 20
        while not (lock.exists() and lock.read_text()) and time.monotonic() < until:
            time.sleep(0.02)
        for share in ({}, {"rank": 0, "world_size": 2}):
            with pytest.raises(StoreError, match=f"being written by process {child} "):
                extract(conv_upstream, clips, tmp_path / "s", upstream_kwargs=kwargs, options=ExtractOptions(**share))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with FolderLock(tmp_path / "s", "run"):
        pass


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"on_error": "ignore"}, ConfigError, '"raise" or "skip"'),
        ({"clips": []}, DataError, "no clip"),
        ({"clips": [Clip("a", audio="x"), Clip("a", audio="y")]}, DataError, "Two clips have the id 'a'"),
        ({"clips": [Clip("a", video="x.mp4")]}, DataError, "no audio"),
        ({"upstream_kwargs": {"witdh": 3}}, ConfigError, "width"),
    ],
)
def test_wrong_arguments(conv_upstream, make_clips, tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        extract(conv_upstream, **{"clips": make_clips(1), "folder": tmp_path / "s", **arguments})


@pytest.mark.parametrize(
    ("options", "message"), [({"batch_seconds": 0}, "batch_seconds"), ({"rank": 2, "world_size": 2}, "rank")]
)
def test_wrong_options(options, message):
    with pytest.raises(ConfigError, match=message):
        ExtractOptions(**options)


def test_jobs_need_an_upstream_that_others_can_build(conv_upstream, make_clips, tmp_path):
    built = load_upstream(conv_upstream)
    with pytest.raises(ConfigError, match="instead of the built object"):
        extract(built, make_clips(1), tmp_path / "s", options=ExtractOptions(jobs=2))
    register_upstream("here_only", lambda: built)
    try:
        with pytest.raises(ConfigError, match="this process only"):
            extract("here_only", make_clips(1), tmp_path / "s", options=ExtractOptions(jobs=2))
    finally:
        UPSTREAMS.unregister("here_only")
    assert extract(built, make_clips(1), tmp_path / "s").done == 1
    with pytest.raises(ConfigError, match="training mode"):
        extract(built.train(), make_clips(1), tmp_path / "s")


def test_buckets_keep_the_budget_and_every_clip():
    items = [Item(Clip(str(i)), s) for i, s in enumerate([1.0, 9.0, 2.0, 2.0, 0.5, 30.0, 1.5])]
    buckets = make_buckets(items, 6.0)
    assert [[item.seconds for item in bucket] for bucket in buckets] == [[30.0], [9.0], [2.0, 2.0, 1.5], [1.0, 0.5]]
    assert make_buckets(items[::-1], 6.0)[2][0].clip.id == "2"


def test_an_upstream_with_a_packed_method_is_run_through_it(conv_upstream, make_clips, tmp_path):
    upstream = load_upstream(conv_upstream)
    sizes = []

    def packed(waveforms):
        sizes.append(len(waveforms))
        return [split_clips(upstream(w[None]), 1)[0] for w in waveforms]

    upstream.extract_packed = packed
    clips = make_clips(5)
    extract(upstream, clips, tmp_path / "s")
    assert sizes == [5]
    del upstream.extract_packed
    read = FeatureStore(tmp_path / "s").read("clip-003").hidden_states[2]
    torch.testing.assert_close(read, alone(conv_upstream, clips[3]).hidden_states[2][0], rtol=0, atol=1e-6)


def test_a_batch_that_does_not_fit_is_halved(conv_upstream, monkeypatch):
    upstream = load_upstream(conv_upstream)
    waveforms = [torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (900, 1000, 1500)]
    whole = forward_clips(upstream, waveforms)
    real = type(upstream).extract

    def small(self, inputs):
        if len(inputs.waveforms.data) > 1:
            raise torch.OutOfMemoryError("too large")
        return real(self, inputs)

    monkeypatch.setattr(type(upstream), "extract", small)
    for one, two in zip(whole, forward_clips(upstream, waveforms), strict=True):
        torch.testing.assert_close(one["audio"].hidden_states, two["audio"].hidden_states, rtol=0, atol=1e-6)


def test_a_disk_that_fills_up_in_the_middle_then_room_again(conv_upstream, make_clips, tmp_path, monkeypatch):
    clips = make_clips(12)
    how = ExtractOptions(batch_seconds=0.5, shard_seconds=0.0, progress=False)
    calls, real = iter(range(1, 1000)), os.fsync

    def fsync(descriptor: int) -> None:
        if next(calls) > 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        with pytest.raises(StoreError, match=r"the disk is full(.|\n)*run the same command again"):
            extract(conv_upstream, clips, tmp_path / "s", options=how)
    store = FeatureStore(tmp_path / "s")
    finished = len(store)
    assert 0 < finished < len(clips)
    assert verify(store).ok
    assert list(store.folder.glob("tmp-*")) == []
    summary = extract(conv_upstream, clips, tmp_path / "s", options=how)
    assert (summary.done, summary.reused) == (len(clips) - finished, finished)
    extract(conv_upstream, clips, tmp_path / "whole", options=how)
    assert same(FeatureStore(tmp_path / "s"), FeatureStore(tmp_path / "whole"))


def test_a_store_of_another_version_is_refused_and_left_alone(conv_upstream, make_clips, tmp_path, monkeypatch):
    clips = make_clips(2)
    with monkeypatch.context() as patched:
        patched.setattr("mmssl.__version__", "0.0.9")
        extract(conv_upstream, clips, tmp_path / "s")
    before = {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()}
    with pytest.raises(StoreError, match=r"another configuration(.|\n)*mmssl: \"0\.0\.9\" -> (.|\n)*another folder"):
        extract(conv_upstream, clips, tmp_path / "s")
    assert {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()} == before
    # reading does not depend on the version
    assert len(FeatureStore(tmp_path / "s")[clips[0].id]["audio"].hidden_states) == 3
