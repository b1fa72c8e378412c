"""From a sequence to one vector per clip. Nothing here sees padding, whatever it holds (NaN included)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmssl.errors import ConfigError, InputError
from mmssl.lengths import zero_padding
from mmssl.types import Padded

STD_EPS = 1e-7


def without_padding(features: Padded) -> Padded:
    """The same sequences, zero past each length, with no step that is padding in every clip.

    Raises:
        InputError: `features.data` is not (B, T, D) with B lengths in [1, T].
    """
    data, lengths = features.data, features.lengths
    if data.dim() != 3 or lengths.shape != data.shape[:1] or len(data) == 0:
        raise InputError(
            f"A head takes (B, T, D) features and (B,) lengths, got {tuple(data.shape)} and {tuple(lengths.shape)}."
        )
    shortest, longest = int(lengths.min()), int(lengths.max())
    if shortest < 1 or longest > data.shape[1]:
        raise InputError(
            f"Lengths must lie between 1 and the {data.shape[1]} frames given, got {shortest} to {longest}. "
            "A clip without a frame cannot be pooled: leave it out."
        )
    data = data[:, :longest]
    return Padded(data if shortest == longest else zero_padding(data, lengths), lengths)


def masked_mean(features: Padded) -> Tensor:
    """Mean over the valid frames: (B, T, D) -> (B, D).

    Raises:
        InputError: a clip has no frame, or shapes do not fit.
    """
    valid = without_padding(features)
    return valid.data.sum(1) / valid.lengths[:, None]


def masked_std(features: Padded) -> Tensor:
    """Standard deviation over the valid frames: (B, T, D) -> (B, D).

    It is sqrt(v + 1e-7) with v the mean squared distance to the mean (divided by the number of frames, not by one
    less), so that value and gradient are finite for a constant sequence and for a single frame.

    Raises:
        InputError: a clip has no frame, or shapes do not fit.
    """
    valid = without_padding(features)
    distance = valid.data - masked_mean(valid)[:, None]
    return (masked_mean(Padded(distance.square(), valid.lengths)) + STD_EPS).sqrt()


class AttentiveStatsPooling(nn.Module):
    """Mean and standard deviation of the frames, weighted by learned attention: (B, T, D) -> (B, 2 D).

    Okabe, Koshinaka and Shinoda, "Attentive Statistics Pooling for Deep Speaker Embedding" (Interspeech 2018): scores
    e_t = v . tanh(W h_t + b) + k (eq. 3, with tanh as the non-linearity), weights softmax over the valid frames (eq.
    4), mean (eq. 5) and standard deviation (eq. 6) under these weights. One weight per frame, shared by all features.
    The variance is computed about the mean, which equals the paper's difference of moments and does not cancel.

    Args:
        input_size: D.
        attention_size: rows of W.

    Raises:
        ConfigError: a size is below 1.
    """

    def __init__(self, input_size: int, attention_size: int = 128) -> None:
        super().__init__()
        if input_size < 1 or attention_size < 1:
            raise ConfigError(
                f"Sizes must be at least 1, got input_size={input_size}, attention_size={attention_size}."
            )
        self.output_size = 2 * input_size
        self.hidden = nn.Linear(input_size, attention_size)
        self.score = nn.Linear(attention_size, 1)

    def attention(self, features: Padded) -> Tensor:
        """(B, T, 1) weights of the frames, zero on padding; T is the longest length."""
        valid = without_padding(features)
        scores = self.score(torch.tanh(self.hidden(valid.data)))
        return scores.masked_fill(~valid.mask[..., None], -torch.inf).softmax(dim=1)

    def forward(self, features: Padded) -> Tensor:
        """Pool (B, T, D) to (B, 2 D): the means, then the standard deviations."""
        valid = without_padding(features)
        weights = self.attention(valid)
        mean = (weights * valid.data).sum(1)
        variance = (weights * (valid.data - mean[:, None]).square()).sum(1)
        return torch.cat([mean, (variance + STD_EPS).sqrt()], dim=-1)
