from __future__ import annotations

import numpy as np
import pytest
import torch

from mmssl.errors import ConfigError, InputError
from mmssl.features.pooled import pool, pool_frames
from mmssl.types import Layers


def batch() -> Layers:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([5, 1, 9])
    states = tuple(torch.randn(3, 9, width, generator=generator) for width in (4, 6))
    for state in states:
        for b, n in enumerate(lengths):
            state[b, n:] = float("nan")
    return Layers(states, (lengths, lengths))


@pytest.mark.parametrize(("stat", "reference"), [("mean", np.mean), ("std", np.std), ("max", np.max)])
def test_pool_equals_numpy_on_valid_frames_only(stat, reference):
    layers = batch()
    pooled = pool(layers, stat)
    for k, width in enumerate((4, 6)):
        assert pooled.hidden_states[k].shape == (3, 1, width)
        assert pooled.lengths[k].tolist() == [1, 1, 1]
        for b, frames in enumerate(layers[k].unpad()):
            expected = reference(frames.double().numpy(), axis=0)
            np.testing.assert_allclose(pooled.hidden_states[k][b, 0], expected, rtol=1e-6, atol=1e-7)


def test_a_large_offset_does_not_cost_accuracy():
    frames = torch.arange(100_000)[:, None] % 2 + 4096.0
    pooled = pool_frames(frames, ("mean", "std"))
    assert pooled["mean"].item() == 4096.5
    assert pooled["std"].item() == 0.5


def test_no_frame_and_unknown_statistic_are_refused():
    with pytest.raises(InputError, match="no frame"):
        pool_frames(torch.zeros(0, 4), ("mean",))
    with pytest.raises(ConfigError, match="'median'"):
        pool_frames(torch.zeros(2, 4), ("median",))
