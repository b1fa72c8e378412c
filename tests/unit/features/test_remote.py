"""Audio and stores behind URLs, in fsspec's memory and local file systems."""

from __future__ import annotations

import dataclasses
import pickle
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import soundfile
import torch

from mmssl.data.manifest import read_manifest, write_manifest
from mmssl.errors import MediaError, StoreError
from mmssl.features.extract import ExtractOptions, extract
from mmssl.features.maintain import gc, merge, remove, verify
from mmssl.features.remote import RemoteFolder
from mmssl.features.store import FeatureStore
from mmssl.media import remote as media
from mmssl.media.audio import audio_info, load_audio
from mmssl.media.streaming import AudioStream
from mmssl.stages.cli import main

OFTEN = ExtractOptions(batch_seconds=0.5, shard_seconds=0.0, progress=False)


@pytest.fixture
def memory() -> Iterator[str]:
    """A URL of its own in fsspec's memory."""
    url = f"memory://{uuid.uuid4().hex}"
    yield url
    system = fsspec.filesystem("memory")
    if system.exists(url):
        system.rm(url, recursive=True)


def upload(clips, url):
    """The same clips behind a URL."""
    system = fsspec.filesystem("memory")
    moved = []
    for clip in clips:
        system.put_file(clip.audio, f"{url}/{Path(clip.audio).name}")
        moved.append(dataclasses.replace(clip, audio=f"{url}/{Path(clip.audio).name}"))
    return moved


def content(store: FeatureStore):
    return {
        clip_id: [*store.read(clip_id).hidden_states, *store.pooled(clip_id).hidden_states, store.entry(clip_id).input]
        for clip_id in store
    }


def same(one: FeatureStore, two: FeatureStore) -> bool:
    a, b = content(one), content(two)
    return a.keys() == b.keys() and all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
        for clip_id in a
        for x, y in zip(a[clip_id], b[clip_id], strict=True)
    )


def names(url: str) -> set[str]:
    return {Path(n).name for n in fsspec.filesystem("memory").ls(url, detail=False)}


def test_audio_behind_a_url_is_that_of_the_file(make_clips, memory, tmp_path):
    clip = make_clips(1)[0]
    moved = upload([clip], memory)[0]
    for address in (moved.audio, Path(clip.audio).as_uri()):
        assert audio_info(address) == audio_info(clip.audio)
        a, b = (
            load_audio(address, sample_rate=8000, start=0.01)[0],
            load_audio(clip.audio, sample_rate=8000, start=0.01)[0],
        )
        assert torch.equal(a, b)
        with AudioStream(address) as stream:
            assert torch.equal(stream.read(0, stream.num_samples), load_audio(clip.audio)[0])
    # a file that changes is not taken from an older copy
    samples, rate = soundfile.read(clip.audio, dtype="float32")
    soundfile.write(clip.audio, 0.5 * samples, rate, subtype="FLOAT")
    upload([clip], memory)
    torch.testing.assert_close(load_audio(moved.audio)[0], torch.from_numpy(0.5 * samples))


def test_copies_are_bounded_and_kept_while_in_use(make_clips, memory, monkeypatch):
    clips = upload(make_clips(4), memory)
    monkeypatch.setattr(media, "CACHE_BYTES", 0)
    with media.local_file(clips[0].audio) as path:
        for clip in clips[1:]:
            load_audio(clip.audio)
        assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert not path.exists()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("memory://nowhere-at-all/a.wav", r"memory://nowhere-at-all/a\.wav does not exist"),
        ("nosuch://bucket/a.wav", "Protocol not known: nosuch"),
        ("file:///nowhere/a.wav", "/nowhere/a.wav does not exist"),
    ],
)
def test_audio_that_cannot_be_fetched(address, message):
    with pytest.raises(MediaError, match=message):
        load_audio(address)


def test_messages_name_the_address(memory):
    fsspec.filesystem("memory").pipe_file(f"{memory}/a.wav", b"this is not sound")
    fsspec.filesystem("memory").pipe_file(f"{memory}/b.wav", b"")
    with pytest.raises(MediaError, match=f"{memory}/a.wav is not a sound"):
        load_audio(f"{memory}/a.wav")
    with pytest.raises(MediaError, match=f"{memory}/b.wav is empty"):
        load_audio(f"{memory}/b.wav")


