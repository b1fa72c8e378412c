from __future__ import annotations

import pytest
import torch

from mmssl.errors import ConfigError
from mmssl.nn.recurrent import QRNN, RecurrentStack


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_levels_equal_one_stacked_network(cell: str) -> None:
    stack = RecurrentStack(3, 4, 2, cell)
    whole = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM, "rnn": torch.nn.RNN}[cell](3, 4, 2, batch_first=True)
    whole.load_state_dict(
        {
            name.replace("_l0", f"_l{level}"): value
            for level in range(2)
            for name, value in stack.levels[level].state_dict().items()
        }
    )
    x = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(stack(x)[-1], whole(x)[0])


@pytest.mark.parametrize("network", [RecurrentStack(3, 4, 2, residual=True), QRNN(3, 4)], ids=["stack", "qrnn"])
def test_they_are_causal(network: torch.nn.Module) -> None:
    x = torch.randn(1, 9, 3, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    out = network(x)
    (out[-1] if isinstance(out, list) else out)[0, 4].sum().backward()
    assert x.grad[0, :5].abs().sum(1).ne(0).all()
    assert not x.grad[0, 5:].any()


def test_qrnn_forgets_and_keeps_by_its_gate() -> None:
    qrnn = QRNN(1, 1)
    torch.nn.init.zeros_(qrnn.linear.weight)
    # candidate tanh(1), update sigmoid(0) = 1/2, output gate open
    qrnn.linear.bias.data = torch.tensor([1.0, 0.0, 40.0])
    out = qrnn(torch.zeros(1, 3, 1))[0, :, 0]
    candidate = torch.tensor(1.0).tanh()
    torch.testing.assert_close(out, candidate * torch.tensor([0.5, 0.75, 0.875]))


def test_an_unknown_cell_is_refused() -> None:
    with pytest.raises(ConfigError, match="gru, lstm, rnn, got 0"):
        RecurrentStack(3, 4, 0)
