"""Run an extraction in several processes of one machine."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mmssl.errors
from mmssl.errors import ConfigError, MmsslError, StoreError
from mmssl.features.engine import Report
from mmssl.features.plan import Item, item_to_record
from mmssl.registry import UPSTREAMS


def check_can_be_built_elsewhere(upstream: Any, kwargs: Mapping[str, Any]) -> None:
    """Refuse an upstream that a worker process could not build.

    Raises:
        ConfigError: it is a built object, known to this process only, or has arguments that are no plain values.
    """
    if not isinstance(upstream, str):
        raise ConfigError(
            "jobs > 1 builds the upstream in every process: give its name, dotted path or .py file with "
            "upstream_kwargs instead of the built object, or use jobs=1."
        )
    if UPSTREAMS.sources().get(upstream, "").startswith("this process"):
        raise ConfigError(
            f"The upstream {upstream!r} was registered in this process only, so jobs > 1 cannot build it in others: "
            f"give the dotted path or the .py file of its class, or use jobs=1."
        )
    try:
        json.dumps(kwargs)
    except TypeError as error:
        raise ConfigError(
            f"With jobs > 1 the upstream's arguments must be numbers, strings and lists: {error}. "
            f"Change them, or use jobs=1."
        ) from error


def run_jobs(task: Mapping[str, Any], shares: Sequence[tuple[str, Sequence[Sequence[Item]]]], report: Report) -> None:
    """Run shares of the work, each in its own process with its own writer, and pass on their events.

    Args:
        task: what all workers have in common (see `mmssl.features.worker`).
        shares: per process, the name of its writer and its buckets.
        report: receives the events.

    Raises:
        MmsslError: what a worker raised; the others are ended in order then.
        StoreError: a worker died.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // len(shares)) if hasattr(os, "sched_getaffinity") else 1
    path = os.pathsep.join(str(Path(p or ".").absolute()) for p in sys.path)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "mmssl.features.worker"]
    events: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()
    processes: list[subprocess.Popen[str]] = []
    try:
        for index, (writer, buckets) in enumerate(shares):
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", env=environment
            )
            processes.append(process)
            records = [[item_to_record(item) for item in bucket] for bucket in buckets]
            own = {**task, "writer": writer, "buckets": records, "threads": threads}
            threading.Thread(target=_talk, args=(index, process, json.dumps(own), events), daemon=True).start()
        _collect(processes, events, report)
    finally:
        _end(processes)


def _talk(
    index: int, process: subprocess.Popen[str], task: str, events: queue.Queue[tuple[int, dict[str, Any] | None]]
) -> None:
    """Hand a worker its task and pass on its events; None says that it has ended."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(f"{task}\n")
        process.stdin.flush()
    for line in process.stdout or ():
        # a killed worker may leave half a line
        with contextlib.suppress(ValueError):
            events.put((index, json.loads(line)))
    events.put((index, None))


def _collect(
    processes: Sequence[subprocess.Popen[str]],
    events: queue.Queue[tuple[int, dict[str, Any] | None]],
    report: Report,
) -> None:
    finished: set[int] = set()
    running = len(processes)
    while running:
        index, event = events.get()
        if event is None:
            running -= 1
            # the pipe closes a moment before the process ends
            code = processes[index].wait()
            if index not in finished:
                raise _death(index, len(processes), code)
        elif event["event"] == "finished":
            finished.add(index)
        elif event["event"] == "error":
            kind = getattr(mmssl.errors, event["type"], MmsslError)
            raise kind(event["message"])
        else:
            report(event)


def _death(index: int, count: int, code: int) -> StoreError:
    cause = f"exit code {code}"
    if code < 0:
        name = signal.Signals(-code).name
        cause += f", {name}" + (": often the system out of memory; try fewer jobs" if name == "SIGKILL" else "")
    return StoreError(
        f"Worker {index + 1} of {count} ended before its work was done ({cause}). What it had finished is in the "
        f"store; run the same command again to go on."
    )


def _end(processes: Sequence[subprocess.Popen[str]]) -> None:
    """End what still runs: first in order, so that whole clips are written, then at once."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with contextlib.suppress(OSError):
            if process.stdin is not None:
                process.stdin.close()
