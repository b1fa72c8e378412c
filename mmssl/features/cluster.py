"""k-means over the frames of a feature store, in bounded memory, and the label files that pretraining reads.

Frames are read clip by clip in an order that the seed determines, so that the outcome depends on the features and the
settings alone, not on how the store was filled. Source: Sculley 2010, "Web-scale k-means clustering" (mini-batches);
Arthur and Vassilvitskii 2007, "k-means++: the advantages of careful seeding".
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mmssl.errors import ConfigError, DataError
from mmssl.features.store import FeatureStore
from mmssl.files import replace_file
from mmssl.metrics.clusters import usage

_BLOCK = 1 << 22  # distances that are held at a time


@dataclass(frozen=True, eq=False)
class Clusters:
    """Centroids, and what they were made of.

    Attributes:
        centroids: (K, D) float32.
        layer: of the upstream, counted from 0.
        stream: of the upstream.
        rate: frames per second of the features; None where they have no rate.
        seed: of the draws.
    """

    centroids: np.ndarray
    layer: int
    stream: str = "audio"
    rate: float | None = None
    seed: int = 0

    def assign(self, frames: np.ndarray) -> np.ndarray:
        """Nearest centroid of each frame; see `assign`."""
        return assign(frames, self.centroids)

    def save(self, path: str | Path) -> None:
        """Write centroids and description as safetensors, whole or not at all."""
        from safetensors.numpy import save

        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {"layer": self.layer, "stream": self.stream, "rate": self.rate, "seed": self.seed}
        with replace_file(path) as file:
            file.write(save({"centroids": self.centroids}, {"clusters": json.dumps(about)}))

    @classmethod
    def load(cls, path: str | Path) -> Clusters:
        """Read what `save` wrote.

        Raises:
            DataError: the file is missing or is no such file.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="np") as file:
                about = json.loads((file.metadata() or {})["clusters"])
                return cls(file.get_tensor("centroids"), **about)
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise DataError(f"{path} holds no centroids ({type(error).__name__}: {error}): cluster again.") from error


@dataclass
class Labelled:
    """Cluster ids of clips.

    Attributes:
        units: clip id -> (n,) int64, in the order of the ids that were asked for.
        counts: (K,) frames of each cluster.
    """

    units: dict[str, np.ndarray] = field(default_factory=dict)
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @property
    def entropy(self) -> float:
        """Entropy of the usage over ln(K), in [0, 1]."""
        return usage(self.counts)[0]


