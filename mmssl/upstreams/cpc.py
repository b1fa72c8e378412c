"""Contrastive predictive coding: strided convolutions to 100 frames a second, then causal recurrent levels.

Source: van den Oord et al. 2018, "Representation Learning with Contrastive Predictive Coding", as modified by Rivière
et al. 2020, "Unsupervised Pretraining Transfers Well Across Languages" (norm over channels, 256 channels, LSTM).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.errors import CheckpointError
from mmssl.lengths import conv_length, shortest_input
from mmssl.nn.recurrent import CELLS, GATES, Cell, RecurrentStack
from mmssl.upstreams.checkpoints import read_checkpoint
from mmssl.upstreams.clipwise import ClipwiseUpstream
from mmssl.upstreams.renaming import count, load_renamed, settled, weights

# kernel, stride, zeros on either side
CONVS = ((10, 5, 3), (8, 4, 2), (4, 2, 1), (4, 2, 1), (4, 2, 1))
HOP = 160
_RULES = (
    (r"(?:gEncoder\.)conv(\d+)\.(weight|bias)", r"convs.\1.\2"),
    (r"(?:gEncoder\.)batchNorm(\d+)\.(weight|bias)", r"norms.\1.\2"),
    (r"(?:gAR\.)baseNet\.(weight|bias)_(ih|hh)_l(\d+)", r"context.levels.\3.\1_\2_l0"),
)


class ChannelNorm(nn.Module):
    """Bring each frame of (B, C, T) to mean 0 and sample variance 1 over its channels, then scale and shift them."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        variance, mean = torch.var_mean(x, dim=1, keepdim=True)
        return (x - mean) * torch.rsqrt(variance + self.eps) * self.weight[:, None] + self.bias[:, None]


class CPC(ClipwiseUpstream):
    """CPC encoder and context network; layers: the latents z, then the context of each recurrent level.

    The recurrent levels are causal; the convolutions look 5 to 15 ms ahead (their receptive field is 465 samples).

    Args:
        hidden_size: channels of the convolutions; None for 256.
        context_size: width of the recurrent levels; None for 256.
        num_context_layers: recurrent levels; None for 1.
        cell: "lstm", "gru" or "rnn"; None for "lstm".
        checkpoint: a file of the authors' CPC_audio (S3PRL's `modified_cpc`), whose sizes then hold; None draws
            weights.

    Raises:
        CheckpointError: the checkpoint cannot be read, does not fit, or has another encoder or context network.
    """

    def __init__(
        self,
        hidden_size: int | None = None,
        context_size: int | None = None,
        num_context_layers: int | None = None,
        cell: Cell | None = None,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        state: dict[str, Any] = {}
        found: dict[str, Any] = {}
        if checkpoint is not None:
            state = weights(read_checkpoint(checkpoint), checkpoint, "weights")
            found = _sizes(state, checkpoint)
        hidden_size = settled("hidden_size", hidden_size, found.get("hidden_size"), 256, checkpoint)
        context_size = settled("context_size", context_size, found.get("context_size"), 256, checkpoint)
        levels = settled("num_context_layers", num_context_layers, found.get("num_context_layers"), 1, checkpoint)
        kind: Cell = settled("cell", cell, found.get("cell"), "lstm", checkpoint)
        channels = (1, *(hidden_size,) * len(CONVS))
        self.convs = nn.ModuleList(
            nn.Conv1d(i, hidden_size, kernel, stride, padding)
            for i, (kernel, stride, padding) in zip(channels, CONVS, strict=False)
        )
        self.norms = nn.ModuleList(ChannelNorm(hidden_size) for _ in CONVS)
        self.context = RecurrentStack(hidden_size, context_size, levels, kind)
        min_length = shortest_input([(kernel, stride, 2 * padding) for kernel, stride, padding in CONVS])
        self.declare((hidden_size, *(context_size,) * levels), HOP, min_length)
        if checkpoint is not None:
            load_renamed(self, state, _RULES, source=checkpoint, ignore=r"(?!gEncoder|gAR).*")

    def output_lengths(self, lengths: Tensor, stream: str = "audio", layer: int = -1) -> Tensor:
        """Frames (B,) of clips of `lengths` (B,) samples; all layers have the same."""
        for kernel, stride, padding in CONVS:
            lengths = conv_length(lengths, kernel, stride, padding)
        return lengths

    def encode(self, waveforms: Tensor) -> list[Tensor]:
        """(B, T) without padding -> latents (B, T', C), then contexts (B, T', D)."""
        x = waveforms.to(self.dtype)[:, None]
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        latents = x.transpose(1, 2)
        return [latents, *self.context(latents)]


def _sizes(state: dict[str, Any], source: str) -> dict[str, Any]:
    first, recurrent = state.get("gEncoder.conv0.weight"), state.get("gAR.baseNet.weight_hh_l0")
    if first is None or recurrent is None:
        raise CheckpointError(
            f"{source} is no CPC with convolutions and a recurrent context (gEncoder.conv0, gAR.baseNet): it has "
            f"{', '.join(list(state)[:4])} ..."
        )
    rows, width = recurrent.shape
    cell = next((name for name in CELLS if GATES[name] * width == rows), None)
    return {
        "hidden_size": first.shape[0],
        "context_size": width,
        "num_context_layers": count(state, r"gAR\.baseNet\.weight_ih_l(\d+)"),
        "cell": cell,
    }
