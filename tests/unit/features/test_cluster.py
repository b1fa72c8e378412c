"""k-means over a store: assignment against a slow loop, order and memory, files, and known labels of frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmssl.errors import ConfigError, DataError
from mmssl.features.cluster import Clusters, assign, fit_clusters, label_clips
from mmssl.features.cluster_quality import frame_labels, judge_units, read_alignment
from mmssl.features.fingerprint import make_fingerprint
from mmssl.features.store import FeatureStore
from mmssl.types import Layers
from mmssl.upstreams.base import load_upstream

CENTRES = np.array([[0.0] * 39, [8.0] * 39, [-8.0] * 39], dtype=np.float32)


def make_store(folder: Path, order: list[int], shards: int = 512) -> FeatureStore:
    """Eight clips whose frames lie around three centres; written in some order, in shards of some size."""
    upstream = load_upstream("mfcc", deltas=2)
    store = FeatureStore.create(folder, make_fingerprint(upstream, kwargs={"deltas": 2}, pooled=[]))
    with store.writer("main", max_clips=shards) as writer:
        for number in order:
            rng = np.random.default_rng(number)
            frames = CENTRES[rng.integers(3, size=20 + number)] + rng.normal(size=(20 + number, 39))
            data = torch.from_numpy(frames.astype(np.float32))
            writer.add(f"clip{number}", {"audio": Layers((data,), (torch.tensor(len(data)),))})
    store.refresh()
    return store


@pytest.mark.parametrize("shape", [(1, 1, 2), (50, 3, 7), (333, 39, 20)])
def test_assignment_is_that_of_a_loop(shape: tuple[int, int, int]) -> None:
    count, width, clusters = shape
    rng = np.random.default_rng(0)
    # far from zero, where the expanded square loses digits
    frames = (rng.normal(size=(count, width)) + 1000).astype(np.float32)
    centroids = (rng.normal(size=(clusters, width)) + 1000).astype(np.float32)
    slow = [int(np.argmin([((f.astype(np.float64) - c) ** 2).sum() for c in centroids])) for f in frames]
    assert assign(frames, centroids).tolist() == slow


def test_ties_go_to_the_first_and_widths_must_agree() -> None:
    assert assign(np.zeros((2, 3)), np.ones((4, 3))).tolist() == [0, 0]
    assert assign(np.zeros((0, 3)), np.ones((4, 3))).shape == (0,)
    with pytest.raises(DataError, match="one width"):
        assign(np.zeros((2, 3)), np.zeros((2, 4)))


def test_clusters_are_found_whatever_the_order_in_the_store(tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch_frames": 30, "init_frames": 60, "passes": 4}
    first = fit_clusters(make_store(tmp_path / "a", list(range(8))), 3, **options)
    other = fit_clusters(make_store(tmp_path / "b", [5, 2, 7, 0, 1, 6, 4, 3], shards=2), 3, **options)
    assert np.array_equal(first.centroids, other.centroids)
    assert first.rate == pytest.approx(100.0)
    distances = ((first.centroids[:, None] - CENTRES) ** 2).mean(-1)
    assert sorted(distances.argmin(1).tolist()) == [0, 1, 2]
    assert distances.min(1).max() < 0.5
    again = fit_clusters(FeatureStore(tmp_path / "a"), 3, seed=1, **options)
    assert not np.array_equal(first.centroids, again.centroids)


def test_labels_counts_and_files(tmp_path: Path) -> None:
    store = make_store(tmp_path / "a", list(range(8)))
    clusters = fit_clusters(store, 3, ids=["clip1", "clip3"])
    clusters.save(tmp_path / "c.safetensors")
    read = Clusters.load(tmp_path / "c.safetensors")
    assert np.array_equal(read.centroids, clusters.centroids)
    assert (read.layer, read.stream, read.rate, read.seed) == (0, "audio", clusters.rate, 0)
    found = label_clips(store, read)
    assert list(found.units) == store.ids
    assert found.counts.sum() == sum(20 + k for k in range(8))
    assert 0.9 < found.entropy <= 1
    frames = store.read("clip5").hidden_states[0].numpy()
    assert np.array_equal(found.units["clip5"], assign(frames, clusters.centroids))
    with pytest.raises(DataError, match="cluster again"):
        Clusters.load(tmp_path / "none.safetensors")


def test_a_pass_may_be_bounded(tmp_path: Path) -> None:
    store = make_store(tmp_path / "a", list(range(8)))
    found = fit_clusters(store, 3, max_frames=30, passes=6, batch_frames=20, init_frames=30)
    assert found.centroids.shape == (3, 39)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_clusters": 1}, "num_clusters >= 2"),
        ({"num_clusters": 1000, "batch_frames": 5000}, "there are 188"),
        ({"num_clusters": 3, "layer": 4}, "no layer 4"),
        ({"num_clusters": 3, "stream": "video"}, "no stream 'video'"),
        ({"num_clusters": 3, "batch_frames": 2}, "batch_frames"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, int], message: str, tmp_path: Path) -> None:
    store = make_store(tmp_path / "a", list(range(8)))
    with pytest.raises(ConfigError, match=message):
        fit_clusters(store, **options)  # type: ignore[arg-type]


def test_frame_labels_are_those_of_the_middle_of_a_step() -> None:
    codes: dict[str, int] = {}
    segments = [(0.0, 0.015, "sil"), (0.015, 0.035, "a"), (0.05, 0.06, "sil")]
    # middles at 5, 15, 25 ... ms
    assert frame_labels(segments, 7, 100.0, codes).tolist() == [0, 1, 1, -1, -1, 0, -1]
    assert codes == {"sil": 0, "a": 1}


def test_alignments_of_both_kinds(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("start\tend\tphone\n0.0\t0.02\tsil\n0.02\t0.04\ta\n")
    (tmp_path / "y.lablaut").write_text("signal y\nnfields 1\n#\n    0.02   -1 _d\t-sth\n    0.04   -1 a\t3\n")
    assert read_alignment(tmp_path / "x.tsv") == [(0.0, 0.02, "sil"), (0.02, 0.04, "a")]
    assert read_alignment(tmp_path / "y.lablaut") == [(0.0, 0.02, "d"), (0.02, 0.04, "a")]
    units = {"x": np.array([1, 1, 0, 0]), "elsewhere": np.array([0])}
    found = judge_units(units, tmp_path, 100.0, 2)
    assert found is not None
    assert (found.phone_purity, found.pnmi, found.frames) == (1.0, pytest.approx(1.0), 4)
    assert judge_units({"elsewhere": np.array([0])}, tmp_path, 100.0, 2) is None
    (tmp_path / "z.tsv").write_text("start\tend\n1\t2\n")
    with pytest.raises(DataError, match="not an alignment"):
        read_alignment(tmp_path / "z.tsv")
