"""Heads on frames: what is read from stores, when pooled features are enough, and what comes out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmssl.data.folds import Fold
from mmssl.errors import ConfigError, RegistryError, StoreError
from mmssl.features.fingerprint import Fingerprint
from mmssl.features.store import FeatureStore
from mmssl.probing.choice import HeadChoice
from mmssl.probing.data import load_data
from mmssl.probing.evaluate import probe_head
from mmssl.probing.frames import FrameSplit, load_frames
from mmssl.training.batches import collate
from mmssl.types import Clip, Layers, StreamSpec

LAYERS, WIDTH, CLIPS = 3, 6, 48
STREAM = StreamSpec((WIDTH,) * LAYERS, (320,) * LAYERS)


def frames_of(number: int) -> list[torch.Tensor]:
    """Classes differ in the order of their frames alone: the means over time are the same for all."""
    generator = torch.Generator().manual_seed(number)
    half = 4 + number % 3
    course = torch.cat([torch.ones(half), -torch.ones(half)]) * (1 if number % 2 else -1)
    return [course[:, None] + 0.1 * torch.randn(2 * half, WIDTH, generator=generator) for _ in range(LAYERS)]


def make_store(
    folder: Path, frames: bool, pooled: tuple[str, ...] = ("mean", "std"), rate: int = 16000
) -> FeatureStore:
    fields = {
        "streams": {
            "audio": {
                "num_layers": LAYERS,
                "layers": list(range(LAYERS)),
                "hidden_sizes": [WIDTH] * LAYERS,
                "hop_lengths": [320] * LAYERS,
                "tokens_per_frame": 1,
            }
        },
        "sample_rate": rate,
        "frames": frames,
        "pooled": list(pooled),
        "dtype": "float32",
    }
    store = FeatureStore.create(folder, Fingerprint(fields))
    with store.writer() as writer:
        for number in range(CLIPS):
            states = tuple(frames_of(number))
            lengths = tuple(torch.tensor(len(h)) for h in states)
            writer.add(f"c{number:02d}", {"audio": Layers(states, lengths)})
    store.refresh()
    return store


def clips() -> list[Clip]:
    return [Clip(f"c{k:02d}", audio="none.wav", labels={"order": "up" if k % 2 else "down"}) for k in range(CLIPS)]


FOLD = Fold(
    name="one",
    train=tuple(f"c{k:02d}" for k in range(24)),
    dev=tuple(f"c{k:02d}" for k in range(24, 36)),
    test=tuple(f"c{k:02d}" for k in range(36, 48)),
)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FeatureStore]:
    folder = tmp_path_factory.mktemp("stores")
    return {
        "frames": make_store(folder / "frames", True),
        "unpooled": make_store(folder / "unpooled", True, ()),
        "pooled": make_store(folder / "pooled", False),
        "other rate": make_store(folder / "other", True, rate=8000),
    }


def test_a_head_on_frames_hears_an_order_that_means_hide(stores: dict[str, FeatureStore]) -> None:
    settings = {"learning_rates": [1e-2], "max_steps": 24, "batch_size": 12, "eval_every": 8}
    choice = HeadChoice("blstm", head_arguments={"hidden_size": 8, "num_layers": 1})
    assert not choice.affine(STREAM)
    data = load_frames(stores["frames"], clips(), "order")
    found = probe_head(data, data.parts([FOLD]), choice, settings=settings)
    assert found.metrics["uar"]["mean"] == 1.0
    assert found.name == "blstm(hidden_size=8, num_layers=1) head"
    again = probe_head(data, data.parts([FOLD]), choice, settings=settings)
    assert again.record() == found.record()
    plain = HeadChoice("linear")
    assert plain.affine(STREAM)
    pooled = load_data(stores["pooled"], clips(), "order", statistics="mean")
    means = probe_head(pooled, pooled.parts([FOLD]), plain, settings=settings)
    assert means.metrics["uar"]["mean"] < 0.9


@pytest.mark.parametrize(
    ("head", "interface", "arguments", "affine"),
    [
        ("linear", "weighted_sum", {}, True),
        ("linear", "concat", {}, True),
        ("linear", "layer", {"layer": 1}, True),
        ("linear", "weighted_sum", {"normalize": True}, False),
        ("linear", "hierarchical_conv", {}, False),
        ("mlp", "weighted_sum", {}, False),
        ("attentive_stats", "weighted_sum", {}, False),
        ("ecapa_tdnn", "hierarchical_conv", {}, False),
    ],
)
def test_affine_pairs_are_those_for_which_the_mean_is_enough(
    head: str, interface: str, arguments: dict, affine: bool
) -> None:
    sizes = {"channels": 16, "joined_size": 8, "embedding_size": 4} if head == "ecapa_tdnn" else {}
    choice = HeadChoice(head, interface, sizes, arguments)
    assert choice.affine(STREAM) == affine
    moments = [torch.zeros(WIDTH)] * LAYERS, [torch.ones(WIDTH)] * LAYERS
    torch.manual_seed(0)
    task = choice.task(STREAM, moments, 2, None).eval()
    states = [torch.randn(1, 9, WIDTH, generator=torch.Generator().manual_seed(k)) for k in range(LAYERS)]
    whole = Layers(tuple(states), (torch.tensor([9]),) * LAYERS)
    mean = Layers(tuple(s.mean(1, keepdim=True) for s in states), (torch.tensor([1]),) * LAYERS)
    difference = (task.predict(whole) - task.predict(mean)).abs().max()
    assert bool(difference < 1e-6) == affine


def test_frames_are_read_clip_by_clip_and_pooled_probes_read_none(
    stores: dict[str, FeatureStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    original = FeatureStore.read
    monkeypatch.setattr(FeatureStore, "read", lambda self, *a, **k: (read.append(a[0]), original(self, *a, **k))[1])
    load_data(stores["frames"], clips(), "order")
    data = load_frames(stores["frames"], clips(), "order")
    data.moments(torch.arange(24))
    assert read == []
    layers, target = FrameSplit(data, torch.tensor([5]))[0]
    assert read == ["c05"]
    assert int(target) == 1
    torch.testing.assert_close(layers.hidden_states[0], frames_of(5)[0])


def test_moments_from_pooled_statistics_equal_those_of_the_frames(stores: dict[str, FeatureStore]) -> None:
    chosen = torch.tensor([3, 8, 20])
    kept, computed = (load_frames(stores[n], clips(), "order").moments(chosen) for n in ("frames", "unpooled"))
    rows = [frames_of(int(k))[1].double() for k in chosen]
    mean = torch.stack([r.mean(0) for r in rows]).mean(0)
    square = torch.stack([r.square().mean(0) for r in rows]).mean(0)
    for means, stds in (kept, computed):
        torch.testing.assert_close(means[1].double(), mean, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(stds[1].double(), (square - mean.square()).sqrt(), atol=1e-5, rtol=1e-5)


def test_layers_of_several_stores_stand_side_by_side(stores: dict[str, FeatureStore]) -> None:
    data = load_frames([stores["frames"], stores["unpooled"]], clips(), "order", layers=[0, -1])
    assert data.numbers == (0, 2)
    batch, _ = collate([FrameSplit(data, torch.tensor([1, 2]))[k] for k in range(2)])
    assert batch.hidden_sizes == data.spec.hidden_sizes == (WIDTH,) * 4
    torch.testing.assert_close(batch.hidden_states[1], batch.hidden_states[3])


def test_mistakes_say_what_to_do(stores: dict[str, FeatureStore]) -> None:
    with pytest.raises(StoreError, match=r"without --no-frames.*--head linear"):
        load_frames(stores["pooled"], clips(), "order")
    with pytest.raises(StoreError, match="no layer 7"):
        load_frames(stores["frames"], clips(), "order", layers=[0, 7])
    with pytest.raises(StoreError, match="do not share a clock"):
        load_frames([stores["frames"], stores["other rate"]], clips(), "order")
    with pytest.raises(RegistryError, match="attentive_stats"):
        HeadChoice("attentive_stat").affine(STREAM)
    with pytest.raises(ConfigError, match="hidden"):
        HeadChoice("blstm", head_arguments={"hiden_size": 3}).affine(STREAM)
