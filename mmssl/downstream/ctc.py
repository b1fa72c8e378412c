"""Sequences of symbols without times: connectionist temporal classification on frames, greedy decoding, error rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.downstream.frame_heads import PackedBlstm
from mmssl.downstream.pooling import without_padding
from mmssl.errors import ConfigError, InputError
from mmssl.metrics.sequences import edit_distance, error_rate
from mmssl.types import Layers, Padded, TaskOutput

if TYPE_CHECKING:
    from mmssl.interfaces.base import Interface

BLANK = 0
NO_SYMBOL = -1
"""Fills targets of unequal length."""
NETWORKS = ("linear", "blstm")


class SequenceRecognition(nn.Module):
    """Symbols of a clip from its frames, by CTC.

    Graves et al., "Connectionist Temporal Classification" (ICML 2006), eq. 14; decoding takes the best symbol of every
    frame, joins repeats and drops blanks (section 3.2, best path). SUPERB's phoneme recognition has one linear map
    behind the weighted sum, its speech recognition two bidirectional LSTM layers of 1,024. The loss of a clip is
    divided by its number of symbols. A clip with more symbols than CTC can place on its frames cannot be learned: it
    adds nothing to the loss.

    Args:
        interface: layers -> one sequence.
        num_symbols: C, without the blank.
        network: "linear", or "blstm" for two bidirectional layers before the linear map.
        projection_size: width of a linear map in front (256 in S3PRL's phoneme recognition); None for none.
        hidden_size: of each direction of the LSTM.

    Attributes:
        monitor: the score that selects: one less the error rate, higher being better.

    Raises:
        ConfigError: a value is out of range.
    """

    monitor = "dev_one_minus_error_rate"

    def __init__(
        self,
        interface: Interface,
        num_symbols: int,
        network: str = "linear",
        projection_size: int | None = 256,
        hidden_size: int = 1024,
    ) -> None:
        super().__init__()
        if network not in NETWORKS:
            raise ConfigError(f"network is {' or '.join(map(repr, NETWORKS))}, got {network!r}.")
        if num_symbols < 1 or (projection_size is not None and projection_size < 1):
            raise ConfigError(f"Sizes must be at least 1, got {num_symbols=}, {projection_size=}.")
        self.interface, self.num_symbols = interface, num_symbols
        width = interface.output_size if projection_size is None else projection_size
        self.projector = nn.Identity() if projection_size is None else nn.Linear(interface.output_size, width)
        self.recurrent = PackedBlstm(width, hidden_size) if network == "blstm" else None
        self.classifier = nn.Linear(width if self.recurrent is None else self.recurrent.output_size, num_symbols + 1)

    def logits(self, layers: Layers) -> Padded:
        """(B, T, 1 + C) scores, that of the blank first, and lengths; arbitrary past each length."""
        frames = without_padding(self.interface(layers))
        projected = Padded(self.projector(frames.data), frames.lengths)
        states = projected if self.recurrent is None else self.recurrent(projected)
        return Padded(self.classifier(states.data), states.lengths)

    def forward(self, layers: Layers, targets: Tensor) -> TaskOutput:
        """Loss of a batch; in eval mode `predictions` are (B, 2): edits and symbols of each clip.

        Args:
            layers: of B clips.
            targets: (B, S) int64 symbols in [0, C), -1 behind each clip's last.

        Raises:
            InputError: layers or targets do not fit.
        """
        logits = self.logits(layers)
        sizes = self._check(targets, len(logits.data))
        probabilities = logits.data.float().log_softmax(-1).transpose(0, 1)
        symbols = (targets + 1).clamp(min=1)
        losses = F.ctc_loss(
            probabilities, symbols, logits.lengths, sizes, blank=BLANK, reduction="none", zero_infinity=True
        )
        loss = (losses / sizes.clamp(min=1)).mean()
        if self.training:
            return TaskOutput(loss, len(targets), logits.data)
        found = greedy(logits)
        edits = [edit_distance(row[:n].tolist(), own) for row, n, own in zip(targets.cpu(), sizes, found, strict=True)]
        counts = torch.stack([torch.tensor(edits, device=sizes.device), sizes], 1)
        return TaskOutput(loss, len(targets), counts)

    @torch.no_grad()
    def decode(self, layers: Layers) -> list[list[int]]:
        """Symbols of each clip of a batch, in eval mode and without gradients."""
        training = self.training
        self.eval()
        try:
            return greedy(self.logits(layers))
        finally:
            self.train(training)

    def metrics(self, scores: Tensor, targets: Tensor) -> dict[str, float]:
        """Error rate of a split from its (N, 2) counts; `targets` are in the counts already."""
        counts = scores.cpu().numpy()
        rate = error_rate(counts[:, 0], counts[:, 1])
        return {"error_rate": rate, "one_minus_error_rate": 1 - rate}

    def _check(self, targets: Tensor, clips: int) -> Tensor:
        """Numbers of symbols (B,)."""
        if targets.dim() != 2 or len(targets) != clips or targets.is_floating_point():
            raise InputError(
                f"Targets must be ({clips}, S) symbols with -1 behind the last, got {targets.dtype} "
                f"{tuple(targets.shape)}."
            )
        there = targets != NO_SYMBOL
        sizes = there.sum(1)
        ordered = torch.arange(targets.shape[1], device=targets.device) < sizes[:, None]
        largest = int(targets.max()) if targets.numel() else 0
        if not torch.equal(there, ordered) or largest >= self.num_symbols or int(targets.min()) < NO_SYMBOL:
            raise InputError(
                f"Symbols lie in 0 to {self.num_symbols - 1} with -1 behind the last one only; got values up to "
                f"{largest}, or -1 between symbols."
            )
        return sizes


def greedy(logits: Padded) -> list[list[int]]:
    """Best symbol of every valid frame, repeats joined, blanks dropped: symbols in [0, C) of each clip."""
    best = logits.data.argmax(-1)
    found = []
    for row, length in zip(best, logits.lengths.tolist(), strict=True):
        joined = row[:length].unique_consecutive()
        found.append((joined[joined != BLANK] - 1).tolist())
    return found


def padded_symbols(sequences: Sequence[Sequence[int]]) -> Tensor:
    """(N, S) targets of sequences of unequal length, -1 behind each.

    Raises:
        InputError: there is no sequence, or one is empty.
    """
    if not sequences or not all(map(len, sequences)):
        raise InputError("Every clip needs at least one symbol.")
    rows = [torch.tensor(list(sequence), dtype=torch.int64) for sequence in sequences]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=NO_SYMBOL)
