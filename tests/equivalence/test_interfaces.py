from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mmssl.interfaces.hierarchical_conv import HierarchicalConv
from mmssl.interfaces.joining import resample_frames
from mmssl.interfaces.weighted_sum import WeightedSum
from mmssl.random import isolated_rng
from mmssl.types import Layers, Padded


def layers_of(count: int, width: int, frames: int) -> Layers:
    generator = torch.Generator().manual_seed(3)
    states = tuple(torch.randn(2, frames, width, generator=generator) * 3 + 1 for _ in range(count))
    return Layers(states, (torch.tensor([frames, frames]),) * count)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("states_learn", [False, True])
def test_weighted_sum_equals_the_stacked_formula(normalize: bool, states_learn: bool) -> None:
    layers = layers_of(5, 8, 11)
    weights = torch.tensor([0.3, -1.0, 0.5, 2.0, 0.0])
    results = []
    for streaming in (True, False):
        states = [h.clone().requires_grad_(states_learn) for h in layers.hidden_states]
        if streaming:
            interface = WeightedSum((8,) * 5, (320,) * 5, normalize=normalize)
            parameter = interface.weights
            with torch.no_grad():
                parameter.copy_(weights)
            out = interface(Layers(tuple(states), layers.lengths)).data
        else:
            parameter = weights.clone().requires_grad_()
            stacked = torch.stack(states)
            stacked = F.layer_norm(stacked, (8,)) if normalize else stacked
            out = (parameter.softmax(0)[:, None, None, None] * stacked).sum(0)
        out.square().sum().backward()
        results.append([out.detach(), parameter.grad, *(s.grad for s in states if states_learn)])
    for ours, formula in zip(*results, strict=True):
        torch.testing.assert_close(ours, formula, atol=2e-5, rtol=1e-5)


def test_hierarchical_conv_equals_a_loop_over_frames() -> None:
    with isolated_rng(0):
        interface = HierarchicalConv((8,) * 13, (320,) * 13)
    layers = layers_of(13, 8, 4)
    out = interface(layers)
    first, last = interface.convolutions[0], interface.convolutions[2]
    for clip in range(2):
        for frame in range(4):
            column = torch.stack([h[clip, frame] for h in layers.hidden_states], -1)  # (D, L)
            for conv, positions in ((first, 5), (last, 2)):
                padded = F.pad(column, (2, 2))
                windows = [padded[:, 3 * j : 3 * j + 5] for j in range(positions)]
                column = torch.stack([(conv.weight * w).sum((1, 2)) + conv.bias for w in windows], -1).relu()
            torch.testing.assert_close(out.data[clip, frame], column.flatten(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("hop", "new_hop"), [(160, 320), (160, 400), (320, 160), (400, 160), (320, 480), (7, 5)])
def test_resampling_equals_averaging_sample_by_sample(hop: int, new_hop: int) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([9, 4])
    data = torch.randn(2, 9, 3, generator=generator)
    data[1, 4:] = float("nan")  # padding is never read
    size = 9 * hop // new_hop + 2  # two frames lie past the end of the longer clip
    out = resample_frames(Padded(data, lengths), hop, new_hop, size)
    for clip, length in enumerate(lengths.tolist()):
        samples = data[clip, :length].repeat_interleave(hop, 0)
        for frame in range(size):
            span = samples[frame * new_hop : (frame + 1) * new_hop]
            expected = span.mean(0) if len(span) else data[clip, length - 1]
            torch.testing.assert_close(out[clip, frame], expected, atol=1e-5, rtol=1e-4)
