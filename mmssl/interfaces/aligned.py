"""Sound and video on one clock: the layers of two streams in, two sequences of the same frames out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mmssl.errors import ConfigError, InputError
from mmssl.interfaces.joined_frames import CommonClock
from mmssl.types import Layers, Padded, UpstreamSpec


class AlignedStreams(CommonClock):
    """An interface for the audio and one for the video stream, both brought to the slower one's frames.

    Args:
        spec: of the upstream; its streams "audio" and "video" have a time axis.
        interface: of each stream, by name or dotted path.

    Raises:
        ConfigError: the upstream lacks a stream, or a stream has no time axis or layers of several rates.
    """

    streams = ("audio", "video")

    def __init__(self, spec: UpstreamSpec, interface: str = "weighted_sum") -> None:
        for name in self.streams:
            if name not in spec.streams or not spec.sample_rate or not spec.video_fps:
                raise ConfigError(
                    f"Synchrony needs an upstream with the streams audio and video; this one has "
                    f"{', '.join(spec.streams)}."
                )
            hops = spec.streams[name].hop_lengths
            if len(set(hops)) > 1 or not hops[0]:
                raise ConfigError(
                    f"The layers of the stream {name} must have one hop length above 0, got {hops}: choose an "
                    "upstream whose layers share a rate."
                )
        own = {name: spec.streams[name] for name in self.streams}
        super().__init__(replace(spec, streams=own), interface, "slowest")

    def forward(self, streams: Mapping[str, Layers]) -> dict[str, Padded]:
        """Both sequences (B, T, D_s), zero past each length, with the same lengths.

        Raises:
            InputError: a stream is missing, or a clip has no frame of both.
        """
        missing = [name for name in self.streams if name not in streams]
        if missing:
            raise InputError(f"Synchrony needs audio and video; the batch lacks {' and '.join(missing)}.")
        return self.sequences(streams)
