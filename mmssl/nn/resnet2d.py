"""Two-dimensional residual and plain convolution blocks, and the audio and picture towers made of them."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from mmssl.errors import ConfigError
from mmssl.nn.conv_tower import ConvTower, Pooling


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut (ResNet's basic block; He et al. 2016, figure 5 left).

    Parameters are called as in torchvision's `BasicBlock`.

    Args:
        inputs, outputs: channels.
        stride: of the first convolution, in both directions.
        activation: "relu", or "prelu" with a slope per channel.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, activation: str = "relu") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = activation_layer(activation, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = activation_layer(activation, outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(out + (x if self.downsample is None else self.downsample(x)))


class PlainBlock(nn.Module):
    """Two 3 x 3 convolutions, each with batch norm and ReLU, without a shortcut (VGG's kind).

    Args:
        inputs, outputs: channels.
        stride: of the first convolution, in both directions.
        pool: begin with a 2 x 2 max pooling.
        bias: whether the convolutions have one.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, pool: bool = False, bias: bool = False) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2) if pool else None
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=bias)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=bias)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        if self.pool is not None:
            x = self.pool(x)
        return self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()


def activation_layer(name: str, channels: int) -> nn.Module:
    """A ReLU, or a PReLU with a slope per channel.

    Raises:
        ConfigError: another name.
    """
    if name not in ("relu", "prelu"):
        raise ConfigError(f"The activation must be 'relu' or 'prelu', got {name!r}.")
    return nn.ReLU() if name == "relu" else nn.PReLU(channels)


def resnet18_stages(inputs: int, width: int, activation: str = "relu") -> list[nn.Sequential]:
    """The four stages of ResNet-18: two blocks each, `width` to 8 * `width` channels, strides 1, 2, 2, 2."""
    stages = []
    for outputs, stride in zip(stage_widths(width), (1, 2, 2, 2), strict=True):
        stages.append(
            nn.Sequential(
                ResidualBlock(inputs, outputs, stride, activation), ResidualBlock(outputs, outputs, 1, activation)
            )
        )
        inputs = outputs
    return stages


def resnet18_audio(width: int = 64, pooling: Pooling = "mean") -> ConvTower:
    """ResNet-18 on log-mel (B, 1, F, T), as torchvision's but for one input channel; the stem and 4 stages are layers.

    Args:
        width: channels of the stem and the first stage, 64 in the papers.
        pooling: over frequency.
    """
    widths = stage_widths(width)
    stem = nn.Sequential(
        nn.Conv2d(1, width, 7, 2, padding=3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, padding=1),
    )
    halve = (3, 2, 1)
    times = [((7, 2, 3), halve), (), (halve,), (halve,), (halve,)]
    return _initialized(ConvTower(stem, resnet18_stages(width, width), (width, *widths), times, -1, pooling))


def conv2d_10(width: int = 64, pooling: Pooling = "mean") -> ConvTower:
    """AVID's audio network on a log spectrogram (B, 1, F, T): a stem and four plain blocks, nine convolutions.

    Source: Morgado et al. 2021, "Audio-Visual Instance Discrimination", appendix; its released code.
    """
    widths = stage_widths(width)
    stem = nn.Sequential(nn.Conv2d(1, width, 7, 2, padding=3, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    inputs, stages = width, []
    for outputs, stride in zip(widths, (2, 2, 2, 1), strict=True):
        stages.append(PlainBlock(inputs, outputs, stride))
        inputs = outputs
    halve = ((3, 2, 1),)
    times = [((7, 2, 3),), halve, halve, halve, ()]
    return _initialized(ConvTower(stem, stages, (width, *widths), times, -1, pooling))


def l3_tower(inputs: int, width: int = 64, time_axis: int | None = -1, pooling: Pooling = "max") -> ConvTower:
    """One tower of L3-Net: four blocks of two 3 x 3 convolutions, with 2 x 2 max pooling between blocks.

    Source: Arandjelovic and Zisserman 2017, "Look, Listen and Learn", section 3.1. The batch norm of the input is
    OpenL3's (Cramer et al. 2019): it brings decibels or colours to one scale.

    Args:
        inputs: channels of the input: 1 for spectrograms, 3 for pictures.
        width: channels of the first block, 64 in the paper.
        time_axis: -1 for spectrograms (B, 1, F, T), None for pictures.
        pooling: over frequency, or over the picture; the paper's is "max".
    """
    stages: list[nn.Module] = []
    channels = inputs
    for index, outputs in enumerate(stage_widths(width)):
        block = PlainBlock(channels, outputs, pool=index > 0, bias=True)
        stages.append(nn.Sequential(nn.BatchNorm2d(inputs), block) if index == 0 else block)
        channels = outputs
    pool = ((2, 2, 0),) if time_axis is not None else ()
    return _initialized(ConvTower(None, stages, stage_widths(width), [(), pool, pool, pool], time_axis, pooling))


def init_convs(modules: Iterable[nn.Module]) -> None:
    """Draw the weights of convolutions for ReLU networks (He et al. 2015, fan out); biases are zero."""
    for module in modules:
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _initialized(tower: ConvTower) -> ConvTower:
    init_convs(tower.modules())
    return tower


def stage_widths(width: int) -> tuple[int, int, int, int]:
    """Channels of the four stages: `width` times 1, 2, 4 and 8."""
    if width < 1:
        raise ConfigError(f"width must be at least 1, got {width}.")
    return width, 2 * width, 4 * width, 8 * width
