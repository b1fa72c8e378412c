"""What stands in the place of hidden frames."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmssl.errors import ConfigError, InputError
from mmssl.objectives.types import Masker


class MaskEmbedding(Masker):
    """One learnt vector for every hidden frame (wav2vec 2.0, HuBERT, data2vec).

    Args:
        size: D.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(size).uniform_())

    def forward(self, frames: Tensor, mask: Tensor, seed: int) -> Tensor:
        """Frames (T, D) with the vector where the mask is True."""
        if frames.shape[1:] != self.embedding.shape:
            raise InputError(
                f"The mask embedding has {len(self.embedding)} values, the frames are {tuple(frames.shape)}."
            )
        return torch.where(mask[:, None], self.embedding.to(frames.dtype), frames)


class NoiseMask(Masker):
    """Normal noise for hidden frames (BEST-RQ: Chiu et al. 2022, section 3.2: mean 0, deviation 0.1).

    Args:
        deviation: of the noise; greater than 0.
    """

    def __init__(self, deviation: float = 0.1) -> None:
        super().__init__()
        if not deviation > 0:
            raise ConfigError(f"The deviation of the noise must be greater than 0, got {deviation}.")
        self.deviation = deviation

    def forward(self, frames: Tensor, mask: Tensor, seed: int) -> Tensor:
        """Frames (T, D) with noise where the mask is True."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(frames.shape, generator=generator).to(frames) * self.deviation
        return torch.where(mask[:, None], noise, frames)


class Alteration(Masker):
    """TERA's alterations of spectral frames: along time, along frequency, and of magnitude.

    Source: Liu et al. 2021, "TERA: Self-Supervised Learning of Transformer Encoder Representation for Speech", section
    III-B. Time: of the hidden frames of a clip, with probability .8 all are set to zero, with .1 they are replaced by
    other frames of the clip, with .1 they stay. Frequency: a block of neighbouring bins of random width, down to none,
    is set to zero over the whole clip. Magnitude: with some probability, normal noise is added to all frames.

    Args:
        max_bins: the widest block of bins; 0 for no alteration of frequency.
        noise_probability: that of the alteration of magnitude, in [0, 1].
        noise_deviation: of its noise.

    Raises:
        ConfigError: a value out of range.
    """

    def __init__(self, max_bins: int = 16, noise_probability: float = 0.15, noise_deviation: float = 0.2) -> None:
        super().__init__()
        if max_bins < 0 or not 0 <= noise_probability <= 1 or noise_deviation < 0:
            raise ConfigError(
                f"Alteration needs max_bins >= 0, noise_probability in [0, 1] and noise_deviation >= 0, "
                f"got {max_bins}, {noise_probability} and {noise_deviation}."
            )
        self.max_bins, self.noise_probability, self.noise_deviation = max_bins, noise_probability, noise_deviation

    def forward(self, frames: Tensor, mask: Tensor, seed: int) -> Tensor:
        """Altered frames (T, F) of one clip; what is drawn depends on the seed alone."""
        generator = torch.Generator().manual_seed(seed)
        size, bins = frames.shape
        if self.max_bins >= bins:
            raise ConfigError(f"max_bins must be less than the {bins} bins of the frames, got {self.max_bins}.")
        choice = float(torch.rand((), generator=generator))
        altered = frames
        if choice < 0.8:
            altered = frames.masked_fill(mask[:, None], 0)
        elif choice < 0.9:
            others = torch.randint(size, (size,), generator=generator).to(frames.device)
            altered = torch.where(mask[:, None], frames[others], frames)
        if self.max_bins:
            width = int(torch.randint(self.max_bins + 1, (), generator=generator))
            start = int(torch.randint(bins - width + 1, (), generator=generator))
            altered = altered.clone()
            altered[:, start : start + width] = 0
        if float(torch.rand((), generator=generator)) < self.noise_probability:
            altered = altered + torch.randn(size, bins, generator=generator).to(frames) * self.noise_deviation
        return altered
