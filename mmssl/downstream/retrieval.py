"""Cross-modal retrieval: two streams in one space, in which what belongs together is close."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.data.streams import cleared, present
from mmssl.downstream.pooling import masked_mean
from mmssl.errors import ConfigError, InputError
from mmssl.metrics.retrieval import retrieval_metrics
from mmssl.types import Layers, TaskOutput

if TYPE_CHECKING:
    from mmssl.interfaces.base import Interface


def paired_info_nce(first: Tensor, second: Tensor, targets: Tensor, temperature: float | Tensor) -> Tensor:
    """Symmetric InfoNCE of pairs, in which pairs of the same target are no negatives of each other.

    Radford et al. 2021 (CLIP), figure 3; row i belongs to row i, and other rows of its target are left out of its
    denominator. With one target per row it is the loss of that figure.

    Args:
        first, second: (B, E).
        targets: (B,) what a pair is about.
        temperature: divides the cosines.

    Returns:
        Scalar, mean over pairs and both directions.
    """
    a, b = F.normalize(first, dim=-1), F.normalize(second, dim=-1)
    same = (targets[:, None] == targets).fill_diagonal_(False)
    logits = (a @ b.t() / temperature).masked_fill(same, -torch.inf)
    rows = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, rows) + F.cross_entropy(logits.t(), rows)) / 2


class CrossModalRetrieval(nn.Module):
    """A head for each of two streams on the mean of its interface, trained by InfoNCE on pairs.

    Targets are numbers of what a clip is about: clips of one number belong together in both directions. Give each clip
    a number of its own for retrieval of the very same clip, or the speaker's for matching faces and voices.

    Args:
        interfaces: stream -> its interface; two.
        embedding_size: width of the common space.
        hidden_size: of the heads' hidden layer; 0 for linear heads.
        temperature: of InfoNCE; where training starts, if it is learned.
        learn_temperature: train it, as CLIP does; it stays at least 0.01.

    Attributes:
        monitor: the score that selects: R@1, mean of both directions.

    Raises:
        ConfigError: not two streams, or a value out of range.
    """

    monitor = "dev_r1"

    def __init__(
        self,
        interfaces: Mapping[str, Interface],
        embedding_size: int = 128,
        hidden_size: int = 0,
        temperature: float = 0.07,
        learn_temperature: bool = False,
    ) -> None:
        super().__init__()
        if len(interfaces) != 2 or embedding_size < 1 or hidden_size < 0 or not temperature > 0:
            raise ConfigError(
                f"Retrieval needs two streams, an embedding_size of at least 1 and a temperature above 0, got "
                f"{', '.join(interfaces)}, {embedding_size} and {temperature}."
            )
        self.streams = tuple(interfaces)
        self.interfaces = nn.ModuleDict(dict(interfaces))
        self.heads = nn.ModuleDict(
            {name: _head(part.output_size, hidden_size, embedding_size) for name, part in interfaces.items()}
        )
        self.log_temperature = nn.Parameter(torch.tensor(temperature).log(), requires_grad=learn_temperature)

    @property
    def affine(self) -> bool:
        """True where the mean over frames of each layer, given as one frame per clip, yields the same."""
        return all(bool(part.affine) for part in self.interfaces.values())

    def embed(self, streams: Mapping[str, Layers], stream: str) -> Tensor:
        """(B, E) embeddings of unit length of one stream.

        Raises:
            InputError: the stream is missing in the batch or in a clip.
        """
        if stream not in self.streams or stream not in streams:
            raise InputError(
                f"Retrieval is between {' and '.join(self.streams)}; the batch has {', '.join(streams)}, asked for is "
                f"{stream!r}."
            )
        if not bool(present(streams[stream]).all()):
            raise InputError(f"A clip of the batch lacks the stream {stream}, and cannot be found by it: leave it out.")
        return F.normalize(self.heads[stream](masked_mean(self.interfaces[stream](cleared(streams[stream])))), dim=-1)

    def forward(self, streams: Mapping[str, Layers], targets: Tensor) -> TaskOutput:
        """InfoNCE of a batch; `predictions` are the embeddings (B, 2, E), in the order of the streams.

        Args:
            streams: of B clips, with both streams.
            targets: (B,) whole numbers.

        Raises:
            InputError: streams or targets do not fit.
        """
        both = [self.embed(streams, name) for name in self.streams]
        if targets.shape != both[0].shape[:1] or targets.is_floating_point():
            raise InputError(f"Targets must be ({len(both[0])},) whole numbers, got {targets.dtype} {targets.shape}.")
        temperature = self.log_temperature.exp().clamp(min=0.01)
        loss = paired_info_nce(both[0], both[1], targets, temperature)
        return TaskOutput(loss, len(targets), torch.stack(both, dim=1))

    @torch.no_grad()
    def predict(self, streams: Mapping[str, Layers]) -> Tensor:
        """Embeddings (B, 2, E) in eval mode, without gradients."""
        training = self.training
        self.eval()
        try:
            return torch.stack([self.embed(streams, name) for name in self.streams], dim=1)
        finally:
            self.train(training)

    def metrics(self, scores: Tensor, targets: Tensor) -> dict[str, float]:
        """R@1, R@5, R@10, median and mean rank among all clips of a split, from embeddings (N, 2, E)."""
        both = scores.double().cpu().numpy()
        first, second = self.streams
        return retrieval_metrics(both[:, 0] @ both[:, 1].T, targets.cpu().numpy(), names=(first, second))


def _head(input_size: int, hidden_size: int, output_size: int) -> nn.Module:
    if not hidden_size:
        return nn.Linear(input_size, output_size)
    return nn.Sequential(nn.Linear(input_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, output_size))
