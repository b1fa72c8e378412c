"""Clips of one length together: for networks of convolutions and norms that must not meet padding between layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmssl.types import Layers, Padded


def map_equal_lengths(batch: Padded, run: Callable[[Tensor], Sequence[Tensor]]) -> Layers:
    """Run a network on the clips of a batch, those of one length at a time.

    A padded convolution stack is exact only if every layer's output is cleared past each clip's end, since norms and
    biases make the padding non-zero. Without padding there is nothing to clear, and nothing is computed in vain.

    Args:
        batch: (B, T, ...) with lengths.
        run: from clips (b, T', ...) without padding to one (b, T_k, D_k) per layer.

    Returns:
        Layers (B, T_k, D_k), zero past each length.
    """
    sizes = batch.lengths.tolist()
    per_clip: dict[int, list[Tensor]] = {}
    for size in sorted(set(sizes)):
        rows = [row for row, length in enumerate(sizes) if length == size]
        clips = batch.data[rows, :size] if len(rows) < len(sizes) else batch.data[:, :size]
        outputs = run(clips)
        for place, row in enumerate(rows):
            per_clip[row] = [output[place] for output in outputs]
    in_order = [per_clip[row] for row in range(len(sizes))]
    hidden, lengths = [], []
    for clips_of_layer in zip(*in_order, strict=True):
        hidden.append(pad_sequence(list(clips_of_layer), batch_first=True))
        lengths.append(torch.tensor([len(clip) for clip in clips_of_layer], device=batch.data.device))
    return Layers(tuple(hidden), tuple(lengths))
