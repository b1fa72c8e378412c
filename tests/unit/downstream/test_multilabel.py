"""Several labels per clip: the loss by hand, and learning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from mmssl.downstream.heads import build_head
from mmssl.downstream.multilabel import UtteranceMultiLabel
from mmssl.errors import InputError
from mmssl.interfaces.base import build_interface
from mmssl.random import isolated_rng
from mmssl.training.fit import fit, predict
from mmssl.types import Layers, StreamSpec

SPEC = StreamSpec((8, 8), (1, 1))


def task_of(labels: int = 3) -> UtteranceMultiLabel:
    with isolated_rng(0):
        interface = build_interface("weighted_sum", SPEC)
        return UtteranceMultiLabel(interface, build_head("linear", interface.output_size, labels))


def clips(count: int, seed: int) -> list[tuple[Layers, torch.Tensor]]:
    """Clips of one frame whose first dimensions say which labels they have."""
    generator = torch.Generator().manual_seed(seed)
    items = []
    for _ in range(count):
        target = (torch.rand(3, generator=generator) < 0.4).float()
        rows = [torch.cat([target, torch.zeros(5)]) + 0.3 * torch.randn(8, generator=generator) for _ in range(2)]
        items.append((Layers(tuple(r[None] for r in rows), (torch.tensor(1),) * 2), target))
    return items


def test_the_loss_is_that_of_the_formula() -> None:
    task = task_of()
    layers = Layers((torch.randn(4, 5, 8),) * 2, (torch.tensor([5, 3, 1, 4]),) * 2)
    targets = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    output = task(layers, targets)
    p = 1 / (1 + np.exp(-output.predictions.detach().double().numpy()))
    y = targets.numpy()
    assert output.loss.item() == pytest.approx(-(y * np.log(p) + (1 - y) * np.log(1 - p)).mean(), rel=1e-5)
    torch.testing.assert_close(task.predict(layers), torch.from_numpy(p).float())
    found = task.metrics(output.predictions.detach(), targets)
    assert found["map"] == pytest.approx(average_precision_score(y, p))
    # a label that no clip has is left out; without any there is no score
    assert task.metrics(output.predictions.detach(), torch.zeros(4, 3)) == {"map": 0.0, "auc": 0.0}


def test_it_learns() -> None:
    task = task_of()
    result = fit(task, clips(60, 0), clips(30, 1), learning_rate=3e-2, max_steps=40, eval_every=20)  # type: ignore[arg-type]
    assert (result.monitor, result.best_score > 0.9) == ("dev_map", True)
    answers, truth = predict(task, clips(30, 2))  # type: ignore[arg-type]
    assert average_precision_score(truth.numpy(), answers.numpy()) > 0.9


def test_bad_targets() -> None:
    task = task_of()
    layers = Layers((torch.randn(2, 1, 8),) * 2, (torch.ones(2, dtype=torch.int64),) * 2)
    with pytest.raises(InputError, match=r"\(B, 3\)"):
        task(layers, torch.tensor([0, 1]))
    with pytest.raises(InputError, match="must be 1"):
        task(layers, torch.full((2, 3), 0.5))
