"""Features do not depend on order, batch budget, number of ranks or restarts: random corpora."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl.features.extract import ExtractOptions, extract
from mmssl.features.plan import Item, make_buckets
from mmssl.features.store import FeatureStore
from mmssl.types import Clip
from mmssl.upstreams.base import load_upstream

CONV = str(Path(__file__).parents[1] / "unit" / "features" / "conv_upstream.py")


@settings(max_examples=12, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("uneven", [False, True])
def test_any_order_budget_ranks_and_interruptions_give_each_clips_own_features(uneven, data):
    lengths = data.draw(st.lists(st.integers(720, 12000), min_size=1, max_size=8))
    budget = data.draw(st.floats(0.05, 4.0))
    world_size = data.draw(st.integers(1, 3))
    order = data.draw(st.permutations(range(len(lengths))))
    first = data.draw(st.integers(0, len(lengths)))
    seed = data.draw(st.integers(0, 2**32 - 1))
    upstream = load_upstream(CONV, uneven=uneven)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        noise = [0.1 * np.random.default_rng([seed, i]).standard_normal(n) for i, n in enumerate(lengths)]
        clips = []
        for i, samples in enumerate(noise):
            soundfile.write(folder / f"{i}.wav", samples, 16000, subtype="FLOAT")
            clips.append(Clip(str(i), audio=str(folder / f"{i}.wav")))
        if first:
            extract(
                upstream, clips[:first], folder / "store", options=ExtractOptions(batch_seconds=budget, progress=False)
            )
        arguments = {"batch_seconds": budget, "world_size": world_size, "progress": False}
        shuffled = [clips[i] for i in order]
        done = [
            extract(upstream, shuffled, folder / "store", options=ExtractOptions(rank=rank, **arguments))
            for rank in range(world_size)
        ]
        assert sum(summary.done for summary in done) == len(clips) - first
        assert sum(summary.reused for summary in done) == first
        store = FeatureStore(folder / "store")
        assert store.ids == sorted(clip.id for clip in clips)
        for clip, samples in zip(clips, noise, strict=True):
            alone = upstream(torch.from_numpy(samples.astype(np.float32))[None])["audio"]
            read, mean = store.read(clip.id), store.pooled(clip.id)
            for k in range(3):
                expected = alone.hidden_states[k][0]
                scale = float(expected.abs().mean())
                assert int(read.lengths[k]) == len(expected)
                assert float((read.hidden_states[k] - expected).abs().max()) <= 1e-5 * scale
                assert float((mean.hidden_states[k][0] - expected.mean(0)).abs().max()) <= 1e-5 * scale


@given(
    seconds=st.lists(st.floats(0.0, 100.0), max_size=40),
    budget=st.floats(0.1, 60.0),
    seed=st.randoms(use_true_random=False),
)
def test_buckets_hold_every_clip_once_within_the_budget_whatever_the_order(seconds, budget, seed):
    items = [Item(Clip(f"{i:02d}"), s) for i, s in enumerate(seconds)]
    buckets = make_buckets(items, budget)
    assert sorted(item.clip.id for bucket in buckets for item in bucket) == [item.clip.id for item in items]
    for bucket in buckets:
        assert len(bucket) == 1 or len(bucket) * max(item.seconds for item in bucket) <= budget
    shuffled = list(items)
    seed.shuffle(shuffled)
    assert make_buckets(shuffled, budget) == buckets
