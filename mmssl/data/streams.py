"""Batches of clips with several streams, of which a clip may lack some.

A clip that lacks a stream has no frame in it: its length there is 0 in every layer. A stream that no clip of a batch
has is not in the batch. Both say the same, and whatever uses them must give the same for both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmssl.data.collate import collate_layers
from mmssl.errors import InputError, did_you_mean
from mmssl.lengths import zero_padding
from mmssl.types import Layers

if TYPE_CHECKING:
    from torch import Tensor


class Streams(Mapping[str, Layers]):
    """All streams of a batch of clips: stream name -> `Layers` of B clips.

    Args:
        layers: of each stream; all of one batch size.

    Raises:
        InputError: there is no stream, or batch sizes differ.
    """

    def __init__(self, layers: Mapping[str, Layers]) -> None:
        sizes = {name: len(found.lengths[0]) for name, found in layers.items()}
        if not sizes or len(set(sizes.values())) > 1:
            raise InputError(
                f"The streams of a batch must be of the same clips, and there must be one; got numbers of clips "
                f"{sizes}. A clip that lacks a stream has the length 0 there."
            )
        self._layers = dict(layers)

    def __getitem__(self, stream: str) -> Layers:
        return self._layers[stream]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    @property
    def num_clips(self) -> int:
        """B."""
        return len(next(iter(self._layers.values())).lengths[0])

    def to(self, *args: Any, **kwargs: Any) -> Streams:
        """Move or cast all streams."""
        return Streams({name: layers.to(*args, **kwargs) for name, layers in self._layers.items()})


def present(layers: Layers) -> Tensor:
    """(B,) bool: which clips have this stream, that is a frame in every layer."""
    import torch

    return torch.stack(layers.lengths).amin(0) > 0


def cleared(layers: Layers) -> Layers:
    """The same layers with zeros past each length, so that not even NaN there reaches a value or a gradient."""
    clean = tuple(zero_padding(h, n) for h, n in zip(layers.hidden_states, layers.lengths, strict=True))
    return Layers(clean, layers.lengths)


def select_streams(streams: Mapping[str, Layers], names: Iterable[str]) -> Streams:
    """Some streams of a batch, as if the others had never been given.

    Raises:
        InputError: the batch does not have a stream, or none is asked for.
    """
    wanted = list(names)
    for name in wanted:
        if name not in streams:
            raise InputError(
                f"The batch has no stream {name!r}, it has {', '.join(streams)}.{did_you_mean(name, streams)}"
            )
    return Streams({name: streams[name] for name in wanted})


def collate_streams(items: Sequence[Mapping[str, Layers]]) -> Streams:
    """Put single clips into one batch.

    Args:
        items: B clips: stream -> layers of one clip, (T_k, D_k) with 0-dim lengths. A clip may lack streams that others
            have.

    Returns:
        The streams that a clip has, in the order of their first occurrence.

    Raises:
        InputError: there is no clip, a clip has no stream, or the clips' layers do not fit each other.
    """
    if not items or not all(items):
        raise InputError("A batch needs at least one clip, and each clip at least one stream.")
    names = list(dict.fromkeys(name for item in items for name in item))
    batch = {}
    for name in names:
        example = next(item[name] for item in items if name in item)
        batch[name] = collate_layers([item[name] if name in item else _empty(example) for item in items])
    return Streams(batch)


def _empty(example: Layers) -> Layers:
    """A clip without a frame, with layers of the widths of another."""
    return Layers(
        tuple(h[:0] for h in example.hidden_states),
        tuple(n.new_zeros(()) for n in example.lengths),
    )
