from __future__ import annotations

from itertools import product

import pytest
import torch

from mmssl.downstream.ctc import SequenceRecognition, greedy, padded_symbols
from mmssl.errors import ConfigError, InputError
from mmssl.interfaces.base import build_interface
from mmssl.random import isolated_rng
from mmssl.types import Layers, Padded, StreamSpec

LENGTHS = (6, 4, 5)


def layers(value: float = 0.0, extra: int = 0) -> Layers:
    generator = torch.Generator().manual_seed(0)
    states = []
    for _ in range(2):
        data = torch.full((3, max(LENGTHS) + extra, 5), value)
        for row, length in enumerate(LENGTHS):
            data[row, :length] = torch.randn(length, 5, generator=generator)
        states.append(data)
    return Layers(tuple(states), (torch.tensor(LENGTHS),) * 2)


def built(network: str = "linear", symbols: int = 3) -> SequenceRecognition:
    with isolated_rng(0):
        interface = build_interface("weighted_sum", StreamSpec((5, 5), (1, 1)))
        return SequenceRecognition(interface, symbols, network, projection_size=4, hidden_size=3)


TARGETS = padded_symbols([[0, 1, 1], [2], [1, 0]])


def collapsed(path: tuple[int, ...]) -> list[int]:
    joined = [s for k, s in enumerate(path) if k == 0 or s != path[k - 1]]
    return [s - 1 for s in joined if s]


@pytest.mark.parametrize("network", ["linear", "blstm"])
def test_loss_is_the_sum_over_all_paths(network: str) -> None:
    task = built(network)
    loss = task(layers(), TARGETS).loss
    logits = task.logits(layers())
    wanted = []
    for row, length in enumerate(LENGTHS):
        probabilities = logits.data[row, :length].double().softmax(-1)
        symbols = [s for s in TARGETS[row].tolist() if s >= 0]
        total = sum(
            torch.stack([probabilities[t, s] for t, s in enumerate(path)]).prod()
            for path in product(range(4), repeat=length)
            if collapsed(path) == symbols
        )
        wanted.append(-torch.as_tensor(total).log() / len(symbols))
    torch.testing.assert_close(loss.double(), torch.stack(wanted).mean(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("network", ["linear", "blstm"])
@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_padding_changes_nothing(network: str, value: float) -> None:
    task = built(network).eval()
    clean, padded = task(layers(), TARGETS), task(layers(value, 3), TARGETS)
    torch.testing.assert_close(clean.loss, padded.loss)
    assert torch.equal(clean.predictions, padded.predictions)
    alone = []
    for row, length in enumerate(LENGTHS):
        one = Layers(tuple(h[row : row + 1, :length] for h in layers().hidden_states), (torch.tensor([length]),) * 2)
        alone += task.decode(one)
    assert task.decode(layers(value, 3)) == alone


def test_greedy_joins_repeats_and_drops_blanks() -> None:
    path = torch.tensor([[1, 1, 0, 1, 2, 2, 3], [3, 0, 0, 3, 1, 1, 1]])
    logits = Padded(torch.nn.functional.one_hot(path, 4).float(), torch.tensor([7, 4]))
    assert greedy(logits) == [[0, 0, 1, 2], [2, 2]]


def test_error_rate_counts_all_edits_over_all_symbols() -> None:
    task = built().eval()
    counts = task(layers(), TARGETS).predictions
    assert counts[:, 1].tolist() == [3, 1, 2]
    found = task.metrics(counts, TARGETS)
    assert found["error_rate"] == pytest.approx(float(counts[:, 0].sum()) / 6)
    assert found["one_minus_error_rate"] == 1 - found["error_rate"]


def test_it_learns_symbols_that_the_frames_show() -> None:
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(0, 3, (40, 4), generator=generator)
    frames = torch.nn.functional.one_hot(targets, 5).float().repeat_interleave(2, 1)
    frames[:, 1::2] = torch.nn.functional.one_hot(torch.tensor(4), 5).float()
    given = Layers((frames, frames), (torch.full((40,), 8),) * 2)
    task = built()
    optimizer = torch.optim.Adam(task.parameters(), 0.03)
    for _ in range(150):
        optimizer.zero_grad()
        task(given, targets).loss.backward()
        optimizer.step()
    assert task.decode(given) == targets.tolist()


def test_a_clip_that_is_too_short_does_no_harm() -> None:
    task = built()
    targets = padded_symbols([[0, 1, 1], [2, 2, 2, 2, 2], [1, 0]])
    loss = task(layers(), targets).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in task.parameters())


@pytest.mark.parametrize(
    "targets",
    [torch.tensor([0, 1, 2]), torch.tensor([[0, 3], [1, 1], [1, 1]]), torch.tensor([[-1, 0], [1, 1], [1, 1]])],
)
def test_wrong_targets_are_refused(targets: torch.Tensor) -> None:
    with pytest.raises(InputError):
        built()(layers(), targets)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="network"):
        built("cnn")
    with pytest.raises(InputError, match="symbol"):
        padded_symbols([[1], []])
