"""One process of an extraction with several jobs: `python -m mmssl.features.worker`, started by `mmssl.features.jobs`.

Its task comes as one line of JSON on standard input, which stays open as long as the parent lives; events leave as
lines of JSON on what was standard output. Plain values only, so that nothing is pickled and the parent's main module
is not run again.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from typing import Any


def main() -> int:
    """Run the task that standard input holds; exit code 0 also where an error was reported as an event."""
    events = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    # what an upstream prints must not end up between the events
    os.dup2(2, 1)
    task = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    def report(event: dict[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")

    from mmssl.errors import MmsslError

    try:
        _run(task, report)
    except MmsslError as error:
        report({"event": "error", "type": type(error).__name__, "message": str(error)})
        return 0
    except KeyboardInterrupt:
        return 130
    report({"event": "finished"})
    return 0


def _run(task: dict[str, Any], report: Any) -> None:
    import torch

    from mmssl.features.engine import run_buckets
    from mmssl.features.fingerprint import make_fingerprint
    from mmssl.features.long_audio import Chunks
    from mmssl.features.media import Feed
    from mmssl.features.memory import keep_freed_memory
    from mmssl.features.plan import item_from_record
    from mmssl.features.precision import with_precision
    from mmssl.features.store import FeatureStore
    from mmssl.upstreams.base import load_upstream

    torch.set_num_threads(task["threads"])
    keep_freed_memory()
    upstream = load_upstream(task["upstream"], seed=task["seed"], device=task["device"], **task["kwargs"])
    # refuses a worker whose weights are not those of the parent
    store = FeatureStore.create(task["folder"], make_fingerprint(upstream, kwargs=task["kwargs"], **task["outputs"]))
    upstream = with_precision(upstream, task["precision"], task["int8"])
    chunks = None if task["chunks"] is None else Chunks(**task["chunks"])
    feed = None if task["feed"] is None else Feed(tuple(task["feed"]["inputs"]), task["feed"]["partial"])
    buckets = [[item_from_record(record) for record in bucket] for bucket in task["buckets"]]
    # a run that was killed a moment ago may still be ending
    with store.writer(task["writer"], max_seconds=task["shard_seconds"], wait=10.0) as writer:
        options = {name: task[name] for name in ("on_error", "num_workers")}
        run_buckets(upstream, buckets, writer, report, chunks=chunks, feed=feed, **options)


def _end_with_parent() -> None:
    """The parent's end of the pipe closes when it dies, even by kill -9; a job must not go on alone then."""
    while sys.stdin.read(4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
