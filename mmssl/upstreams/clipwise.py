"""Base of waveform encoders that padding would disturb: norms over time, reflected ends, recurrent levels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor

from mmssl.nn.equal_lengths import map_equal_lengths
from mmssl.types import Inputs, Representation, StreamSpec, UpstreamSpec
from mmssl.upstreams.base import Upstream

SAMPLE_RATE = 16000


class ClipwiseUpstream(Upstream):
    """Encoder of waveforms at 16 kHz whose layers share one frame rate, computed without any padding.

    Clips of one length run together, others on their own, so that a subclass never meets a padded clip and everything
    at a clip's ends is as it is when the clip comes alone. In training mode a batch norm therefore sees one group of
    equal lengths at a time: train on crops of one length.

    A subclass calls `declare` in its constructor and implements `encode` and `output_lengths`.
    """

    def declare(self, hidden_sizes: Sequence[int], hop_length: int, min_length: int) -> None:
        """Set the spec: widths of the layers, samples between two frames, samples of the shortest clip."""
        stream = StreamSpec(tuple(hidden_sizes), (hop_length,) * len(hidden_sizes))
        self.spec = UpstreamSpec(("waveforms",), {"audio": stream}, sample_rate=SAMPLE_RATE, min_length=min_length)

    @abstractmethod
    def encode(self, waveforms: Tensor) -> Sequence[Tensor]:
        """Compute the layers of clips of one length.

        Args:
            waveforms: (B, T) in [-1, 1], every sample valid.

        Returns:
            One (B, T', D_k) per layer.
        """

    def extract(self, inputs: Inputs) -> Representation:
        """All layers of a checked batch, under the stream "audio"."""
        assert inputs.waveforms is not None  # `forward` has checked it
        return {"audio": map_equal_lengths(inputs.waveforms, self.encode)}
