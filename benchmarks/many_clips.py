"""Very many short clips through the filterbank and a probe: time per clip and memory must not grow.

The clips are segments of a few long files of filtered noise, so that the disk holds megabytes and not gigabytes. Each
round asks for more clips of the same manifest in the same folder. Then `mmssl probe` tells the files apart, in a
process of its own.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from common import print_table

from mmssl.data.manifest import write_manifest
from mmssl.features.extract import ExtractOptions, extract
from mmssl.types import Clip

RATE, SECONDS, FILES = 16000, 100, 4


def make_clips(folder: Path, count: int) -> list[Clip]:
    """Segments of 1 s of files of noise, each file with its own slope of the spectrum, which is the label."""
    rng = np.random.default_rng(0)
    files = []
    for i in range(FILES):
        files.append(str(folder / f"{i}.wav"))
        noise = rng.standard_normal(SECONDS * RATE)
        # one-pole low-pass, weakly different from file to file
        noise[1:] += (0.02 * i) * noise[:-1]
        soundfile.write(files[-1], 0.1 * noise, RATE, subtype="PCM_16")
    # every start is another one
    step = (SECONDS - 1.5) / (count // FILES + 1)
    return [
        Clip(
            f"clip-{i:07d}",
            audio=files[i % FILES],
            start=round(step * (i // FILES), 6),
            duration=1.0,
            labels={"file": f"f{i % FILES}"},
            speaker=f"s{i // FILES % 50}",
        )
        for i in range(count)
    ]


def probe(folder: Path, clips: list[Clip]) -> tuple[float, float]:
    """Seconds and peak MB of `mmssl probe` on the store."""
    write_manifest(folder / "manifest.jsonl", clips)
    command = [sys.executable, "-m", "mmssl", "probe", str(folder / "store"), "--statistics", "mean"]
    command += ["--manifest", str(folder / "manifest.jsonl"), "--label", "file", "--k", "5"]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    print("\n".join(line for line in done.stdout.splitlines() if line.startswith("|")))
    return time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def main() -> None:
    """Run the extraction and the probe, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5, help="parts of equal size")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clips = make_clips(folder, args.clips)
        rows = []
        size = -(-len(clips) // args.rounds)
        for part in range(args.rounds):
            started, used = time.perf_counter(), time.process_time()
            own = clips[part * size : (part + 1) * size]
            summary = extract(
                "fbank", own, folder / "store", pooled=("mean",), frames=False, options=ExtractOptions(progress=False)
            )
            seconds, used = time.perf_counter() - started, time.process_time() - used
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            each = 1e3 / max(summary.done, 1)
            rows.append((f"{part * size + summary.done:,}", each * seconds, each * used, peak))
            print(*rows[-1], flush=True)
        header = ("clips in the store", "ms a clip", "processor ms a clip", "peak MB")
        print_table(f"fbank, {len(clips):,} clips of 1 s, pooled", header, rows)
        seconds, peak = probe(folder, clips)
        print_table(
            f"mmssl probe on {len(clips):,} clips, 5 folds",
            ("s", "ms a clip", "peak MB"),
            [(seconds, 1e3 * seconds / len(clips), peak)],
        )


if __name__ == "__main__":
    main()
