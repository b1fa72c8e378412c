"""Stored features of clips with several streams: in memory or read as needed, the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmssl.downstream.heads import build_head
from mmssl.downstream.tasks import UtteranceClassification
from mmssl.features.fingerprint import make_fingerprint
from mmssl.features.store import FeatureStore
from mmssl.interfaces.fusion import build_fusion
from mmssl.stages import av_features
from mmssl.stages.av_features import AvClips, AvStore, StreamBatches
from mmssl.training.fit import predict
from mmssl.training.sweep import sweep
from mmssl.types import Inputs, Layers, Representation, StreamSpec, UpstreamSpec
from mmssl.upstreams.base import Upstream

STREAMS = {"audio": StreamSpec((3, 5), (160, 320)), "video": StreamSpec((4,), (1,))}


class Encoder(Upstream):
    """Says what streams there are; nothing is computed."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        streams = {name: STREAMS[name] for name in names}
        self.spec = UpstreamSpec(("waveforms", "video"), streams, sample_rate=16_000, video_fps=25.0)

    def output_lengths(self, lengths: Tensor, stream: str = "audio", layer: int = -1) -> Tensor:
        return lengths

    def extract(self, inputs: Inputs) -> Representation:
        raise NotImplementedError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 clips with sound and pictures, 4 with sound alone; class k % 2 is louder."""
    root = tmp_path_factory.mktemp("stores")
    for view, names, numbers in (("both", ("audio", "video"), range(20)), ("audio", ("audio",), range(20, 24))):
        store = FeatureStore.create(root / view, make_fingerprint(Encoder(names), kwargs={}))
        with store.writer("main", max_clips=6) as writer:
            for k in numbers:
                generator = torch.Generator().manual_seed(k)
                found = {}
                for name in names:
                    states = []
                    for size, hop in zip(STREAMS[name].hidden_sizes, STREAMS[name].hop_lengths, strict=True):
                        count = (4 + k % 3) * (2 if hop == 160 else 1)
                        states.append(torch.randn(count, size, generator=generator) + k % 2)
                    found[name] = Layers(tuple(states), tuple(torch.tensor(len(h)) for h in states))
                writer.add(f"c{k:02}", found)
    return root


IDS = [f"c{k:02}" for k in (*range(3, 24), 0, 1, 2)]
TARGETS = {clip: int(clip[1:]) % 2 for clip in IDS}


def store_of(folder: Path, statistics: str) -> AvStore:
    return AvStore(folder, {"stores": {"both": "both", "audio": "audio"}, "separate": False, "statistics": statistics})


def equal(one: Mapping[str, Layers], two: Mapping[str, Layers]) -> bool:
    return list(one) == list(two) and all(
        torch.equal(a, b)
        for name in one
        for side in ("hidden_states", "lengths")
        for a, b in zip(getattr(one[name], side), getattr(two[name], side), strict=True)
    )


@pytest.mark.parametrize("statistics", ["frames", "mean", "mean_std"])
@pytest.mark.parametrize(
    ("view", "only", "count"), [("both", None, 24), ("both", ["video"], 20), ("audio", None, 24), ("video", None, 20)]
)
def test_clips_are_the_same_in_memory_and_on_disk(
    folder: Path, monkeypatch: pytest.MonkeyPatch, statistics: str, view: str, only: list[str] | None, count: int
) -> None:
    store = store_of(folder, statistics)
    held = AvClips(store, [*IDS, "gone"], TARGETS, view, only)
    assert held.items is not None
    size = sum(h.nbytes for item in held.items for layers in item.values() for h in layers.hidden_states)
    # one byte too many, and nothing is held
    monkeypatch.setattr(av_features, "IN_MEMORY", size)
    assert AvClips(store, IDS, TARGETS, view, only).items is not None
    monkeypatch.setattr(av_features, "IN_MEMORY", size - 1)
    read = AvClips(store, [*IDS, "gone"], TARGETS, view, only)
    assert read.items is None
    assert read.batches() is read
    assert isinstance(held.batches(), StreamBatches) == (statistics != "frames")
    assert len(read) == count
    assert read.ids == held.ids == [clip for clip in IDS if clip < "c20" or count == 24]
    assert torch.equal(read.targets, held.targets)
    for k in range(count):
        assert equal(read[k][0], held[k][0])
        assert int(read[k][1]) == TARGETS[read.ids[k]]


def test_training_does_not_depend_on_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(folder, "mean_std")

    def build() -> nn.Module:
        fusion: Any = build_fusion("concat", store.specs("both"))
        return UtteranceClassification(fusion, build_head("linear", fusion.output_size, 2))

    found = []
    for limit in (av_features.IN_MEMORY, 0):
        monkeypatch.setattr(av_features, "IN_MEMORY", limit)
        train, test = (AvClips(store, ids, TARGETS) for ids in (IDS[:16], IDS[16:]))
        settings = {"learning_rates": [1e-2, 1e-1], "max_steps": 6, "eval_every": 3, "batch_size": 5}
        result = sweep(build, train.batches(), test.batches(), **settings)
        answers, truth = predict(result.task, test.batches(), batch_size=3)
        found.append((result.learning_rate, result.best.best_step, answers, truth))
    assert found[0][:2] == found[1][:2]
    torch.testing.assert_close(found[0][2], found[1][2])
    assert torch.equal(found[0][3], found[1][3])


@pytest.mark.parametrize("statistics", ["frames", "mean", "mean_std"])
@pytest.mark.parametrize("at_once", [1, 7, 100])
def test_moments_are_those_of_all_clips(
    folder: Path, monkeypatch: pytest.MonkeyPatch, statistics: str, at_once: int
) -> None:
    monkeypatch.setattr(av_features, "_AT_ONCE", at_once)
    store = store_of(folder, statistics)
    found = store.moments(IDS, "both")
    for name, stream in STREAMS.items():
        members = [clip for clip in IDS if name == "audio" or clip < "c20"]
        for k in range(len(stream.hidden_sizes)):
            rows = [store.read(clip, "both")[name].hidden_states[k].numpy().astype(float) for clip in members]
            centre = np.mean([row.mean(0) for row in rows], 0)
            # every clip counts the same, however long it is
            square = np.mean([(row**2).mean(0) for row in rows], 0)
            np.testing.assert_allclose(found[name][0][k].numpy(), centre, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(found[name][1][k].numpy(), np.sqrt(square - centre**2), rtol=1e-4)
