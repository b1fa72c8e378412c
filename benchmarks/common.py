"""What the measurements share: a control matrix product, interleaved rounds, and one printed table."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def timed(work: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def matmul_rate(size: int = 1536) -> float:
    """GFLOP/s of a float32 matrix product in this process: what the machine gives at this moment."""
    import torch

    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2e-9 * size**3 / timed(lambda: a @ b)


def interleave(
    work: Mapping[str, Callable[[], float]], rounds: int, control: Callable[[], float] = matmul_rate
) -> dict[str, list[float]]:
    """Run all pieces of work in turn, round after round, so that a change of the machine's speed meets all of them.

    Args:
        work: name -> call that returns seconds.
        rounds: number of rounds; one more runs first and is not counted.
        control: measured before every round.

    Returns:
        name -> seconds per round, and "control" -> its values.
    """
    found: dict[str, list[float]] = {name: [] for name in ("control", *work)}
    for number in range(rounds + 1):
        values = {"control": control(), **{name: run() for name, run in work.items()}}
        if number:
            for name, value in values.items():
                found[name].append(value)
    return found


def median(values: Sequence[float]) -> float:
    """Median of the rounds."""
    return statistics.median(values)


def machine() -> str:
    """Processor, cores and the versions that matter, in one line."""
    import os

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        name = names[0] if names else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    packages = []
    for package in ("mmssl", "torch", "transformers"):
        try:
            packages.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return f"{name}, {cores} cores, Python {platform.python_version()}, {', '.join(packages)}"


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table."""
    print(f"\n{title}\n{machine()}\n")
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row) + " |")
