"""Peak memory of extraction from one long recording: it must not grow with the recording.

Every row is a process of its own, which extracts one file of noise that has to be resampled (44.1 to 16 kHz). Of
float32 frames the last column counts the mapped pages of the file that collects them, which the system takes back
when it needs them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
from common import print_table

WORK = """
import json, resource, sys, time
from mmssl.features.extract import ExtractOptions, extract
from mmssl.types import Clip
name, kwargs, path, folder, frames, chunk = json.loads(sys.argv[1])
started = time.perf_counter()
extract(name, [Clip("long", audio=path)], folder, upstream_kwargs=kwargs, frames=frames,
        options=ExtractOptions(progress=False, chunk_seconds=chunk))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps([time.perf_counter() - started, peak]))
"""


def write_noise(path: Path, minutes: float, rate: int = 44_100) -> None:
    """Write a file piece by piece."""
    rng = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", rate, 1, subtype="PCM_16") as file:
        for _ in range(round(60 * minutes)):
            file.write(0.1 * rng.standard_normal(rate))


def measure(upstream: str, kwargs: dict[str, object], path: Path, frames: bool, chunk: float | None) -> list[float]:
    """Seconds and peak MB of a process that extracts one file."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        task = json.dumps([upstream, kwargs, str(path), folder, frames, chunk])
        done = subprocess.run([sys.executable, "-c", WORK, task], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, nargs="+", default=[1.0, 5.0, 60.0])
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for minutes in args.minutes:
            path = Path(name) / f"{minutes:g}.wav"
            write_noise(path, minutes)
            for frames in (False, True):
                seconds, peak = measure("fbank", {}, path, frames, None)
                rows.append((f"{minutes:g}", "frames and pooled" if frames else "pooled", seconds, peak))
            path.unlink()
    print_table("fbank, one recording", ("minutes", "kept", "s", "peak MB"), rows)


if __name__ == "__main__":
    main()
