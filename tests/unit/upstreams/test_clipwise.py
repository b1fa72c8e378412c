from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmssl.lengths import conv_length, shortest_input
from mmssl.upstreams.clipwise import ClipwiseUpstream

# parameters in millions as in SUPERB's table of upstreams (Yang et al. 2021, table 1), less heads that predict
SUPERB = {
    "pase_plus": (7.83, 0),
    "apc": (4.11, 512 * 80 + 80),
    "tera": (21.33, 0),
    "mockingjay": (85.12, 0),
    "cpc": (1.84, 0),
    "wav2vec1": (32.54, 512 * 512 * 12 + 512),
}


class Whole(ClipwiseUpstream):
    """Each frame is the clip's mean: anything past a clip's end would show."""

    def __init__(self) -> None:
        super().__init__()
        self.declare((2, 1), 10, 10)
        self.batches: list[tuple[int, ...]] = []

    def output_lengths(self, lengths: Tensor, stream: str = "audio", layer: int = -1) -> Tensor:
        return lengths // 10

    def encode(self, waveforms: Tensor) -> list[Tensor]:
        self.batches.append(tuple(waveforms.shape))
        means = waveforms.mean(1)[:, None, None].expand(-1, waveforms.shape[1] // 10, -1)
        return [torch.cat([means, 2 * means], dim=2), 3 * means]


def test_clips_of_one_length_run_together_and_come_back_in_order() -> None:
    upstream = Whole()
    waveforms = torch.arange(1.0, 6.0)[:, None].expand(-1, 40).clone()
    layers = upstream(waveforms, torch.tensor([40, 25, 40, 10, 25]))["audio"]
    assert upstream.batches == [(1, 10), (2, 25), (2, 40)]
    assert layers.hidden_states[0].shape == (5, 4, 2)
    assert layers.hidden_states[1][:, 0, 0].tolist() == [3.0, 6.0, 9.0, 12.0, 15.0]
    assert layers.lengths[0].tolist() == [4, 2, 4, 1, 2]
    assert not layers.hidden_states[0][3, 1:].any()


def test_equal_lengths_take_one_pass() -> None:
    upstream = Whole()
    upstream(torch.ones(3, 50), torch.tensor([30, 30, 30]))
    assert upstream.batches == [(3, 30)]


@pytest.mark.parametrize("name", SUPERB)
def test_parameters_are_as_many_as_published(name: str) -> None:
    from mmssl.registry import UPSTREAMS

    with torch.device("meta"):
        upstream = UPSTREAMS.resolve(name)()
    published, head = SUPERB[name]
    assert round((sum(p.numel() for p in upstream.parameters()) + head) / 1e6, 2) == published


@pytest.mark.parametrize("layers", [[(10, 5, 6), (8, 4, 4), (4, 2, 2)], [(3, 1, 0)], [(7, 3, 2), (5, 5, 0)]])
@pytest.mark.parametrize("outputs", [1, 2, 8])
def test_the_shortest_input_is_the_shortest(layers: list[tuple[int, int, int]], outputs: int) -> None:
    def frames(length: int) -> int:
        for kernel, stride, padding in layers:
            length = conv_length(length + padding, kernel, stride)
        return length

    shortest = shortest_input(layers, outputs)
    assert frames(shortest) >= outputs
    assert shortest == 1 or frames(shortest - 1) < outputs
