"""Random numbers that leave the global generators alone."""

from __future__ import annotations

import contextlib
import random as python_random
from collections.abc import Iterator


def mix(*numbers: int) -> int:
    """One seed in [0, 2**63) of several numbers, so that neighbouring seeds, epochs and clips draw unlike numbers."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 1_000_003 + number + 1) * 6364136223846793005 + 1442695040888963407
        mixed = (mixed ^ (mixed >> 31)) % 2**63
    return mixed


@contextlib.contextmanager
def isolated_rng(seed: int | None = None) -> Iterator[None]:
    """Run a block whose use of Python's, numpy's and torch's generators cannot be seen from outside.

    Args:
        seed: seeds all three inside the block, so that what is drawn there depends on the seed alone;
            None keeps the current states.
    """
    import numpy
    import torch

    python_state, numpy_state = python_random.getstate(), numpy.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices):
            if seed is not None:
                python_random.seed(seed)
                numpy.random.seed(seed % 2**32)
                # torch.manual_seed would also reseed accelerators that fork_rng does not cover here
                torch.default_generator.manual_seed(seed)
                for index in devices:
                    with torch.cuda.device(index):
                        torch.cuda.manual_seed(seed)
            yield
    finally:
        python_random.setstate(python_state)
        numpy.random.set_state(numpy_state)
