from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mmssl.types import Clip


@pytest.fixture(scope="session")
def conv_upstream() -> str:
    """Path of the test upstream, as `load_upstream` takes it."""
    return str(Path(__file__).with_name("conv_upstream.py"))


@pytest.fixture
def make_clips(tmp_path: Path) -> Callable[..., list[Clip]]:
    """make_clips(count, seed=0) -> clips of noise of 0.05 to 0.8 s at 16 kHz, all of different lengths."""

    def make(count: int, seed: int = 0) -> list[Clip]:
        rng = np.random.default_rng(seed)
        lengths = rng.choice(np.arange(800, 12800), size=count, replace=False)
        clips = []
        for i, length in enumerate(lengths):
            path = tmp_path / "wav" / f"{seed}-{i:03d}.wav"
            path.parent.mkdir(exist_ok=True)
            soundfile.write(path, 0.1 * rng.standard_normal(length), 16000, subtype="FLOAT")
            clips.append(Clip(f"clip-{i:03d}", audio=str(path)))
        return clips

    return make