def test_a_corpus_and_a_store_behind_urls_hold_what_local_ones_hold(conv_upstream, make_clips, memory, tmp_path):
    clips = make_clips(7)
    extract(conv_upstream, clips, tmp_path / "local", options=OFTEN)
    write_manifest(tmp_path / "m.jsonl", upload(clips, f"{memory}/wav"))
    moved = read_manifest(tmp_path / "m.jsonl")
    url = f"{memory}/store"
    summary = extract(conv_upstream, moved, url, options=OFTEN)
    assert (summary.done, summary.folder) == (7, url)
    assert url in str(summary)
    store = FeatureStore(url)
    assert same(store, FeatureStore(tmp_path / "local"))
    assert len(store.parts) > 1
    assert verify(store).ok
    # nothing but whole files is there, and no lock
    assert {name.partition("-")[0] for name in names(url)} == {"store.json", "shard"}
    assert (extract(conv_upstream, moved, url, options=OFTEN).done, len(store)) == (0, 7)
    # and a folder as a URL is that folder
    again = extract(conv_upstream, moved, (tmp_path / "local").as_uri(), options=OFTEN)
    assert (again.done, again.folder) == (0, tmp_path / "local")


def test_skipped_clips_behind_urls(conv_upstream, make_clips, memory, tmp_path):
    clips = upload(make_clips(4), memory)
    clips[1] = dataclasses.replace(clips[1], audio=f"{memory}/missing.wav")
    clips[2] = dataclasses.replace(clips[2], audio="nosuch://a/b.wav")
    summary = extract(conv_upstream, clips, tmp_path / "s", on_error="skip", options=OFTEN)
    assert summary.done == 2
    assert {s.id for s in summary.skipped} == {clips[1].id, clips[2].id}


class Killed(BaseException):
    """Stands for a kill: nothing of the library catches it."""


@pytest.mark.parametrize("upload_number", range(1, 8))
def test_a_run_that_ends_at_any_upload_leaves_whole_shards(
    conv_upstream, make_clips, memory, tmp_path, monkeypatch, upload_number
):
    clips = make_clips(5)
    extract(conv_upstream, clips, tmp_path / "local", options=OFTEN)
    real, counter = RemoteFolder.put, iter(range(1, 100))
    dead = []

    def put(self, name):
        if dead or next(counter) == upload_number:
            dead.append(name)
            raise Killed
        real(self, name)

    def delete(self, name):
        if not dead:
            raise AssertionError("nothing is to be deleted here")

    with monkeypatch.context() as patched:
        patched.setattr(RemoteFolder, "put", put)
        patched.setattr(RemoteFolder, "delete", delete)
        with pytest.raises(Killed):
            extract(conv_upstream, clips, memory, options=OFTEN)
    if upload_number > 1:
        found = FeatureStore(memory)
        assert verify(found).ok
        assert len(found) == sum(len(part.entries) for part in found.parts.values())
    extract(conv_upstream, clips, memory, options=OFTEN)
    store = FeatureStore(memory)
    assert same(store, FeatureStore(tmp_path / "local"))
    # what the dead run left is found by gc
    gc(store)
    shards = {n.removesuffix(".safetensors") for n in names(memory) if n.endswith(".safetensors")}
    assert shards == {n.removesuffix(".jsonl") for n in names(memory) if n.endswith(".jsonl")}
    assert same(FeatureStore(memory), FeatureStore(tmp_path / "local"))


def test_an_upload_that_fails_says_so_and_leaves_nothing(conv_upstream, make_clips, memory, monkeypatch):
    extract(conv_upstream, make_clips(2), memory, options=OFTEN)
    before = names(memory)

    def refuse(self, *_: object, **__: object) -> None:
        raise PermissionError("quota exceeded")

    with monkeypatch.context() as patched:
        patched.setattr(fsspec.get_filesystem_class("memory"), "put_file", refuse)
        with pytest.raises(StoreError, match=r"cannot upload shard-.*quota exceeded(.|\n)*same command"):
            extract(conv_upstream, make_clips(3, seed=1), memory, options=OFTEN)
    assert names(memory) == before


