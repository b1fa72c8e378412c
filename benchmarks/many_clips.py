"""Very many short clips through the filterbank: time per clip and memory must not grow.

The clips are segments of a few long files of noise, so that the disk holds megabytes and not gigabytes. Each round
asks for more clips of the same manifest in the same folder.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from common import print_table

from mmssl.features.extract import extract
from mmssl.types import Clip

RATE, SECONDS = 16000, 100


def main() -> None:
    """Run the extraction and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5, help="parts of equal size")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rng = np.random.default_rng(0)
        files = []
        for i in range(4):
            files.append(str(folder / f"{i}.wav"))
            soundfile.write(files[-1], 0.1 * rng.standard_normal(SECONDS * RATE), RATE, subtype="PCM_16")
        places = [(f, 0.01 * k) for k in range((SECONDS - 1) * 100) for f in files]
        step = max(1, len(places) // args.clips)
        clips = [
            Clip(
                f"clip-{i:07d}",
                audio=places[(i * step) % len(places)][0],
                start=round(places[(i * step) % len(places)][1], 2),
                duration=1.0,
            )
            for i in range(args.clips)
        ]
        rows = []
        size = -(-len(clips) // args.rounds)
        for part in range(args.rounds):
            started = time.perf_counter()
            summary = extract(
                "fbank",
                clips[part * size : (part + 1) * size],
                folder / "store",
                pooled=("mean",),
                frames=False,
                progress=False,
            )
            seconds = time.perf_counter() - started
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            rows.append((f"{part * size + summary.done:,}", 1e3 * seconds / max(summary.done, 1), peak))
        print_table(f"fbank, {len(clips):,} clips of 1 s, pooled", ("clips in the store", "ms a clip", "peak MB"), rows)


if __name__ == "__main__":
    main()
