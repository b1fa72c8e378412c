from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mmssl.downstream.heads import build_head
from mmssl.downstream.tasks import (
    UtteranceClassification,
    UtteranceRegression,
    UtteranceTask,
    balanced_class_weights,
    ccc_loss,
)
from mmssl.errors import ConfigError, InputError
from mmssl.interfaces.base import build_interface
from mmssl.metrics.regression import ccc
from mmssl.random import isolated_rng
from mmssl.types import Layers, StreamSpec

SPEC = StreamSpec((6, 6, 4), (320, 320, 320))
TARGETS = torch.tensor([0, 2, 1, 2])


def frames() -> Layers:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([7, 3, 11, 1])
    states = []
    for size in SPEC.hidden_sizes:
        data = torch.randn(4, 11, size, generator=generator)
        states.append(data * (torch.arange(11)[None, :, None] < lengths[:, None, None]))
    return Layers(tuple(states), (lengths,) * 3)


def pooled() -> Layers:
    layers = frames()
    means = tuple((h.sum(1) / n[:, None])[:, None] for h, n in zip(layers.hidden_states, layers.lengths, strict=True))
    return Layers(means, (torch.ones(4, dtype=torch.int64),) * 3)


def task_of(kind: type[UtteranceTask], head: str = "linear", outputs: int = 3, **kwargs) -> UtteranceTask:
    with isolated_rng(0):
        interface = build_interface("weighted_sum", SPEC)
        return kind(interface, build_head(head, interface.output_size, outputs), **kwargs)


def test_pooled_means_and_frames_give_the_same_logits_and_gradients() -> None:
    task = task_of(UtteranceClassification)
    assert task.affine
    results = []
    for layers in (frames(), pooled()):
        task.zero_grad()
        output = task(layers, TARGETS)
        output.loss.backward()
        results.append([output.predictions, *(p.grad.clone() for p in task.parameters())])
    assert len(results[0]) == 1 + 7  # weights, one projection, two linear maps
    for from_frames, from_means in zip(*results, strict=True):
        torch.testing.assert_close(from_frames, from_means, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("head", ["mlp", "attentive_stats"])
def test_heads_that_need_frames_are_not_affine(head: str) -> None:
    task = task_of(UtteranceClassification, head)
    assert not task.affine
    assert (task.predict(frames()) - task.predict(pooled())).abs().max() > 1e-4


def test_cross_entropy_and_its_weights() -> None:
    plain = task_of(UtteranceClassification)
    output = plain(frames(), TARGETS)
    assert output.count == 4
    torch.testing.assert_close(output.loss, F.cross_entropy(output.predictions, TARGETS))
    weights = torch.tensor([0.5, 1.0, 2.0])
    weighted = task_of(UtteranceClassification, class_weights=weights)
    each = -output.predictions.log_softmax(-1)[torch.arange(4), TARGETS]
    torch.testing.assert_close(weighted(frames(), TARGETS).loss, (weights[TARGETS] * each).mean())
    assert "class_weights" not in weighted.state_dict()


def test_balanced_class_weights_let_each_class_count_the_same() -> None:
    targets = [0, 0, 0, 1, 2, 2]
    weights = balanced_class_weights(targets, 3)
    torch.testing.assert_close(weights, torch.tensor([6 / 9, 2.0, 1.0]))
    torch.testing.assert_close(weights[targets].mean(), torch.tensor(1.0))
    with pytest.raises(InputError, match=r"Classes \[1\] have no clip"):
        balanced_class_weights([0, 2], 3)
    with pytest.raises(InputError, match="indices in 0 to 1"):
        balanced_class_weights([0, 2], 2)


def test_predict_gives_probabilities_in_eval_mode_and_leaves_the_mode() -> None:
    task = task_of(UtteranceClassification)
    task.head = torch.nn.Sequential(task.head, torch.nn.Dropout(0.5))
    task.train()
    first, second = task.predict(frames()), task.predict(frames())
    assert torch.equal(first, second)
    assert not first.requires_grad
    torch.testing.assert_close(first.sum(-1), torch.ones(4))
    assert task.training


def test_classification_metrics_come_from_the_scores() -> None:
    scores = torch.tensor([[2.0, 0, 0], [0, 0, 3], [0, 0, 1], [0, 0, 1]])
    metrics = task_of(UtteranceClassification).metrics(scores, TARGETS)
    assert metrics["uar"] == pytest.approx(2 / 3)
    assert metrics["wa"] == pytest.approx(3 / 4)


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_regression_losses(shape: tuple[int, ...]) -> None:
    values = torch.tensor([0.5, -1.0, 2.0, 0.0]).reshape(shape)
    task = task_of(UtteranceRegression, outputs=1)
    output = task(frames(), values)
    torch.testing.assert_close(output.loss, (output.predictions[:, 0] - values.flatten()).square().mean())
    assert task.predict(frames()).shape == (4, 1)
    agreement = task_of(UtteranceRegression, outputs=1, loss="ccc")(frames(), values)
    expected = 1 - ccc(values.flatten().numpy(), agreement.predictions[:, 0].detach().numpy())
    assert float(agreement.loss.detach()) == pytest.approx(expected, abs=1e-6)


def test_ccc_loss_of_perfect_opposite_and_single() -> None:
    values = torch.tensor([[1.0], [2.0], [4.0]])
    assert float(ccc_loss(values, values)) == pytest.approx(0, abs=1e-6)
    assert float(ccc_loss(-values + 14 / 3, values)) == pytest.approx(2, abs=1e-6)
    single = torch.tensor([[1.0]], requires_grad=True)
    loss = ccc_loss(single, torch.tensor([[3.0]]))
    loss.backward()
    assert float(loss.detach()) == 1
    assert float(single.grad) == 0


def test_several_values_per_clip() -> None:
    values = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    task = task_of(UtteranceRegression, outputs=2)
    metrics = task.metrics(values * 2, values)
    assert metrics["pearson"] == pytest.approx(1)
    assert metrics["ccc"] < 0.95


def test_mistakes_are_named() -> None:
    task = task_of(UtteranceClassification)
    for targets in (torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, -1, 0])):
        with pytest.raises(InputError, match="0 to 2"):
            task(frames(), targets)
    with pytest.raises(InputError, match="integer class indices"):
        task(frames(), TARGETS.float())
    with pytest.raises(InputError, match="4 clips and 3 targets"):
        task(frames(), TARGETS[:3])
    with pytest.raises(ConfigError, match="3 positive numbers"):
        task_of(UtteranceClassification, class_weights=[1.0, 2.0])
    with pytest.raises(ConfigError, match=r"width 5, the interface gives 6"):
        UtteranceClassification(build_interface("weighted_sum", SPEC), build_head("linear", 5, 3))
    with pytest.raises(ConfigError, match="'mse' or 'ccc'"):
        task_of(UtteranceRegression, outputs=1, loss="mae")
    with pytest.raises(InputError, match="NaN or infinity"):
        task_of(UtteranceRegression, outputs=1)(frames(), torch.tensor([0.0, float("nan"), 1.0, 1.0]))
