"""Writing and reading back all layers of many clips: one file per clip in common formats, and the feature store.

Every format gets the same float32 layers (13 x 768, 50 frames a second) and gives back one clip as float32 layers in
a random order. Written files are synced, so that a rate is one of the disk and not of the page cache.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import interleave, median, print_table, timed

from mmssl.features.fingerprint import SCHEMA, Fingerprint
from mmssl.features.store import FeatureStore
from mmssl.features.writer import StoreWriter
from mmssl.types import Layers

LAYERS, WIDTH = 13, 768
Clips = list[torch.Tensor]


def draw_clips(count: int) -> Clips:
    """Random layers (13, T, 768) of clips with a mean length of 4.5 s."""
    rng = np.random.default_rng(0)
    frames = np.clip(rng.lognormal(np.log(225) - 0.15, 0.55, count), 50, 750).astype(int)
    return [torch.from_numpy(rng.standard_normal((LAYERS, n, WIDTH), dtype=np.float32)) for n in frames]


def sync(path: Path) -> None:
    """Wait until a file is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


class PerFile:
    """One file per clip."""

    def __init__(self, suffix: str, save: Callable[[torch.Tensor, Path], object], load: Callable[[Path], torch.Tensor]):
        self.suffix, self.save, self.load = suffix, save, load

    def write(self, folder: Path, clips: Clips) -> None:
        """Write all clips."""
        for i, clip in enumerate(clips):
            path = folder / f"{i}.{self.suffix}"
            self.save(clip, path)
            sync(path)

    def read(self, folder: Path, order: list[int]) -> None:
        """Read clips, one after another."""
        for i in order:
            self.load(folder / f"{i}.{self.suffix}").sum()


class Store:
    """The feature store."""

    def __init__(self, dtype: str):
        stream = {"num_layers": LAYERS, "layers": list(range(LAYERS)), "hidden_sizes": [WIDTH] * LAYERS}
        stream |= {"hop_lengths": [320] * LAYERS, "tokens_per_frame": 1}
        fields = {"schema": SCHEMA, "sample_rate": 16000, "streams": {"audio": stream}, "frames": True}
        self.fingerprint = Fingerprint({**fields, "dtype": dtype, "pooled": []})

    def write(self, folder: Path, clips: Clips) -> None:
        """Write all clips."""
        store = FeatureStore.create(folder, self.fingerprint)
        with StoreWriter(store) as writer:
            for i, clip in enumerate(clips):
                length = torch.tensor(clip.shape[1])
                writer.add(str(i), {"audio": Layers(tuple(clip), (length,) * LAYERS)})

    def read(self, folder: Path, order: list[int]) -> None:
        """Read clips, one after another."""
        store = FeatureStore(folder)
        for i in order:
            for layer in store.read(str(i)).hidden_states:
                layer.sum()


FORMATS = {
    "torch.save, float32": PerFile("pt", torch.save, lambda p: torch.load(p, weights_only=True)),
    "npy, float32": PerFile("npy", lambda c, p: np.save(p, c.numpy()), lambda p: torch.from_numpy(np.load(p))),
    "store, float32": Store("float32"),
    "store, float16": Store("float16"),
}


def main() -> None:
    """Run the comparison and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="on the disk to measure (default: the system's temporary folder)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    clips = draw_clips(args.clips)
    order = np.random.default_rng(1).permutation(len(clips)).tolist()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:

        def write(kind: str) -> float:
            folder = Path(name) / kind
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            return timed(lambda: FORMATS[kind].write(folder, clips))

        work: dict[str, Callable[[], float]] = {}
        for kind in FORMATS:
            work[f"write {kind}"] = lambda kind=kind: write(kind)  # type: ignore[misc]
        for kind in FORMATS:
            work[f"read {kind}"] = lambda kind=kind: timed(  # type: ignore[misc]
                lambda: FORMATS[kind].read(Path(name) / kind, order)
            )
        found = interleave(work, args.rounds)
        sizes = {k: sum(p.stat().st_size for p in (Path(name) / k).iterdir()) / len(clips) / 1e6 for k in FORMATS}
    first = next(iter(FORMATS))
    rows = []
    for kind in FORMATS:
        wrote, got = found[f"write {kind}"], found[f"read {kind}"]
        faster = [
            median([a / b for a, b in zip(found[f"{way} {first}"], values, strict=True)])
            for way, values in (("write", wrote), ("read", got))
        ]
        each = 1e3 / len(clips)
        rows.append((kind, sizes[kind], median(wrote) * each, median(got) * each, *faster))
    print_table(
        f"{len(clips)} clips of {LAYERS} x {WIDTH}",
        ("format", "MB a clip", "write ms", "read ms", "write, times torch.save", "read, times torch.save"),
        rows,
    )


if __name__ == "__main__":
    main()
