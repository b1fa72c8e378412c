"""Batches of stored features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmssl.errors import InputError
from mmssl.lengths import pad
from mmssl.types import Layers

if TYPE_CHECKING:
    from torch import Tensor


def collate_layers(items: Sequence[Layers]) -> Layers:
    """Put the layers of single clips into one batch.

    Args:
        items: B clips. Each has, for layer k, `hidden_states[k]` of shape (T_k, D_k) and `lengths[k]`, a 0-dim int64
            tensor with the number of valid frames, at most T_k. Layers may differ in width and rate, clips in length.

    Returns:
        Layers whose hidden states are (B, max T_k, D_k), zero past each clip's length, with lengths (B,) int64.

    Raises:
        InputError: there is no clip, or the clips differ in number or width of layers, or a shape or length is wrong.
    """
    if not items:
        raise InputError("There is no clip to put into a batch. Give at least one.")
    sizes = items[0].hidden_sizes
    hidden_states, lengths = [], []
    for item in items:
        if item.hidden_sizes != sizes:
            raise InputError(
                f"Clips of one batch must have the same layers: one has widths {sizes}, another {item.hidden_sizes}. "
                f"Do not mix features of different upstreams."
            )
    for layer in range(len(sizes)):
        data, counts = pad([_valid_frames(item, layer) for item in items])
        hidden_states.append(data)
        lengths.append(counts)
    return Layers(tuple(hidden_states), tuple(lengths))


def _valid_frames(item: Layers, layer: int) -> Tensor:
    hidden, length = item.hidden_states[layer], item.lengths[layer]
    if hidden.dim() != 2 or length.dim() != 0:
        raise InputError(
            f"Layer {layer} of a clip must be (T, D) with a 0-dim length, "
            f"got {tuple(hidden.shape)} with a length of shape {tuple(length.shape)}."
        )
    count = int(length)
    if not 0 <= count <= len(hidden):
        raise InputError(f"Layer {layer} of a clip has {len(hidden)} frames but states a length of {count}.")
    return hidden[:count]
