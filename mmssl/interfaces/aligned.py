"""Sound and video on one clock: the layers of two streams in, two sequences of the same frames out."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from torch import nn

from mmssl.data.streams import cleared
from mmssl.errors import ConfigError, InputError
from mmssl.interfaces.base import build_interface
from mmssl.interfaces.joining import resample_frames
from mmssl.lengths import zero_padding
from mmssl.types import Layers, Padded, UpstreamSpec


class AlignedStreams(nn.Module):
    """An interface for the audio and one for the video stream, both brought to the slower one's frames.

    Frame j of both stands for the time [j, j + 1) times the slower stream's frame shift; the faster stream is averaged
    over it, each frame weighted by its overlap. Tokens that share a time step (patches) are averaged first. A clip gets
    as many frames as both streams have.

    Args:
        spec: of the upstream; its streams "audio" and "video" have a time axis.
        interface: of each stream, by name or dotted path.

    Attributes:
        sizes: stream -> width of its sequence.
        frame_shift: seconds between two frames.

    Raises:
        ConfigError: the upstream lacks a stream, or a stream has no time axis or layers of several rates.
    """

    streams = ("audio", "video")

    def __init__(self, spec: UpstreamSpec, interface: str = "weighted_sum") -> None:
        super().__init__()
        hops: dict[str, Fraction] = {}
        self.tokens_per_frame: dict[str, int] = {}
        for name in self.streams:
            if name not in spec.streams or not spec.sample_rate or not spec.video_fps:
                raise ConfigError(
                    f"Synchrony needs an upstream with the streams audio and video; this one has "
                    f"{', '.join(spec.streams)}."
                )
            stream = spec.streams[name]
            if len(set(stream.hop_lengths)) > 1 or not stream.hop_lengths[0]:
                raise ConfigError(
                    f"The layers of the stream {name} must have one hop length above 0, got {stream.hop_lengths}: "
                    "choose an upstream whose layers share a rate."
                )
            rate = Fraction(spec.sample_rate) if name == "audio" else Fraction(spec.video_fps).limit_denominator(1001)
            hops[name] = stream.hop_lengths[0] / rate
            self.tokens_per_frame[name] = stream.tokens_per_frame
        # whole numbers of a common unit of time
        unit = Fraction(1, hops["audio"].denominator * hops["video"].denominator)
        self.hops = {name: int(hop / unit) for name, hop in hops.items()}
        self.hop = max(self.hops.values())
        self.frame_shift = float(max(hops.values()))
        self.interfaces = nn.ModuleDict({name: build_interface(interface, spec.streams[name]) for name in self.streams})
        self.sizes = {name: int(part.output_size) for name, part in self.interfaces.items()}  # type: ignore[arg-type]

    def forward(self, streams: Mapping[str, Layers]) -> dict[str, Padded]:
        """Both sequences (B, T, D_s), zero past each length, with the same lengths.

        Raises:
            InputError: a stream is missing, or a clip has no frame of both.
        """
        missing = [name for name in self.streams if name not in streams]
        if missing:
            raise InputError(f"Synchrony needs audio and video; the batch lacks {' and '.join(missing)}.")
        frames = {name: self._frames(name, streams[name]) for name in self.streams}
        slow = max(self.streams, key=lambda name: self.hops[name])
        spans = {name: -(-frames[name].lengths * self.hops[name] // self.hop) for name in self.streams}
        lengths = spans["audio"].minimum(spans["video"])
        if int(lengths.min()) < 1:
            raise InputError(
                f"A clip has no frame in audio or video (frames in both: {lengths.tolist()}): leave it out."
            )
        size = int(lengths.max())
        aligned = {}
        for name, found in frames.items():
            same = name == slow or self.hops[name] == self.hop
            data = found.data[:, :size] if same else resample_frames(found, self.hops[name], self.hop, size)
            aligned[name] = Padded(zero_padding(data, lengths), lengths)
        return aligned

    def _frames(self, name: str, layers: Layers) -> Padded:
        found = self.interfaces[name](cleared(layers))
        tokens = self.tokens_per_frame[name]
        data = zero_padding(found.data, found.lengths)
        if tokens == 1:
            return Padded(data, found.lengths)
        whole = data[:, : data.shape[1] // tokens * tokens]
        return Padded(whole.unflatten(1, (-1, tokens)).mean(2), found.lengths // tokens)
