"""PASE+: band-pass filters, seven strided convolutions and a quasi-recurrent layer, with skips from every block.

Source: Ravanelli et al. 2020, "Multi-task self-supervised learning for Robust Speech Recognition", section 2.2; the
authors' code, whose encoder file is `FE_e199.ckpt`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.errors import CheckpointError, ConfigError
from mmssl.lengths import conv_length, hop_length
from mmssl.nn.recurrent import QRNN
from mmssl.nn.sinc import SincConv
from mmssl.upstreams.checkpoints import read_checkpoint
from mmssl.upstreams.clipwise import ClipwiseUpstream
from mmssl.upstreams.renaming import load_renamed, settled, weights

KERNELS = (251, 20, 11, 11, 11, 11, 11, 11)
STRIDES = (1, 10, 2, 1, 2, 1, 2, 2)
CHANNELS = (64, 64, 128, 128, 256, 256, 512, 512)
_RULES = (
    (r"blocks\.0\.conv\.(low_hz|band_hz)_", r"blocks.0.conv.\1"),
    (r"denseskips\.(\d+)\.weight", r"skips.\1.weight"),
    (r"rnn\.layers\.0\.(.*)", r"recurrent.\1"),
    (r"W\.(\w+)", r"projection.\1"),
    (r"norm_out\.(\w+)", r"norm.\1"),
)


class PasePlus(ClipwiseUpstream):
    """PASE+ encoder; layers: the last convolution, the recurrent layer, and the embedding (256 wide).

    The embedding adds to the projected recurrent layer the blocks before it, each projected and averaged down to its
    rate. As in the authors' code the factor of each average is the whole number of its steps that fit, which is the
    ratio of the rates for clips that are a multiple of 160 samples and may exceed it for others.

    Args:
        channels: of the eight blocks; None for the paper's.
        recurrent_size: width of the recurrent layer; None for 512.
        embedding_size: None for 256.
        checkpoint: a file of the authors' encoder, bare or under "state_dict", whose sizes then hold; None draws
            weights.

    Raises:
        ConfigError: not eight blocks.
        CheckpointError: the checkpoint cannot be read or does not fit (the variant with a GRU does not).
    """

    def __init__(
        self,
        channels: tuple[int, ...] | list[int] | None = None,
        recurrent_size: int | None = None,
        embedding_size: int | None = None,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        state: dict[str, Any] = {}
        found: dict[str, Any] = {}
        if checkpoint is not None:
            state = weights(read_checkpoint(checkpoint), checkpoint, "state_dict")
            found = _sizes(state, checkpoint)
        given = None if channels is None else tuple(channels)
        widths = settled("channels", given, found.get("channels"), CHANNELS, checkpoint)
        inner = settled("recurrent_size", recurrent_size, found.get("recurrent_size"), 512, checkpoint)
        size = settled("embedding_size", embedding_size, found.get("embedding_size"), 256, checkpoint)
        if len(widths) != len(KERNELS):
            raise ConfigError(f"PASE+ has {len(KERNELS)} blocks, got channels for {len(widths)}.")
        self.blocks = nn.ModuleList(
            _Block(SincConv(c, k) if not n else nn.Conv1d(widths[n - 1], c, k, s), c, _reflected(k, s))
            for n, (c, k, s) in enumerate(zip(widths, KERNELS, STRIDES, strict=True))
        )
        self.skips = nn.ModuleList(nn.Conv1d(c, size, 1, bias=False) for c in widths[:-1])
        self.recurrent = QRNN(widths[-1], inner)
        self.projection = nn.Conv1d(inner, size, 1)
        self.norm = nn.BatchNorm1d(size, affine=False)
        self.declare((widths[-1], inner, size), hop_length(list(zip(KERNELS, STRIDES, strict=True))), _min_length())
        if checkpoint is not None:
            load_renamed(self, state, _RULES, source=checkpoint)

    def output_lengths(self, lengths: Tensor, stream: str = "audio", layer: int = -1) -> Tensor:
        """Frames (B,) of clips of `lengths` (B,) samples; all layers have the same."""
        for kernel, stride in zip(KERNELS, STRIDES, strict=True):
            lengths = conv_length(lengths + sum(_reflected(kernel, stride)), kernel, stride)
        return lengths

    def encode(self, waveforms: Tensor) -> list[Tensor]:
        """(B, T) without padding -> last convolution, recurrent layer, embedding, each (B, T', D)."""
        x, skips = waveforms.to(self.dtype)[:, None], []
        for block, skip in zip(self.blocks, [*self.skips, None], strict=True):
            x = block(x)
            if skip is not None:
                skips.append(skip(x))
        convolved = x.transpose(1, 2)
        recurrent = self.recurrent(convolved)
        embedding = self.projection(recurrent.transpose(1, 2))
        frames = embedding.shape[2]
        for skip in skips:
            factor = skip.shape[2] // frames
            embedding = embedding + skip[:, :, : frames * factor].unflatten(2, (frames, factor)).mean(dim=3)
        return [convolved, recurrent, self.norm(embedding).transpose(1, 2)]


class _Block(nn.Module):
    """Reflect the ends, convolve, batch norm, PReLU."""

    def __init__(self, conv: nn.Module, channels: int, reflected: tuple[int, int]) -> None:
        super().__init__()
        self.conv, self.reflected = conv, reflected
        self.norm = nn.BatchNorm1d(channels)
        self.act = nn.PReLU(channels, init=0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) without padding -> (B, C', T')."""
        return self.act(self.norm(self.conv(F.pad(x, self.reflected, mode="reflect"))))


def _reflected(kernel: int, stride: int) -> tuple[int, int]:
    """Steps reflected before and after a block's input."""
    half = kernel // 2
    return (half - 1, half) if stride > 1 or kernel % 2 == 0 else (half, half)


def _min_length() -> int:
    """The shortest clip in which every block finds enough to reflect."""
    needed = 1
    for kernel, stride in reversed(list(zip(KERNELS, STRIDES, strict=True))):
        before, after = _reflected(kernel, stride)
        needed = max((needed - 1) * stride + kernel - before - after, max(before, after) + 1)
    return needed


def _sizes(state: dict[str, Any], source: str) -> dict[str, Any]:
    convs = [state.get(f"blocks.{n}.norm.weight") for n in range(len(KERNELS))]
    projection, linear = state.get("W.weight"), state.get("rnn.layers.0.linear.weight")
    if projection is None or linear is None or any(conv is None for conv in convs):
        raise CheckpointError(
            f"{source} is no PASE+ encoder with a QRNN (blocks.0-7.norm, rnn.layers.0.linear, W); it has "
            f"{', '.join(list(state)[:4])} ..."
        )
    return {
        "channels": tuple(len(conv) for conv in convs if conv is not None),
        "recurrent_size": linear.shape[0] // 3,
        "embedding_size": projection.shape[0],
    }
