"""The plainest encoder of clips: a linear map and the mean over time."""

from __future__ import annotations

from torch import Tensor, nn

from mmssl.downstream.pooling import masked_mean
from mmssl.errors import ConfigError
from mmssl.types import Padded


class MeanProjection(nn.Module):
    """A linear map of the mean over valid frames, as AV-SUPERB's speaker verification has it (Tseng et al. 2024).

    Args:
        input_size: width of the frames.
        output_size: of the embeddings; 256 there.

    Raises:
        ConfigError: a size is below 1.
    """

    def __init__(self, input_size: int, output_size: int = 256) -> None:
        super().__init__()
        if min(input_size, output_size) < 1:
            raise ConfigError(f"Sizes must be at least 1, got {input_size} and {output_size}.")
        self.output_size = output_size
        self.projector = nn.Linear(input_size, output_size)

    def forward(self, features: Padded) -> Tensor:
        """Frames (B, T, input_size), arbitrary past each length -> embeddings (B, output_size)."""
        return self.projector(masked_mean(features))
