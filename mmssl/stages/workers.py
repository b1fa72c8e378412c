"""Independent jobs on several processes, one thread each, that end with the process that started them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from mmssl.errors import StageError

JobType = TypeVar("JobType")


def run_all(
    work: Callable[[JobType], Any], jobs: Sequence[JobType], processes: int, finished: Callable[[int], None]
) -> None:
    """Run `work` on every job.

    Args:
        work: a function of a module; what it returns is dropped.
        jobs: picklable.
        processes: at most so many at a time; 1 works in this process.
        finished: called in this process with the index of each job that is done.

    Raises:
        StageError: a process died.
        Exception: what `work` raises first; jobs that have not begun are dropped, those that run are waited for.
    """
    if min(processes, len(jobs)) <= 1:
        for index, job in enumerate(jobs):
            with _one_thread():
                work(job)
            finished(index)
        return
    # one thread a process is faster than all processes with all threads; read when the children start
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        with ProcessPoolExecutor(
            min(processes, len(jobs)), get_context("spawn"), initializer=_set_up_worker, initargs=(os.getpid(),)
        ) as pool:
            running = {pool.submit(work, job): index for index, job in enumerate(jobs)}
            try:
                for future in as_completed(running):
                    future.result()
                    finished(running[future])
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    except BrokenProcessPool as error:
        raise StageError(
            "A worker process died, most likely for lack of memory. Run the same command again with a smaller --nj; "
            "what was finished is kept."
        ) from error
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


class _one_thread:  # noqa: N801  (reads as a with-statement)
    """Let torch use one thread, so that a job gives the same result in this process as in a worker."""

    def __enter__(self) -> None:
        import torch

        self.before = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *failure: object) -> None:
        import torch

        torch.set_num_threads(self.before)


def _set_up_worker(parent: int) -> None:
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process soon after the one that started it, even if that one was killed."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
