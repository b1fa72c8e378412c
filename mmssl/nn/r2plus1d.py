"""R(2+1)D video networks: every convolution over space and time is one over space, then one over time."""

from __future__ import annotations

from torch import Tensor, nn

from mmssl.nn.conv_tower import ConvTower, Pooling
from mmssl.nn.resnet2d import init_convs, stage_widths


class R2Plus1DBlock(nn.Module):
    """Two (2+1)-dimensional convolutions and a shortcut (Tran et al. 2018, "A Closer Look at Spatiotemporal ...").

    Parameters are called as in torchvision's video networks.

    Args:
        inputs, outputs: channels.
        stride: of the first convolution, in space and time.
        middle: channels between space and time; None gives both convolutions as many as a full 3-D convolution would
            need to have as many parameters (the paper's section 3.5, rounded down).
        norm_after_sum: batch norm of the sum with the shortcut, which then has none itself (AVID and CrissCross).
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int = 1, middle: int | None = None, norm_after_sum: bool = False
    ) -> None:
        super().__init__()
        if middle is None:
            middle = inputs * outputs * 27 // (inputs * 9 + 3 * outputs)
        self.norm_after_sum = norm_after_sum
        self.conv1 = nn.Sequential(_conv(inputs, middle, outputs, stride), nn.BatchNorm3d(outputs), nn.ReLU())
        self.conv2 = nn.Sequential(_conv(outputs, middle, outputs, 1), nn.BatchNorm3d(outputs))
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            shortcut: list[nn.Module] = [nn.Conv3d(inputs, outputs, 1, stride, bias=False)]
            if not norm_after_sum:
                shortcut.append(nn.BatchNorm3d(outputs))
            self.downsample = nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, C', T', H', W')."""
        shortcut = x if self.downsample is None else self.downsample(x)
        conv, norm = self.conv2
        out = conv(self.conv1(x))
        return (norm(out + shortcut) if self.norm_after_sum else norm(out) + shortcut).relu()


def _conv(inputs: int, middle: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(inputs, middle, (1, 3, 3), (1, stride, stride), padding=(0, 1, 1), bias=False),
        nn.BatchNorm3d(middle),
        nn.ReLU(),
        nn.Conv3d(middle, outputs, (3, 1, 1), (stride, 1, 1), padding=(1, 0, 0), bias=False),
    )


def r2plus1d_18(width: int = 64, pooling: Pooling = "mean") -> ConvTower:
    """R(2+1)D-18 on video (B, 3, T, H, W), as torchvision's `r2plus1d_18`; the stem and 4 stages are layers.

    Args:
        width: channels of the stem and the first stage, 64 in the paper.
        pooling: over space.
    """
    # between space and time the stem has 45 channels where the width is 64
    middle = max(1, 45 * stage_widths(width)[0] // 64)
    stem = nn.Sequential(
        nn.Conv3d(3, middle, (1, 7, 7), (1, 2, 2), padding=(0, 3, 3), bias=False),
        nn.BatchNorm3d(middle),
        nn.ReLU(),
        nn.Conv3d(middle, width, (3, 1, 1), padding=(1, 0, 0), bias=False),
        nn.BatchNorm3d(width),
        nn.ReLU(),
    )
    return _tower(stem, width, pooling, norm_after_sum=False)


def avid_r2plus1d_18(width: int = 64, pooling: Pooling = "mean") -> ConvTower:
    """The variant of AVID and CrissCross: a full 3-D convolution and a max pooling as stem, no wider middle.

    Source: the released code of Morgado et al. 2021, which calls it an adaptation of the authors' of R(2+1)D.
    """
    width = stage_widths(width)[0]
    stem = nn.Sequential(
        nn.Conv3d(3, width, (3, 7, 7), (1, 2, 2), padding=(1, 3, 3), bias=False),
        nn.BatchNorm3d(width),
        nn.ReLU(),
        nn.MaxPool3d((1, 3, 3), (1, 2, 2), padding=(0, 1, 1)),
    )
    return _tower(stem, width, pooling, norm_after_sum=True)


def _tower(stem: nn.Module, width: int, pooling: Pooling, norm_after_sum: bool) -> ConvTower:
    widths = stage_widths(width)
    inputs, stages = width, []
    for outputs, stride in zip(widths, (1, 2, 2, 2), strict=True):
        middle = outputs if norm_after_sum else None
        stages.append(
            nn.Sequential(
                R2Plus1DBlock(inputs, outputs, stride, middle, norm_after_sum),
                R2Plus1DBlock(outputs, outputs, 1, middle, norm_after_sum),
            )
        )
        inputs = outputs
    halve = ((3, 2, 1),)
    # the stem and the first stage look along time and keep its rate
    times = [((3, 1, 1),), (), halve, halve, halve]
    tower = ConvTower(stem, stages, (width, *widths), times, 2, pooling)
    init_convs(tower.modules())
    return tower
