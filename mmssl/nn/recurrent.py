"""Recurrent layers over whole sequences that return what every level computes."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmssl.errors import ConfigError

Cell = Literal["gru", "lstm", "rnn"]
CELLS: dict[str, Any] = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}
GATES = {"gru": 3, "lstm": 4, "rnn": 1}
"""Rows of a cell's weights, in hidden sizes."""


class RecurrentStack(nn.Module):
    """Causal recurrent levels, each returned: a frame depends on itself and those before it.

    Args:
        input_size: width of the frames.
        hidden_size: width of every level.
        num_layers: levels.
        cell: "gru", "lstm" or "rnn".
        residual: add each level's input to its output, from the second level on (APC).
        dropout: of each level's output, in training.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        cell: Cell = "gru",
        residual: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if cell not in CELLS or num_layers < 1:
            raise ConfigError(
                f"A recurrent stack has at least one level of {', '.join(CELLS)}, got {num_layers} of {cell!r}."
            )
        self.residual = residual
        sizes = [input_size] + [hidden_size] * (num_layers - 1)
        self.levels = nn.ModuleList(CELLS[cell](size, hidden_size, batch_first=True) for size in sizes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Frames (B, T, D) without padding -> one (B, T, H) per level."""
        outputs: list[Tensor] = []
        for index, level in enumerate(self.levels):
            below = outputs[-1] if outputs else x
            out = self.dropout(level(below)[0])
            outputs.append(out + below if self.residual and index else out)
        return outputs


class QRNN(nn.Module):
    """Quasi-recurrent layer over the present and the last frame, with forget and output gates.

    Source: Bradbury et al. 2017, "Quasi-Recurrent Neural Networks", equations 1-4 (fo-pooling, filter width 2). Causal.

    Args:
        input_size, hidden_size: widths.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * input_size, 3 * hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, H); padding after a sequence's end does not reach the frames before it."""
        before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)
        candidate, update, output = self.linear(torch.cat([x, before], dim=-1)).chunk(3, dim=-1)
        update = update.sigmoid()
        kept, added = 1 - update, update * candidate.tanh()
        state, states = torch.zeros_like(added[:, 0]), []
        for keep, add in zip(kept.unbind(1), added.unbind(1), strict=True):
            state = keep * state + add
            states.append(state)
        return output.sigmoid() * torch.stack(states, dim=1)
