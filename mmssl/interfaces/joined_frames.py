"""Frames of several streams on one clock, side by side: for tasks that follow the course of a clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

import torch
from torch import Tensor, nn

from mmssl.data.streams import cleared
from mmssl.errors import ConfigError, InputError
from mmssl.interfaces.base import Interface, build_interface
from mmssl.interfaces.joining import RATES, resample_frames
from mmssl.lengths import zero_padding
from mmssl.types import Layers, Padded, StreamSpec, UpstreamSpec


class CommonClock(nn.Module):
    """An interface for each stream; their sequences are brought to one clock.

    Frame j stands for the time [j, j + 1) times the common frame shift. A slower stream is repeated, a faster one
    averaged (`mmssl.interfaces.joining`). Tokens that share a time step are averaged first. A clip gets as many frames
    as all its streams cover. Of layers of several rates those with the rate of the last are used; a stream of tokens
    without a time axis is left out.

    Args:
        spec: of the streams to join, which every clip has, and of the rates that their hops count in.
        interface: of each stream, by name or dotted path.
        rate: "fastest" or "slowest" of the streams.

    Attributes:
        kept: stream -> numbers of the layers that are used.
        sizes: stream -> width of its sequence.
        tokens_per_frame: stream -> tokens that share a time step.
        hops, hop: of each stream and of the common clock, in a common unit of time.
        frame_shift: seconds between two frames.

    Raises:
        ConfigError: no stream has a time axis, or there is no such rate.
    """

    def __init__(self, spec: UpstreamSpec, interface: str = "weighted_sum", rate: str = "fastest") -> None:
        super().__init__()
        if rate not in RATES:
            raise ConfigError(f"rate is {' or '.join(map(repr, RATES))}, got {rate!r}.")
        timed = {name: stream for name, stream in spec.streams.items() if stream.hop_lengths[-1]}
        if not timed:
            raise ConfigError(f"None of the streams {', '.join(spec.streams)} has a time axis: there are no frames.")
        hops = {name: stream.hop_lengths[-1] / _rate(spec, name) for name, stream in timed.items()}
        common = max(hops.values()) if rate == "slowest" else min(hops.values())
        # whole numbers of a common unit of time
        unit = Fraction(1, 1)
        for hop in hops.values():
            unit = Fraction(1, unit.denominator * hop.denominator)
        self.hops = {name: int(hop / unit) for name, hop in hops.items()}
        self.hop, self.frame_shift = int(common / unit), float(common)
        self.kept = {name: of_last_rate(stream) for name, stream in timed.items()}
        interfaces: dict[str, Interface] = {
            name: build_interface(interface, chosen_spec(stream, self.kept[name])) for name, stream in timed.items()
        }
        self.tokens_per_frame = {name: stream.tokens_per_frame for name, stream in timed.items()}
        self.interfaces = nn.ModuleDict(interfaces)
        self.sizes = {name: part.output_size for name, part in interfaces.items()}

    def sequences(self, streams: Mapping[str, Layers]) -> dict[str, Padded]:
        """Stream -> (B, T, D_s), zero past each length, with the same lengths.

        Args:
            streams: of B clips, each with every stream.

        Raises:
            InputError: a stream is missing, or a clip has no frame of one.
        """
        missing = [name for name in self.interfaces if name not in streams]
        if missing:
            raise InputError(f"The batch lacks the stream {', '.join(missing)}; it has {', '.join(streams) or 'none'}.")
        frames = {name: self._frames(name, streams[name]) for name in self.interfaces}
        spans = [-(-found.lengths * self.hops[name] // self.hop) for name, found in frames.items()]
        lengths = torch.stack(spans).amin(0)
        if int(lengths.min()) < 1:
            raise InputError(f"A clip has no frame of some stream (frames of all: {lengths.tolist()}): leave it out.")
        size = int(lengths.max())
        found = {}
        for name, own in frames.items():
            same = self.hops[name] == self.hop
            data = own.data[:, :size] if same else resample_frames(own, self.hops[name], self.hop, size)
            found[name] = Padded(zero_padding(data, lengths), lengths)
        return found

    def _frames(self, name: str, layers: Layers) -> Padded:
        found = self.interfaces[name](cleared(chosen_layers(layers, self.kept[name])))
        data, tokens = zero_padding(found.data, found.lengths), self.tokens_per_frame[name]
        if tokens == 1:
            return Padded(data, found.lengths)
        whole = data[:, : data.shape[1] // tokens * tokens]
        return Padded(whole.unflatten(1, (-1, tokens)).mean(2), found.lengths // tokens)


class JoinedFrames(CommonClock):
    """The sequences of all streams on one clock, side by side.

    Args:
        spec, interface, rate: as `CommonClock`.

    Attributes:
        output_size: width of a frame, all streams together.
    """

    def __init__(self, spec: UpstreamSpec, interface: str = "weighted_sum", rate: str = "fastest") -> None:
        super().__init__(spec, interface, rate)
        self.output_size = sum(self.sizes.values())

    def forward(self, streams: Mapping[str, Layers]) -> Padded:
        """(B, T, output_size), zero past each length; see `sequences`."""
        found = list(self.sequences(streams).values())
        return Padded(torch.cat([own.data for own in found], -1), found[0].lengths)

    def layer_weights(self) -> dict[str, Tensor]:
        """Stream -> (L,) weights of its layers, of the interfaces that have any."""
        found = {name: part.layer_weights() for name, part in self.interfaces.items()}  # type: ignore[operator]
        return {name: weights for name, weights in found.items() if weights is not None}


def of_last_rate(stream: StreamSpec) -> list[int]:
    """Numbers of the layers that have the frames of the last one."""
    return [k for k, hop in enumerate(stream.hop_lengths) if hop == stream.hop_lengths[-1]]


def chosen_spec(stream: StreamSpec, kept: Sequence[int]) -> StreamSpec:
    """A stream of some of its layers."""
    sizes, hops = (tuple(values[k] for k in kept) for values in (stream.hidden_sizes, stream.hop_lengths))
    return StreamSpec(sizes, hops, stream.tokens_per_frame)


def chosen_layers(layers: Layers, kept: Sequence[int]) -> Layers:
    """Some of the layers."""
    return Layers(tuple(layers.hidden_states[k] for k in kept), tuple(layers.lengths[k] for k in kept))


def _rate(spec: UpstreamSpec, name: str) -> Fraction:
    """What a stream's hops count in a second: video frames or samples."""
    if name != "video" and spec.sample_rate:
        return Fraction(spec.sample_rate)
    return Fraction(spec.video_fps or 1).limit_denominator(1001)
