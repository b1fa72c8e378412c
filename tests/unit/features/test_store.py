from __future__ import annotations

import copy
import errno
import json
import os
import resource
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from mmssl.errors import DataError, InputError, StoreError
from mmssl.features.dataset import FeatureDataset
from mmssl.features.fingerprint import make_fingerprint
from mmssl.features.maintain import gc, remove, sweep, verify
from mmssl.features.shards import file_crc, join_crc
from mmssl.features.store import FeatureStore
from mmssl.types import Layers
from mmssl.upstreams.base import load_upstream


@pytest.fixture
def make_store(conv_upstream, tmp_path):
    def make(folder: str = "store", *, uneven: bool = False, scale: float = 1.0, **outputs) -> FeatureStore:
        kwargs = {"uneven": uneven, "scale": scale}
        fingerprint = make_fingerprint(load_upstream(conv_upstream, **kwargs), kwargs=kwargs, **outputs)
        return FeatureStore.create(tmp_path / folder, fingerprint)

    return make


def representation(seed: int, frames: int = 7, uneven: bool = False):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(frames, 8), (frames, 8), (frames // 2, 16) if uneven else (frames, 8)]
    states = tuple(torch.randn(*shape, generator=generator) for shape in shapes)
    return {"audio": Layers(states, tuple(torch.tensor(len(h)) for h in states))}


def fill(store: FeatureStore, ids, name: str = "main", uneven: bool = False, **limits):
    with store.writer(name, **limits) as writer:
        for seed, clip_id in enumerate(ids):
            writer.add(clip_id, representation(seed, 5 + seed, uneven), input_key=f"key-{seed}")
    store.refresh()


def files(store: FeatureStore, pattern: str) -> list[str]:
    return sorted(path.name for path in store.folder.glob(pattern))


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("layers", [None, [2, 0], [-1]])
def test_what_is_written_is_read(make_store, uneven, layers):
    store = make_store(uneven=uneven, pooled=["mean", "std", "max"])
    ids = ["b", "a/audio", "a", "ü x", "../c"]
    fill(store, ids, uneven=uneven, max_clips=2)
    store = FeatureStore(store.folder)
    assert store.ids == sorted(ids)
    assert len(store) == 5
    assert "a" in store
    assert "z" not in store
    for seed, clip_id in enumerate(ids):
        expected = representation(seed, 5 + seed, uneven)["audio"].hidden_states
        numbers = [0, 1, 2] if layers is None else [k % 3 for k in layers]
        read = store.read(clip_id, layers=layers)
        assert [int(n) for n in read.lengths] == [len(expected[k]) for k in numbers]
        assert all(n.dtype == torch.int64 and n.dim() == 0 for n in read.lengths)
        for got, k in zip(read.hidden_states, numbers, strict=True):
            assert torch.equal(got, expected[k])
        for stat, function in (("mean", lambda h: h.mean(0)), ("max", lambda h: h.amax(0))):
            pooled = store.pooled(clip_id, stat=stat, layers=layers)
            assert [int(n) for n in pooled.lengths] == [1] * len(numbers)
            for got, k in zip(pooled.hidden_states, numbers, strict=True):
                torch.testing.assert_close(got, function(expected[k])[None])
    assert torch.equal(store["a"]["audio"].hidden_states[1], store.read("a", layers=[1]).hidden_states[0])
    assert verify(store).ok
    assert verify(store).checked == 5


def test_kept_layers_go_by_the_upstreams_numbers(make_store):
    store = make_store(layers=[2, 0])
    fill(store, ["a"])
    expected = representation(0, 5)["audio"].hidden_states
    assert torch.equal(store.read("a", layers=[-1]).hidden_states[0], expected[2])
    assert torch.equal(store.read("a").hidden_states[1], expected[0])
    with pytest.raises(StoreError, match=r"no layer 1 .* it has \[2, 0\]"):
        store.read("a", layers=[1])


def test_float16_rounds_to_11_bits_and_refuses_overflow(make_store):
    store = make_store(dtype="float16")
    fill(store, ["a"])
    expected = representation(0, 5)["audio"].hidden_states[1]
    read = store.read("a").hidden_states[1]
    assert read.dtype == torch.float32
    assert not torch.equal(read, expected)
    assert bool(((read - expected).abs() <= expected.abs() * 2**-11 + 2**-25).all())
    # pooled values are those of the exact frames
    torch.testing.assert_close(store.pooled("a").hidden_states[1][0], expected.mean(0))
    large = representation(0)
    large["audio"].hidden_states[0][0, 0] = 70000.0
    with store.writer() as writer, pytest.raises(InputError, match=r"65,504.*float32"):
        writer.add("b", large)


def test_pooled_only_and_frames_only_say_what_they_lack(make_store):
    pooled, frames = make_store("p", frames=False), make_store("f", pooled=[])
    fill(pooled, ["a"])
    fill(frames, ["a"])
    assert pooled.pooled("a").hidden_states[0].shape == (1, 8)
    with pytest.raises(StoreError, match="pooled features only"):
        pooled.read("a")
    with pytest.raises(StoreError, match="no pooled 'mean'"):
        frames.pooled("a")
    with pytest.raises(StoreError, match="no stream 'video'"):
        frames.read("a", "video")
    with pytest.raises(StoreError, match="'clipa' is not in"):
        frames.read("clipa")


def test_wrong_shapes_and_values_are_refused(make_store):
    store = make_store()
    nan = representation(0)
    nan["audio"].hidden_states[2][3, 3] = float("nan")
    narrow = {"audio": Layers(tuple(torch.zeros(3, 4) for _ in range(3)), (torch.tensor(3),) * 3)}
    few = {"audio": Layers((torch.zeros(3, 8),) * 2, (torch.tensor(3),) * 2)}
    with store.writer() as writer:
        for wrong, message in ((nan, "NaN or infinite"), (narrow, "declares 3 layers"), (few, "declares 3 layers")):
            with pytest.raises(InputError, match=message):
                writer.add("a", wrong)
        with pytest.raises(InputError, match="gave none"):
            writer.add("a", {})
    store.refresh()
    assert len(store) == 0


def test_another_fingerprint_is_refused_with_the_fields_that_differ(make_store):
    make_store()
    with pytest.raises(StoreError, match=r"kwargs: .*1\.0.* -> .*2\.0(.|\n)*another folder") as caught:
        make_store(scale=2.0)
    assert "weights" not in str(caught.value)
    with pytest.raises(StoreError, match=r"float32.* -> .*float16"):
        make_store(dtype="float16")


def test_another_layout_a_foreign_folder_and_a_damaged_header_are_refused(make_store, tmp_path):
    store = make_store()
    path = store.folder / "store.json"
    header = json.loads(path.read_text())
    path.write_text(json.dumps({**header, "schema": 99, "mmssl": "9.9"}))
    with pytest.raises(StoreError, match=r"layout 99 \(mmssl 9\.9\), this mmssl reads layout 1"):
        FeatureStore(store.folder)
    header["fingerprint"]["dtype"] = "float16"
    path.write_text(json.dumps(header))
    with pytest.raises(StoreError, match="damaged"):
        FeatureStore(store.folder)
    path.write_text("{")
    with pytest.raises(StoreError, match="damaged"):
        make_store()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(StoreError, match=r"not empty.*thesis\.tex"):
        make_store("full")
    with pytest.raises(StoreError, match="no feature store"):
        FeatureStore(tmp_path / "nowhere")


def test_a_later_entry_supersedes_and_gc_frees_its_shard(make_store):
    store = make_store()
    fill(store, ["a", "b"])
    with store.writer("other") as writer:
        writer.add("a", representation(9), input_key="new")
    store = FeatureStore(store.folder)
    assert store.entry("a").input == "new"
    assert len(store) == 2
    assert torch.equal(store.read("a").hidden_states[0], representation(9)["audio"].hidden_states[0])
    assert gc(store) == 0
    with store.writer("third") as writer:
        writer.add("b", representation(8))
    assert gc(store) > 0
    assert files(store, "shard-main-*") == []
    assert FeatureStore(store.folder).ids == ["a", "b"]
    assert verify(store).ok


def test_two_writers_of_one_name_exclude_each_other_and_others_do_not(make_store):
    store = make_store()
    with store.writer("one") as writer, store.writer("two") as second:
        with pytest.raises(StoreError, match=f"being written by process {os.getpid()}"), store.writer("one"):
            pass
        writer.add("a", representation(0))
        second.add("b", representation(1))
    with store.writer("one") as writer:
        writer.add("c", representation(2))
    store.refresh()
    assert store.ids == ["a", "b", "c"]


def test_an_exception_keeps_whole_clips(make_store):
    store = make_store()

    def work() -> None:
        with store.writer() as writer:
            writer.add("a", representation(0))
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        work()
    store.refresh()
    assert store.ids == ["a"]


@pytest.mark.parametrize("failing", [1, 2, 3, 4])
def test_full_disk_says_so_and_leaves_nothing_half_written(make_store, monkeypatch, failing):
    store = make_store()
    fill(store, ["a"])
    calls = iter(range(1, 100))
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if next(calls) == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StoreError, match=r"the disk is full.*make room"):
        fill(store, ["b"])
    monkeypatch.undo()
    again = FeatureStore(store.folder)
    assert files(store, "tmp-*") == []
    assert "a" in again
    assert verify(again).ok
    fill(again, ["b"])
    assert again.ids == ["a", "b"]
    assert verify(again).ok


