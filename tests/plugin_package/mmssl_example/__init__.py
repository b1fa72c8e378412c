"""An upstream outside the library, as another package would offer it."""

from __future__ import annotations

import torch
from torch import Tensor

from mmssl.lengths import window_count
from mmssl.types import Inputs, Layers, Representation, StreamSpec, UpstreamSpec
from mmssl.upstreams.base import Upstream


class WindowEnergy(Upstream):
    """Mean square and peak of windows of 25 ms every 10 ms."""

    def __init__(self, window: int = 400, hop: int = 160) -> None:
        super().__init__()
        self.window, self.hop = window, hop
        self.spec = UpstreamSpec(("waveforms",), {"audio": StreamSpec((2,), (hop,))}, 16000, min_length=window)

    def extract(self, inputs: Inputs) -> Representation:
        assert inputs.waveforms is not None
        windows = inputs.waveforms.data.unfold(1, self.window, self.hop)
        features = torch.stack([windows.square().mean(-1), windows.abs().amax(-1)], -1)
        return {"audio": Layers((features,), (self.output_lengths(inputs.waveforms.lengths),))}

    def output_lengths(self, lengths: Tensor, stream: str = "audio", layer: int = -1) -> Tensor:
        return window_count(lengths, self.window, self.hop)
