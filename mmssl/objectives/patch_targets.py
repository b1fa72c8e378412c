"""Targets of masked autoencoders: the values of each patch, brought to mean 0 and deviation 1 within it."""

from __future__ import annotations

import torch
from torch import Tensor

from mmssl.objectives.targets.base import Target
from mmssl.objectives.types import Step

_EPS = 1e-6


class NormalizedPatches(Target):
    """All values of a patch together, (x - mean) / sqrt(variance + 1e-6): MAE's and AudioMAE's "norm pix".

    Args:
        stream: of the encoder.
    """

    reads_student = True

    def __init__(self, stream: str = "image") -> None:
        super().__init__()
        self.stream = stream

    def forward(self, step: Step, view: int) -> Tensor:
        """(B, N, P); see `Target.forward`."""
        values = step.tap(view, self.stream, "patches").detach().float()
        variance, mean = torch.var_mean(values, dim=-1, keepdim=True)
        return (values - mean).div_((variance + _EPS).sqrt())


class NormalizedTubelets(Target):
    """Each channel of a tubelet by itself, (x - mean) / (deviation + 1e-6), as VideoMAE and HiCMAE do.

    Values lie as the encoder's tap has them: video frame, row, column, channel, the channel fastest.

    Args:
        channels: of the video.
        frame_difference: the second video frame of a tubelet is predicted as its difference to the first, both
            normalised: the option `use_frame_diff_as_target`, which HiCMAE's published script turns on.
        stream: of the encoder.
    """

    reads_student = True

    def __init__(self, channels: int = 3, frame_difference: bool = False, stream: str = "video") -> None:
        super().__init__()
        self.channels, self.frame_difference, self.stream = channels, frame_difference, stream

    def forward(self, step: Step, view: int) -> Tensor:
        """(B, N, P); see `Target.forward`."""
        values = step.tap(view, self.stream, "patches").detach().float().unflatten(-1, (-1, self.channels))
        # not var_mean, which is slow where few channels lie side by side
        centred = values - values.mean(-2, keepdim=True)
        variance = centred.square().sum(-2, keepdim=True) / (values.shape[-2] - 1)
        normalized = centred.div_(variance.sqrt() + _EPS)
        if self.frame_difference:
            first, second = normalized.chunk(2, dim=-2)
            normalized = torch.cat([first, second - first], dim=-2)
        return normalized.flatten(-2)


class StreamMean(Target):
    """Mean over the tokens of an inner result of another stream, with its gradient: the other half of a contrast.

    Args:
        name: of the tap.
        stream: whose.
    """

    reads_student = True

    def __init__(self, name: str, stream: str) -> None:
        super().__init__()
        self.name, self.stream = name, stream

    def forward(self, step: Step, view: int) -> Tensor:
        """(B, D); see `Target.forward`."""
        tokens = step.tap(view, self.stream, self.name)
        valid = step.stream(view, self.stream).output.mask
        return tokens.masked_fill(~valid[..., None], 0).sum(1) / valid.sum(1, keepdim=True)
