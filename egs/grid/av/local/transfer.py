"""A comparison of sound and pictures trained on drawn talking heads, tried on unseen ones and on real faces of GRID.

    python egs/grid/av/local/transfer.py EXPERIMENT GRID OUT

EXPERIMENT: a run of egs/mini/ssl on `data.options.kind=video`, such as egs/mini/ssl/exp/correspondence-l3. GRID: a
folder of .mpg files. OUT: where crops, the model and scores.json go.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmssl.data.folds import read_folds
from mmssl.data.manifest import read_manifest
from mmssl.errors import MmsslError
from mmssl.faces.prepare import prepare_faces
from mmssl.media.video import video_info
from mmssl.stages.corpus import corpus_files
from mmssl.stages.files import write_json
from mmssl.training.sync_media import ShiftedPair, drawn_pairs, dubbed_pairs
from mmssl.training.sync_train import SyncScores, pair_metrics, score_pairs, train_synchrony
from mmssl.types import Clip
from mmssl.upstreams.base import load_upstream

MAX_SHIFT, LEAST_FRAMES = 6, 5
LEAST_SECONDS = 1.32
"""3 MAX_SHIFT + LEAST_FRAMES frames at 25 Hz, and what a window of sound takes more."""
COUNTS = {"train": 220, "dev": 24, "test": 24}
BOOTSTRAP = 2000


def main() -> int:
    """Train, score and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("experiment", "grid", "out"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    try:
        results = run(args.experiment, args.grid, args.out)
    except MmsslError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    write_json(args.out / "scores.json", results)
    for name, rows in results.items():
        for measure, values in rows.items():
            print(f"{name:<5} {measure:<16} {values[0]:6.3f}  95 % interval {values[1]:6.3f} to {values[2]:6.3f}")
    return 0


def run(experiment: Path, grid: Path, out: Path) -> dict[str, dict[str, list[float]]]:
    """Scores of unseen drawn heads and of GRID: measure -> value and interval over clips."""
    parts = mini_clips(experiment)
    settings = {"max_shift": MAX_SHIFT, "least_frames": LEAST_FRAMES, "per_clip": 3}
    settings |= {"embedding_size": 64, "hidden_size": 128}
    training = {"max_steps": 500, "eval_every": 50, "learning_rate": 1e-3, "batch_size": 24, "patience": 4}
    encoder = load_upstream(str(experiment / "upstream"))
    model, _ = train_synchrony(encoder, parts["train"], parts["dev"], **settings, **training)
    described = json.loads((experiment / "upstream" / "upstream.json").read_text())
    model.save(out / "synchrony", described["upstream"], described["arguments"], note=f"{experiment.name}, mini")
    test, real = parts["test"], grid_clips(grid, out)
    generator = torch.Generator().manual_seed(1)
    drawn = [*drawn_pairs(test, 3, MAX_SHIFT, generator), *(ShiftedPair(c, c) for c in test)]
    every = [ShiftedPair(clip, clip, shift) for clip in real for shift in range(-MAX_SHIFT, MAX_SHIFT + 1)]
    scores = {"mini": score_pairs(model, [*drawn, *dubbed_pairs(test)], skip=True)}
    scores["GRID"] = score_pairs(model, [*every, *dubbed_pairs(real)], skip=True)
    return {name: with_intervals(found) for name, found in scores.items()}


def mini_clips(experiment: Path) -> dict[str, list[Clip]]:
    """Clips of the experiment's fold, long enough, evenly spread over each part."""
    files = [experiment / name for name in ("probe.jsonl", "manifest.jsonl")]
    clips = {clip.id: clip for file in files for clip in read_manifest(file)}
    fold = read_folds(experiment / "folds.json")[0]
    parts = {}
    for part, count in COUNTS.items():
        found = [clips[i] for i in getattr(fold, part) if i in clips]
        found = [clip for clip in found if (clip.duration or 0.0) > LEAST_SECONDS]
        parts[part] = found[:: max(1, len(found) // count)][:count]
    return parts


def grid_clips(grid: Path, out: Path) -> list[Clip]:
    """GRID's clips, cropped to about the frame that the drawn heads have."""
    files = corpus_files(
        grid, "GRID", ["*.mpg", "*/*.mpg", "*/*/*.mpg"], "a folder of .mpg files, such as s1/bbaf2n.mpg."
    )
    clips = [Clip(path.stem, video=str(path)) for path in files if video_info(path).has_audio]
    middle = {"detector": "centre", "arguments": {"share": 0.9}}
    return read_manifest(prepare_faces(clips, out / "faces", region="face", size=96, **middle).manifest)


def with_intervals(scores: SyncScores) -> dict[str, list[float]]:
    """Each measure with its 95 % interval from drawing clips with replacement."""
    names = sorted({pair.pictures.id for pair in scores.pairs})
    rows = {n: [k for k, pair in enumerate(scores.pairs) if pair.pictures.id == n] for n in names}
    rng = np.random.default_rng(0)
    drawn: list[dict[str, float]] = []
    for _ in range(BOOTSTRAP):
        chosen = [k for n in rng.choice(names, len(names)) for k in rows[n]]
        drawn.append(_metrics(scores, chosen))
    found: dict[str, list[float]] = {}
    for measure, value in scores.metrics.items():
        values = [draw[measure] for draw in drawn if measure in draw]
        found[measure] = [value, *(float(v) for v in np.quantile(values, [0.025, 0.975]))]
    return found


def _metrics(scores: SyncScores, chosen: Sequence[int]) -> dict[str, float]:
    pairs: list[Any] = [scores.pairs[k] for k in chosen]
    return pair_metrics(pairs, scores.distances[list(chosen)])


if __name__ == "__main__":
    sys.exit(main())
