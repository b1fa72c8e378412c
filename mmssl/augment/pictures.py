"""Augmentations of pictures (C, H, W) and videos (T, C, H, W) in [0, 1]: what is drawn holds for all frames."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmssl.augment.base import Augmentation, Range, checked_range, integer, require_dims, uniform
from mmssl.errors import ConfigError

_ATTEMPTS = 10
_KIND = "a picture (C, H, W) or a video (T, C, H, W)"


class RandomResizedCrop(Augmentation):
    """A box of random area and aspect ratio, resized to a square (bicubic, smoothed).

    Source: Szegedy et al. 2015, "Going Deeper with Convolutions", section 6: the area is uniform, the aspect ratio
    uniform in its logarithm; where ten draws do not fit, the largest central box of an allowed ratio.

    Args:
        size: height and width of the result, in pixels.
        scale: range of the area, as a share of the picture: (0.08, 1) in SimCLR, (0.4, 1) and (0.05, 0.4) in DINO.
        ratio: range of width over height.

    Raises:
        ConfigError: a value out of range.
    """

    def __init__(self, size: int, scale: Range = (0.08, 1.0), ratio: Range = (3 / 4, 4 / 3)) -> None:
        if size < 1:
            raise ConfigError(f"size must be at least 1 pixel, got {size}.")
        self.size = size
        self.scale, self.ratio = checked_range("scale", scale, 1e-4, 1), checked_range("ratio", ratio, 0.01, 100)

    def box(self, height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
        """Top, left, height and width of a box."""
        logs = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(_ATTEMPTS):
            area = height * width * uniform(*self.scale, generator)
            ratio = math.exp(uniform(*logs, generator))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return integer(0, height - h, generator), integer(0, width - w, generator), h, w
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        w, h = min(width, max(1, round(height * ratio))), min(height, max(1, round(width / ratio)))
        return (height - h) // 2, (width - w) // 2, h, w

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """(..., C, H, W) -> (..., C, size, size)."""
        from torchvision.transforms.v2 import InterpolationMode
        from torchvision.transforms.v2 import functional as pictures

        require_dims(x, (3, 4), _KIND)
        box = self.box(x.shape[-2], x.shape[-1], generator)
        size = [self.size, self.size]
        out = pictures.resized_crop(x, *box, size=size, interpolation=InterpolationMode.BICUBIC, antialias=True)
        return out.clamp(0, 1)


class HorizontalFlip(Augmentation):
    """Left and right exchanged; use it inside `With`."""

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """(..., C, H, W) -> (..., C, H, W)."""
        require_dims(x, (3, 4), _KIND)
        return x.flip(-1)


class ColorJitter(Augmentation):
    """Another brightness, contrast, saturation and hue, in random order.

    Source: Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations", appendix A.

    Args:
        brightness, contrast, saturation: the factor is uniform on [1 - value, 1 + value], but at least 0.
        hue: the shift is uniform on [-hue, hue], in turns; at most 0.5.

    Raises:
        ConfigError: a value out of range.
    """

    def __init__(
        self, brightness: float = 0.4, contrast: float = 0.4, saturation: float = 0.4, hue: float = 0.1
    ) -> None:
        if min(brightness, contrast, saturation) < 0 or not 0 <= hue <= 0.5:
            raise ConfigError(
                f"brightness, contrast and saturation must be at least 0 and hue in [0, 0.5], got {brightness}, "
                f"{contrast}, {saturation} and {hue}."
            )
        self.factors = tuple((max(0.0, 1 - v), 1 + v) for v in (brightness, contrast, saturation))
        self.hue = hue

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """(..., 3, H, W) -> (..., 3, H, W)."""
        from torchvision.transforms.v2 import functional as pictures

        require_dims(x, (3, 4), _KIND)
        values = [*(uniform(*factor, generator) for factor in self.factors), uniform(-self.hue, self.hue, generator)]
        changes = (
            pictures.adjust_brightness,
            pictures.adjust_contrast,
            pictures.adjust_saturation,
            pictures.adjust_hue,
        )
        for index in torch.randperm(len(changes), generator=generator).tolist():
            x = changes[index](x, values[index])
        return x


class Grayscale(Augmentation):
    """Luminance in all three channels; use it inside `With`."""

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """(..., 3, H, W) -> (..., 3, H, W)."""
        from torchvision.transforms.v2 import functional as pictures

        require_dims(x, (3, 4), _KIND)
        return pictures.rgb_to_grayscale(x, num_output_channels=3)


class GaussianBlur(Augmentation):
    """Blur with a Gaussian of random width, whose kernel reaches three deviations.

    Args:
        sigma: range of the deviation in pixels; (0.1, 2) in SimCLR and DINO at 224 pixels.
    """

    def __init__(self, sigma: Range = (0.1, 2.0)) -> None:
        self.sigma = checked_range("sigma", sigma, 0.01, 100)

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """(..., C, H, W) -> (..., C, H, W)."""
        from torchvision.transforms.v2 import functional as pictures

        require_dims(x, (3, 4), _KIND)
        sigma = uniform(*self.sigma, generator)
        # the border is reflected, which cannot reach beyond the picture
        reach = min(math.ceil(3 * sigma), min(x.shape[-2:]) - 1)
        return pictures.gaussian_blur(x, [2 * reach + 1] * 2, [sigma, sigma])


class Solarize(Augmentation):
    """Values from the threshold on are inverted; use it inside `With`.

    Args:
        threshold: in [0, 1]; 0.5 in BYOL and DINO.

    Raises:
        ConfigError: a threshold out of range.
    """

    def __init__(self, threshold: float = 0.5) -> None:
        if not 0 <= threshold <= 1:
            raise ConfigError(f"threshold must be in [0, 1], got {threshold}.")
        self.threshold = threshold

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """(..., C, H, W) -> (..., C, H, W)."""
        require_dims(x, (3, 4), _KIND)
        return torch.where(x >= self.threshold, 1 - x, x)
