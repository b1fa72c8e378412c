from __future__ import annotations

import pytest
import torch

from mmssl.data.collate import collate_layers
from mmssl.errors import InputError
from mmssl.types import Layers


def clip(*shapes: tuple[int, int], value: float = 1.0) -> Layers:
    return Layers(
        tuple(torch.full(shape, value) for shape in shapes),
        tuple(torch.tensor(t, dtype=torch.int64) for t, _ in shapes),
    )


def test_layers_of_unequal_rate_and_width_are_padded_with_zeros() -> None:
    batch = collate_layers([clip((5, 3), (2, 4), value=1.0), clip((2, 3), (3, 4), value=2.0)])
    assert [tuple(h.shape) for h in batch.hidden_states] == [(2, 5, 3), (2, 3, 4)]
    assert [n.tolist() for n in batch.lengths] == [[5, 2], [2, 3]]
    assert all(n.dtype == torch.int64 for n in batch.lengths)
    assert batch.hidden_states[0][0].eq(1).all()
    assert batch.hidden_states[0][1, :2].eq(2).all()
    assert batch.hidden_states[0][1, 2:].eq(0).all()
    assert batch.hidden_states[1][0, 2:].eq(0).all()


def test_frames_past_the_stated_length_do_not_enter() -> None:
    item = Layers((torch.full((4, 2), torch.nan),), (torch.tensor(0),))
    batch = collate_layers([item, clip((3, 2))])
    assert batch.lengths[0].tolist() == [0, 3]
    assert not batch.hidden_states[0].isnan().any()


def test_one_clip_keeps_type() -> None:
    item = Layers((torch.ones(3, 2, dtype=torch.float16),), (torch.tensor(3),))
    assert collate_layers([item]).hidden_states[0].dtype == torch.float16


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "no clip"),
        ([clip((2, 3)), clip((2, 4))], "same layers"),
        ([clip((2, 3)), clip((2, 3), (2, 3))], "same layers"),
        ([Layers((torch.ones(2, 3),), (torch.tensor(3),))], "states a length of 3"),
        ([Layers((torch.ones(1, 2, 3),), (torch.tensor([2]),))], "0-dim length"),
    ],
)
def test_bad_items(items: list[Layers], message: str) -> None:
    with pytest.raises(InputError, match=message):
        collate_layers(items)