def assign(frames: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Nearest centroid of each frame by Euclidean distance; at a tie the first one.

    Args:
        frames: (N, D).
        centroids: (K, D).

    Returns:
        (N,) int64. Distances are computed in float64.
    """
    if frames.ndim != 2 or centroids.ndim != 2 or frames.shape[1] != centroids.shape[1]:
        raise DataError(f"Frames {frames.shape} and centroids {centroids.shape} do not have one width.")
    wide = centroids.astype(np.float64)
    # about the centroids' mean, so that the difference of large numbers loses nothing
    centre = wide.mean(0)
    wide = wide - centre
    norms = (wide**2).sum(1)
    rows = max(1, _BLOCK // len(centroids))
    found = [
        (norms - 2 * (frames[k : k + rows].astype(np.float64) - centre) @ wide.T).argmin(1)
        for k in range(0, len(frames), rows)
    ]
    return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)


def fit_clusters(
    store: FeatureStore,
    num_clusters: int,
    *,
    layer: int = -1,
    stream: str = "audio",
    ids: Sequence[str] | None = None,
    seed: int = 0,
    init_frames: int = 20_000,
    batch_frames: int = 10_000,
    passes: int = 3,
    max_frames: int | None = None,
    restarts: int = 3,
) -> Clusters:
    """Cluster the frames of a layer.

    The start is k-means++ on a random subset of all frames, the best of some draws; then mini-batches of frames go by,
    clip after clip. In memory are `init_frames` + `batch_frames` frames and one clip.

    Args:
        store: with frames.
        num_clusters: K.
        layer: its number, negative ones from the end.
        stream: of the upstream.
        ids: clips to cluster; None for all of the store. Their order does not matter.
        seed: of all that is drawn.
        init_frames: frames for the start.
        batch_frames: of a mini-batch.
        passes: over the clips.
        max_frames: of each pass: clips beyond it are left out, different ones in each pass; None for no limit.
        restarts: draws of k-means++.

    Raises:
        ConfigError: a number out of range, or more clusters than frames.
        StoreError: the store lacks frames, stream, layer or clips.
    """
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    if num_clusters < 2 or init_frames < 1 or batch_frames < num_clusters or passes < 1 or restarts < 1:
        raise ConfigError(
            f"Clustering takes num_clusters >= 2, init_frames, passes and restarts >= 1 and batch_frames >= "
            f"num_clusters, got {num_clusters}, {init_frames}, {passes}, {restarts} and {batch_frames}."
        )
    chosen = sorted(store.ids if ids is None else ids)
    position = _position(store, stream, layer)
    sizes = np.array([_frames(store, clip, stream, position) for clip in chosen], dtype=np.int64)
    if sizes.sum() < num_clusters:
        raise ConfigError(f"{num_clusters} clusters need as many frames, there are {int(sizes.sum())}.")
    rng = np.random.default_rng(seed)
    number = store.streams[stream]["layers"][position]
    sample = _sample(store, chosen, sizes, stream, number, init_frames, rng)
    # one thread, as the order of sums depends on their number
    with threadpool_limits(1):
        start = _best_start(sample, num_clusters, restarts, rng)
        model = MiniBatchKMeans(num_clusters, init=start, n_init=1, random_state=seed, compute_labels=False)
        for _ in range(passes):
            order = rng.permutation(len(chosen))
            for batch in _batches(store, [chosen[k] for k in order], stream, number, batch_frames, max_frames):
                model.partial_fit(batch)
    rate, hop = store.input_rate(stream), store.streams[stream]["hop_lengths"][position]
    rate = rate / hop if rate and hop else None
    return Clusters(model.cluster_centers_.astype(np.float32), number, stream, rate, seed)


def label_clips(store: FeatureStore, clusters: Clusters, ids: Sequence[str] | None = None) -> Labelled:
    """Cluster ids of every frame of clips.

    Raises:
        StoreError: a clip is not in the store.
        DataError: the centroids have another width.
    """
    found = Labelled(counts=np.zeros(len(clusters.centroids), dtype=np.int64))
    for clip in store.ids if ids is None else ids:
        own = clusters.assign(_read(store, clip, clusters.stream, clusters.layer))
        found.units[clip] = own
        found.counts += np.bincount(own, minlength=len(found.counts))
    return found


def _position(store: FeatureStore, stream: str, layer: int) -> int:
    if stream not in store.streams:
        raise ConfigError(f"{store.folder} has no stream {stream!r}; it has {', '.join(store.streams)}.")
    kept, count = store.streams[stream]["layers"], store.streams[stream]["num_layers"]
    number = layer + count if layer < 0 else layer
    if number not in kept:
        raise ConfigError(f"There is no layer {layer} of the stream {stream!r}; {store.folder} has {kept}.")
    return list(kept).index(number)


def _frames(store: FeatureStore, clip: str, stream: str, position: int) -> int:
    lengths = store.entry(clip).lengths[stream]
    return int(lengths[position] if isinstance(lengths, list) else lengths)


def _read(store: FeatureStore, clip: str, stream: str, layer: int) -> np.ndarray:
    return store.read(clip, stream, [layer]).hidden_states[0].numpy()


def _sample(
    store: FeatureStore,
    ids: Sequence[str],
    sizes: np.ndarray,
    stream: str,
    layer: int,
    count: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """A random subset of all frames, without replacement."""
    total = int(sizes.sum())
    picked = np.sort(rng.choice(total, min(count, total), replace=False, shuffle=False))
    ends = np.cumsum(sizes)
    owners = np.searchsorted(ends, picked, side="right")
    parts = []
    for owner in np.unique(owners):
        rows = picked[owners == owner] - (ends[owner] - sizes[owner])
        parts.append(_read(store, ids[owner], stream, layer)[rows])
    return np.concatenate(parts)


def _best_start(sample: np.ndarray, count: int, restarts: int, rng: np.random.Generator) -> np.ndarray:
    """Of some draws of k-means++, the one whose frames lie closest to their centres."""
    from sklearn.cluster import kmeans_plusplus

    starts: list[tuple[float, int, np.ndarray]] = []
    for _ in range(restarts):
        centres, _ = kmeans_plusplus(sample, count, random_state=int(rng.integers(2**31)))
        distances = ((sample - centres[assign(sample, centres)]) ** 2).sum()
        starts.append((float(distances), len(starts), centres))
    return min(starts)[2]


def _batches(
    store: FeatureStore, ids: Sequence[str], stream: str, layer: int, size: int, most: int | None
) -> Iterator[np.ndarray]:
    """Frames of clips in batches of one size; a last smaller one goes with the one before."""
    held: list[np.ndarray] = []
    count = taken = 0
    for clip in ids:
        frames = _read(store, clip, stream, layer)
        held.append(frames)
        count, taken = count + len(frames), taken + len(frames)
        while count >= 2 * size:
            joined = np.concatenate(held)
            yield joined[:size]
            held, count = [joined[size:]], count - size
        if most is not None and taken >= most:
            break
    if count:
        yield np.concatenate(held)
