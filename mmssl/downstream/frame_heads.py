"""Heads that look at the course of the frames: convolutions over time and recurrent layers. They need frames."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmssl.downstream.heads import Head
from mmssl.downstream.pooling import masked_mean
from mmssl.errors import ConfigError
from mmssl.lengths import zero_padding
from mmssl.nn.tdnn import EcapaEncoder, XVectorEncoder
from mmssl.types import Padded


class EcapaTdnn(Head):
    """ECAPA-TDNN on the frames of an upstream, then a linear map: the strong head of MP3S.

    Desplanques et al. 2020, "ECAPA-TDNN"; as a head on frozen features: Zaiem et al. 2023, "Speech Self-Supervised
    Representation Benchmarking: Are We Doing it Right?" (MP3S).

    Args:
        input_size: width of the features.
        num_outputs: number of classes or values.
        channels: width of the blocks, a multiple of 8; 512 and 1024 in the paper.
        joined_size: width of the layer that joins the blocks.
        embedding_size: of the vector that is classified.
        attention_size: of the attentive pooling.

    Raises:
        ConfigError: a size is below 1, or `channels` is no multiple of 8.
    """

    def __init__(
        self,
        input_size: int,
        num_outputs: int,
        channels: int = 512,
        joined_size: int = 1536,
        embedding_size: int = 192,
        attention_size: int = 128,
    ) -> None:
        super().__init__(input_size, num_outputs)
        _positive(
            channels=channels, joined_size=joined_size, embedding_size=embedding_size, attention_size=attention_size
        )
        self.encoder = EcapaEncoder(
            input_size, channels, joined_size, embedding_size, bottleneck=attention_size, attention_size=attention_size
        )
        self.classifier = nn.Linear(embedding_size, num_outputs)

    def score(self, features: Padded) -> Tensor:
        """Embed each clip, classify."""
        return self.classifier(self.encoder(features))


class XVector(Head):
    """x-vector network on the frames of an upstream, as in SUPERB's speaker verification, then a linear map.

    Snyder et al. 2018, "X-vectors"; SUPERB (Yang et al. 2021) puts a linear map to 512 in front, as here.

    Args:
        input_size: width of the features.
        num_outputs: number of classes or values.
        channels: width of the first four layers, and of the map in front.
        wide_size: width of the fifth.
        embedding_size: of the vector that is classified.

    Raises:
        ConfigError: a size is below 1.
    """

    def __init__(
        self,
        input_size: int,
        num_outputs: int,
        channels: int = 512,
        wide_size: int = 1500,
        embedding_size: int = 512,
    ) -> None:
        super().__init__(input_size, num_outputs)
        _positive(channels=channels, wide_size=wide_size, embedding_size=embedding_size)
        self.projector = nn.Linear(input_size, channels)
        self.encoder = XVectorEncoder(channels, channels, wide_size, embedding_size)
        self.classifier = nn.Linear(embedding_size, num_outputs)

    def score(self, features: Padded) -> Tensor:
        """Project each frame, embed each clip, classify."""
        return self.classifier(torch.relu(self.encoder(Padded(self.projector(features.data), features.lengths))))


class Blstm(Head):
    """Bidirectional LSTM over the frames, masked mean of its states over time, linear map.

    The recurrent network of SUPERB's speech recognition (two layers of 1,024; Yang et al. 2021) with a mean over time
    for labels of whole clips, as in MP3S.

    Args:
        input_size: width of the features.
        num_outputs: number of classes or values.
        hidden_size: of each direction.
        num_layers: levels.
        dropout: between levels, in training.

    Raises:
        ConfigError: a size is below 1 or the dropout is not in [0, 1).
    """

    def __init__(
        self, input_size: int, num_outputs: int, hidden_size: int = 256, num_layers: int = 2, dropout: float = 0.0
    ) -> None:
        super().__init__(input_size, num_outputs)
        self.recurrent = PackedBlstm(input_size, hidden_size, num_layers, dropout)
        self.classifier = nn.Linear(self.recurrent.output_size, num_outputs)

    def score(self, features: Padded) -> Tensor:
        """Run both directions over the valid frames of each clip, pool, classify."""
        return self.classifier(masked_mean(self.recurrent(features)))


class ProjectedEncoder(nn.Module):
    """A linear map of every frame in front of an encoder, as SUPERB's speaker verification has it before its x-vector.

    Args:
        input_size: width of the frames.
        encoder: takes frames of `encoder_size` and has an `output_size`.
        encoder_size: width that the encoder takes.
    """

    def __init__(self, input_size: int, encoder: EcapaEncoder | XVectorEncoder, encoder_size: int) -> None:
        super().__init__()
        self.projector = nn.Linear(input_size, encoder_size)
        self.encoder = encoder
        self.output_size = encoder.output_size

    def forward(self, features: Padded) -> Tensor:
        """Frames (B, T, input_size) with lengths -> embeddings (B, output_size)."""
        return self.encoder(Padded(self.projector(features.data), features.lengths))


class PackedBlstm(nn.Module):
    """A bidirectional LSTM that runs over the valid frames of each sequence only, in both directions.

    Args:
        input_size: width of the frames.
        hidden_size: of each direction.
        num_layers: levels.
        dropout: between levels, in training.

    Attributes:
        output_size: width of what comes out, 2 x hidden_size.

    Raises:
        ConfigError: a size is below 1 or the dropout is not in [0, 1).
    """

    def __init__(self, input_size: int, hidden_size: int = 1024, num_layers: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        _positive(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout must lie in [0, 1), got {dropout}.")
        # torch warns about a dropout that has no place between levels
        between = dropout if num_layers > 1 else 0.0
        self.lstm = nn.LSTM(input_size, hidden_size, num_layers, batch_first=True, dropout=between, bidirectional=True)
        self.output_size = 2 * hidden_size

    def forward(self, features: Padded) -> Padded:
        """Frames (B, T, input_size), lengths >= 1 -> (B, T, 2 x hidden_size), zero past each length."""
        packed = nn.utils.rnn.pack_padded_sequence(
            features.data, features.lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        states, _ = nn.utils.rnn.pad_packed_sequence(
            self.lstm(packed)[0], batch_first=True, total_length=features.data.shape[1]
        )
        return Padded(zero_padding(states, features.lengths), features.lengths)


def _positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ConfigError(f"{name} must be a whole number of at least 1, got {size!r}.")
