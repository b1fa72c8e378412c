"""Speaker embeddings from the layers of an upstream, trained on the speakers of the training split."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from mmssl.downstream.pooling import without_padding
from mmssl.downstream.scoring import cosine_scores
from mmssl.errors import ConfigError, InputError
from mmssl.metrics.verification import verification_metrics
from mmssl.types import Layers, Padded, TaskOutput

if TYPE_CHECKING:
    from mmssl.downstream.margin import MarginSoftmax
    from mmssl.interfaces.base import Interface


class SpeakerEmbedding(nn.Module):
    """Interface, encoder and a classification loss over training speakers; clips are compared by their embeddings.

    Training minimises the loss over the training speakers. In eval mode speakers are other ones, of whom the loss says
    nothing: it is then 1 - (mean cosine within speakers - mean cosine between speakers) of the batch, and `predictions`
    are embeddings, so that the trainer judges by trials among held-out training speakers, never by test trials.

    Args:
        interface: layers -> one sequence.
        encoder: Padded frames (B, T, D) -> embeddings (B, E): `mmssl.nn.tdnn.EcapaEncoder`, `XVectorEncoder`,
            `mmssl.nn.resnet_speaker.ResNetEncoder`, or any module of that kind with `output_size`.
        loss: over the training speakers.
        centre: take away each clip's mean over time of the interface's output, as is usual on log-mel frames.

    Attributes:
        monitor: the score that selects: one less the EER, higher being better.

    Raises:
        ConfigError: the loss takes embeddings of another width.
    """

    monitor = "dev_one_minus_eer"

    def __init__(self, interface: Interface, encoder: nn.Module, loss: MarginSoftmax, centre: bool = False) -> None:
        super().__init__()
        width = getattr(encoder, "output_size", None)
        if width != loss.weight.shape[1]:
            raise ConfigError(
                f"The encoder gives embeddings of width {width}, the loss takes {loss.weight.shape[1]}: build the loss "
                "with encoder.output_size."
            )
        self.interface, self.encoder, self.loss, self.centre = interface, encoder, loss, centre

    def embed(self, layers: Layers) -> Tensor:
        """Embeddings (B, E) of a batch of clips, in the mode the module is in."""
        frames = without_padding(self.interface(layers))
        if self.centre:
            mean = frames.data.sum(1, keepdim=True) / frames.lengths[:, None, None]
            frames = without_padding(Padded(frames.data - mean, frames.lengths))
        return self.encoder(frames)

    def forward(self, layers: Layers, targets: Tensor) -> TaskOutput:
        """Loss of a batch; logits of the training speakers in training, embeddings in eval mode.

        Args:
            layers: of B clips.
            targets: (B,) int64: indices of training speakers in training, any numbers of speakers in eval mode.

        Raises:
            InputError: layers or targets do not fit.
        """
        embeddings = self.embed(layers)
        if self.training:
            return self.loss(embeddings, targets)
        return TaskOutput(_overlap(embeddings.float(), targets), len(targets), embeddings)

    @torch.no_grad()
    def predict(self, layers: Layers) -> Tensor:
        """Embeddings (B, E) in eval mode, without gradients."""
        training = self.training
        self.eval()
        try:
            return self.embed(layers)
        finally:
            self.train(training)

    def metrics(self, scores: Tensor, targets: Tensor) -> dict[str, float]:
        """Cosine scoring of all pairs of a split.

        Args:
            scores: (N, E) embeddings.
            targets: (N,) speakers.

        Returns:
            "eer", "min_dcf_p01", "min_dcf_p05" and "one_minus_eer".

        Raises:
            InputError: there are not two speakers, or no speaker has two clips.
        """
        speakers = targets.cpu().numpy()
        first, second = np.triu_indices(len(speakers), 1)
        labels = speakers[first] == speakers[second]
        if not len(labels) or labels.all() or not labels.any():
            raise InputError(
                f"Trials need two speakers and two clips of one of them, got {len(set(speakers.tolist()))} speakers "
                f"and {len(speakers)} clips in the development split."
            )
        found = verification_metrics(cosine_scores(scores.float().cpu().numpy(), first, second), labels)
        return found | {"one_minus_eer": 1 - found["eer"]}


def _overlap(embeddings: Tensor, targets: Tensor) -> Tensor:
    """1 - (mean cosine within speakers - mean cosine between speakers), each taken as 0 where there is no such pair."""
    unit = nn.functional.normalize(embeddings)
    cosine = unit @ unit.t()
    same = (targets[:, None] == targets).fill_diagonal_(False)
    other = targets[:, None] != targets
    within, between = ((cosine * pairs).sum() / pairs.sum().clamp(min=1) for pairs in (same, other))
    return 1 - (within - between)