def test_damage_is_found_and_mended(conv_upstream, make_clips, memory, tmp_path, capsys):
    clips = make_clips(5)
    extract(conv_upstream, clips, tmp_path / "local", options=OFTEN)
    extract(conv_upstream, clips, memory, options=OFTEN)
    system = fsspec.filesystem("memory")
    shard = sorted(n for n in names(memory) if n.endswith(".safetensors"))[0]
    data = bytearray(system.cat_file(f"{memory}/{shard}"))
    data[-3] ^= 1
    system.pipe_file(f"{memory}/{shard}", bytes(data))
    part = sorted(n for n in names(memory) if n.endswith(".jsonl"))[-1]
    system.pipe_file(f"{memory}/{part}", system.cat_file(f"{memory}/{part}")[:-20])
    store = FeatureStore(memory)
    report = verify(store)
    assert len(report.damaged) == 1
    assert set(report.damaged_parts) == {part}
    remove(store, report.damaged)
    assert verify(FeatureStore(memory)).ok
    assert extract(conv_upstream, clips, memory, options=OFTEN).done >= 2
    assert same(FeatureStore(memory), FeatureStore(tmp_path / "local"))
    assert main(["features", "info", memory]) == 0
    assert main(["features", "verify", memory]) == 0
    assert memory in capsys.readouterr().out


def test_stores_merge_across_urls_and_folders(conv_upstream, make_clips, memory, tmp_path):
    clips = make_clips(6)
    extract(conv_upstream, clips, tmp_path / "all", options=OFTEN)
    extract(conv_upstream, clips[:3], tmp_path / "a", options=OFTEN)
    extract(conv_upstream, clips[3:], f"{memory}/b", options=OFTEN)
    sources = [FeatureStore(tmp_path / "a"), FeatureStore(f"{memory}/b")]
    for target in (f"{memory}/c", tmp_path / "c"):
        merged = merge(sources, target)
        assert same(merged, FeatureStore(tmp_path / "all"))
        assert verify(FeatureStore(target)).ok
    assert same(sources[1], FeatureStore(f"{memory}/b"))
    with pytest.raises(StoreError, match="is the target"):
        merge([sources[1]], f"{memory}/b")


def test_shards_are_fetched_as_they_are_read_and_old_ones_go(conv_upstream, make_clips, memory, monkeypatch):
    monkeypatch.setattr("mmssl.features.store._OPEN_SHARDS", 1)
    extract(conv_upstream, make_clips(5), memory, options=OFTEN)
    store = FeatureStore(memory)
    assert list(store.folder.glob("*.safetensors")) == []
    copied = pickle.loads(pickle.dumps(store))
    assert copied.folder != store.folder
    for clip_id in store:
        assert torch.equal(store.read(clip_id).hidden_states[0], copied.read(clip_id).hidden_states[0])
        assert len(list(store.folder.glob("*.safetensors"))) == 1
    folder = store.folder
    del store
    assert not folder.exists()


def test_refusals_of_urls(conv_upstream, make_clips, memory):
    clips = make_clips(1)
    with pytest.raises(StoreError, match="Protocol not known: nosuch"):
        extract(conv_upstream, clips, "nosuch://bucket/s")
    with pytest.raises(StoreError, match="as a string"):
        FeatureStore(Path(memory))
    with pytest.raises(StoreError, match=f"{memory} is no feature store"):
        FeatureStore(memory)
    extract(conv_upstream, clips, memory)
    with pytest.raises(StoreError, match=r"another configuration(.|\n)*dtype"):
        extract(conv_upstream, clips, memory, dtype="float16")
    fsspec.filesystem("memory").pipe_file(f"{memory}/other/x.txt", b"x")
    with pytest.raises(StoreError, match="not empty and no feature store"):
        extract(conv_upstream, clips, f"{memory}/other")


def test_ranks_share_a_url(conv_upstream, make_clips, memory, tmp_path):
    clips = make_clips(6)
    extract(conv_upstream, clips, tmp_path / "local", options=OFTEN)
    for rank in (1, 0):
        how = dataclasses.replace(OFTEN, rank=rank, world_size=2)
        assert extract(conv_upstream, clips, memory, options=how).done
    assert same(FeatureStore(memory), FeatureStore(tmp_path / "local"))
