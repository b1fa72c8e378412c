from __future__ import annotations

import torch
from torch import Tensor

from mmssl.nn.equal_lengths import map_equal_lengths
from mmssl.types import Padded


def test_clips_run_in_groups_without_padding_and_come_back_in_order() -> None:
    data = torch.randn(4, 9, 2)
    lengths = torch.tensor([5, 9, 5, 3])
    for row, length in enumerate(lengths.tolist()):
        data[row, length:] = torch.nan
    seen = []

    def run(clips: Tensor) -> list[Tensor]:
        seen.append(tuple(clips.shape[:2]))
        assert bool(clips.isfinite().all())
        return [clips * 2, clips[:, ::2].sum(-1, keepdim=True)]

    layers = map_equal_lengths(Padded(data, lengths), run)
    assert sorted(seen) == [(1, 3), (1, 9), (2, 5)]
    assert [n.tolist() for n in layers.lengths] == [[5, 9, 5, 3], [3, 5, 3, 2]]
    assert all(n.dtype == torch.int64 for n in layers.lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = data[row : row + 1, :length]
        for layer, expected in zip(layers.hidden_states, run(alone), strict=True):
            assert torch.equal(layer[row, : expected.shape[1]], expected[0])
            assert not layer[row, expected.shape[1] :].any()
