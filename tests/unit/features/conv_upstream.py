"""A small upstream for tests, loaded by its path: features depend on the whole clip, so padding shows if it leaks."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from mmssl.lengths import conv_length, valid_mask
from mmssl.types import Inputs, Layers, Representation, StreamSpec, UpstreamSpec
from mmssl.upstreams.base import Upstream


class ConvUpstream(Upstream):
    """Three layers; `uneven` gives the last another width and rate.

    Args:
        width: of the layers.
        uneven: make the last layer wider and half as fast.
        scale: of the second layer.
        delay: s to sleep per batch.
        die_if: kill this process in the third batch if this file exists.
        log: file that gets a line per clip computed.
    """

    def __init__(
        self,
        width: int = 8,
        uneven: bool = False,
        scale: float = 1.0,
        delay: float = 0.0,
        die_if: str = "",
        log: str = "",
    ):
        super().__init__()
        last = (2 * width, 320) if uneven else (width, 160)
        self.conv = nn.Conv1d(1, width, 400, 160)
        self.linear = nn.Linear(width, last[0])
        self.uneven, self.scale, self.delay, self.die_if, self.log = uneven, scale, delay, die_if, log
        self._batches = 0
        stream = StreamSpec((width, width, last[0]), (160, 160, last[1]))
        self.spec = UpstreamSpec(("waveforms",), {"audio": stream}, sample_rate=16000, min_length=720)

    def extract(self, inputs: Inputs) -> Representation:
        assert inputs.waveforms is not None
        self._batches += 1
        time.sleep(self.delay)
        if self.die_if and self._batches == 3 and Path(self.die_if).exists():
            os.kill(os.getpid(), signal.SIGKILL)
        data, lengths = inputs.waveforms.data, inputs.waveforms.lengths
        if self.log:
            with Path(self.log).open("a") as file:
                file.write("".join(f"{n}\n" for n in lengths.tolist()))
        n = self.output_lengths(lengths, layer=0)
        first = self.conv(data[:, None]).transpose(1, 2)
        mask = valid_mask(n, first.shape[1])[..., None]
        mean = (first * mask).sum(1, keepdim=True) / n[:, None, None]
        second = torch.tanh(first - mean) * self.scale
        third = self.linear(second)
        if self.uneven:
            third = third[:, : 2 * (third.shape[1] // 2) : 2]
        return {"audio": Layers((first, second, third), (n, n, self.output_lengths(lengths)))}

    def output_lengths(self, lengths: Tensor, stream: str = "audio", layer: int = -1) -> Tensor:
        n = conv_length(lengths, 400, 160)
        return n // 2 if self.uneven and layer in (-1, 2) else n