def test_file_size_limit_in_a_real_write(make_store):
    store = make_store()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, limits[1]))
    try:
        with pytest.raises(StoreError, match="file size limit"):
            fill(store, ["a"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files(store, "tmp-*") == []
    assert files(store, "shard-*") == []


def test_leftovers_of_a_dead_writer_are_not_seen_and_go(make_store):
    store = make_store()
    fill(store, ["a"], "w")
    orphans = [
        "tmp-w-000002.safetensors",
        "shard-w-000002.safetensors",
        "tmp-w-000002.jsonl",
        "tmp-v-000001.safetensors",
    ]
    for name in orphans:
        (store.folder / name).write_bytes(b"half")
    assert FeatureStore(store.folder).ids == ["a"]
    with store.writer("v"):
        sweep(store)
        # a writer at work keeps its files; it removed its own leftovers when it started
        (store.folder / "tmp-v-000009.safetensors").write_bytes(b"half")
        sweep(store)
        assert files(store, "tmp-*") == ["tmp-v-000009.safetensors"]
    assert files(store, "shard-*") == ["shard-w-000001.jsonl", "shard-w-000001.safetensors"]


def test_verify_finds_every_flipped_byte_and_names_the_clip(make_store):
    store = make_store(frames=False, pooled=["mean"])
    fill(store, ["a", "b", "a/audio"])
    path = next(store.folder.glob("*.safetensors"))
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    offsets = json.loads(whole[8:header])
    for position in range(0, len(whole), 7):
        broken = bytearray(whole)
        broken[position] ^= 0x10
        path.write_bytes(broken)
        damaged = set(verify(FeatureStore(store.folder)).damaged)
        if position >= header:
            name = next(
                k for k, v in offsets.items() if v["data_offsets"][0] <= position - header < v["data_offsets"][1]
            )
            assert damaged == {name.removesuffix("/audio/mean")}
        else:
            assert damaged
    path.write_bytes(whole)
    assert verify(FeatureStore(store.folder)).ok


def test_truncated_missing_and_unreadable_shards_and_index_parts(make_store):
    store = make_store()
    fill(store, ["a", "b", "c", "d"], max_clips=2)
    first, second = (store.folder / name for name in files(store, "*.safetensors"))
    first.write_bytes(first.read_bytes()[:-100])
    report = verify(store)
    assert set(report.damaged) == {"a", "b"}
    assert "bytes instead of" in report.damaged["a"]
    with pytest.raises(StoreError, match=r"'a' cannot be read(.|\n)*features verify"):
        FeatureStore(store.folder).read("a")
    part = second.with_suffix(".jsonl")
    part.write_bytes(part.read_bytes().replace(b"key-", b"kez-", 1))
    damaged = FeatureStore(store.folder)
    assert damaged.ids == ["a", "b"]
    report = verify(damaged)
    assert list(report.damaged_parts) == [part.name]
    assert not report.ok
    remove(damaged, report.damaged)
    assert files(store, "shard-*") == []
    fill(damaged, ["a", "b", "c", "d"])
    assert verify(damaged).ok
    next(store.folder.glob("*.safetensors")).unlink()
    assert set(verify(damaged).damaged) == {"a", "b", "c", "d"}


def test_remove_takes_only_the_named_clips(make_store):
    store = make_store()
    fill(store, ["a", "b", "c"])
    remove(store, ["b"])
    again = FeatureStore(store.folder)
    assert again.ids == ["a", "c"]
    assert verify(again).ok
    assert torch.equal(again.read("c").hidden_states[0], representation(2, 7)["audio"].hidden_states[0])


def test_store_copies_without_open_files_and_closes_old_shards(make_store, monkeypatch):
    monkeypatch.setattr("mmssl.features.store._OPEN_SHARDS", 2)
    store = make_store()
    fill(store, [str(i) for i in range(6)], max_clips=1)
    for clip_id in store:
        store.read(clip_id)
    assert len(store._shards) == 2
    twin = copy.copy(store)
    assert len(twin._shards) == 0
    assert torch.equal(twin.read("3").hidden_states[0], store.read("3").hidden_states[0])


@pytest.mark.parametrize("stat", [None, "mean"])
def test_dataset_gives_layers_and_targets(make_store, stat):
    store = make_store()
    fill(store, ["a", "b"])
    dataset = FeatureDataset(store, ["b", "a"], [1, 0], stat=stat)
    items = list(DataLoader(dataset, batch_size=None))
    assert [target for _, target in items] == [1, 0]
    expected = store.read("b") if stat is None else store.pooled("b")
    assert torch.equal(items[0][0].hidden_states[2], expected.hidden_states[2])
    with pytest.raises(DataError, match="1 of 1 clips are not in"):
        FeatureDataset(store, ["x"])
    with pytest.raises(DataError, match="as many targets"):
        FeatureDataset(store, ["a"], [1, 2])


def test_shards_are_plain_safetensors(make_store):
    from safetensors.torch import load_file

    store = make_store(dtype="float16")
    fill(store, ["a"])
    tensors = load_file(next(Path(store.folder).glob("*.safetensors")))
    assert {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()} == {
        "a/audio/frames": (torch.float16, (3, 5, 8)),
        "a/audio/mean": (torch.float32, (3, 8)),
        "a/audio/std": (torch.float32, (3, 8)),
    }


def test_checksums_are_joined_as_zlib_sums_the_whole():
    generator = np.random.default_rng(0)
    for a, b in ((0, 0), (0, 5), (7, 0), (13, 1000), (100_001, 300_003)):
        first, second = generator.bytes(a), generator.bytes(b)
        assert join_crc(zlib.crc32(first), zlib.crc32(second), b) == zlib.crc32(first + second)


def test_checksums_of_large_tensors_are_those_of_the_file(make_store, monkeypatch):
    for smallest in (1, 1 << 18):
        monkeypatch.setattr("mmssl.features.shards._WORTH_JOINING", smallest)
        store = make_store(str(smallest))
        fill(store, ["a", "b"])
        assert verify(store).ok
        part = next(iter(store.parts.values()))
        assert (part.size, part.crc32) == file_crc(store.folder / part.shard)
