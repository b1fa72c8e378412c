"""One upstream on clips of unequal length, without or with padding, as memory allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmssl.errors import InputError
from mmssl.lengths import pad
from mmssl.types import Layers, Representation

if TYPE_CHECKING:
    from mmssl.upstreams.base import Upstream


@torch.no_grad()
def forward_clips(upstream: Upstream, waveforms: Sequence[Tensor]) -> list[Representation]:
    """Representations of single clips, computed together.

    An upstream that has a method `extract_packed` (see `Upstream`) is run through it; else the clips are padded.
    A batch that does not fit into memory is halved until it does.
    """
    device = upstream.device
    try:
        packed = getattr(upstream, "extract_packed", None)
        if callable(packed):
            found = list(packed([_to(w, device) for w in waveforms]))
            if len(found) != len(waveforms):
                raise InputError(f"extract_packed gave {len(found)} clips for {len(waveforms)}.")
            return found
        data, lengths = pad(waveforms)
        return split_clips(upstream(_to(data, device), lengths.to(device)), len(waveforms))
    except torch.OutOfMemoryError:
        if len(waveforms) == 1:
            raise
    half = len(waveforms) // 2
    return forward_clips(upstream, waveforms[:half]) + forward_clips(upstream, waveforms[half:])


def split_clips(representation: Representation, count: int) -> list[Representation]:
    """A batch of `count` clips -> one representation per clip, layers (T_k, D_k) of its own length."""
    lengths = {stream: [n.tolist() for n in layers.lengths] for stream, layers in representation.items()}
    clips: list[Representation] = []
    for b in range(count):
        single = {}
        for stream, layers in representation.items():
            counts = [n[b] for n in lengths[stream]]
            states = tuple(h[b, :n] for h, n in zip(layers.hidden_states, counts, strict=True))
            single[stream] = Layers(states, tuple(torch.tensor(n, dtype=torch.int64) for n in counts))
        clips.append(single)
    return clips


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
