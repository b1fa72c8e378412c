from __future__ import annotations

import pytest
import torch
from torch import nn

from mmssl.downstream.heads import AttentiveStats, Linear
from mmssl.downstream.tasks import UtteranceClassification
from mmssl.errors import ConfigError, InputError
from mmssl.interfaces.base import Interface, build_interface
from mmssl.probing.data import ProbeData
from mmssl.probing.fit_many import Run, fit_many
from mmssl.probing.groups import Order
from mmssl.probing.plan import flat_weights, plan_of, state_from
from mmssl.probing.sweep import sweep_heads
from mmssl.training.batches import StepStream, TensorBatches
from mmssl.types import StreamSpec

STREAM = StreamSpec((8, 8, 8), (1, 1, 1))
TRAIN, DEV = torch.arange(80), torch.arange(80, 120)


def task(interface: str = "weighted_sum", head: type = Linear, **arguments: object) -> UtteranceClassification:
    built = build_interface(interface, STREAM, **arguments)
    return UtteranceClassification(built, head(built.output_size, 3))


def test_plans() -> None:
    plan = plan_of(task())
    assert plan is not None
    assert (plan.layers, plan.learned, plan.relu, plan.loss) == ((0, 1, 2), True, False, "cross_entropy")
    single = plan_of(task("layer", layer=-2))
    assert single is not None
    assert (single.layers, single.learned) == ((1,), False)


def test_what_is_not_known_to_be_a_sum_has_no_plan() -> None:
    class Scaled(Linear):
        """A subclass may compute anything."""

    assert plan_of(task(head=AttentiveStats)) is None
    assert plan_of(task(head=Scaled)) is None
    assert plan_of(task("weighted_sum", normalize=True)) is None
    assert plan_of(task("hierarchical_conv")) is None
    assert plan_of(nn.Linear(3, 3)) is None
    unequal: Interface = build_interface("weighted_sum", StreamSpec((8, 6), (1, 1)))
    assert plan_of(UtteranceClassification(unequal, Linear(8, 3))) is None


def test_rows_and_state_dicts_are_inverse() -> None:
    one, other = task(), task()
    plan = plan_of(one)
    assert plan is not None
    row, fixed = flat_weights(one, plan, plan.layers)
    assert bool(fixed.isnan().all())
    assert len(row) == sum(p.numel() for p in one.parameters())
    other.load_state_dict(state_from(row, other, plan, len(plan.layers)))
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_order_is_that_of_the_ordinary_trainer(data: ProbeData) -> None:
    part = TensorBatches(*data.batches.batch(TRAIN))
    part.targets = torch.arange(80)
    order = Order(80, seed=5)
    for _, places in StepStream(part, batch_size=24, steps=11, seed=5):
        assert torch.equal(order.next(24), places)


def test_global_generators_are_left_alone(data: ProbeData) -> None:
    state = torch.get_rng_state()
    list(fit_many([Run(task, TRAIN, DEV, 1e-3)], data.batches, max_steps=2))
    assert torch.equal(torch.get_rng_state(), state)


def test_mistakes_are_explained(data: ProbeData) -> None:
    good = Run(task, TRAIN, DEV, 1e-3)
    with pytest.raises(ConfigError, match="cannot be stacked"):
        list(fit_many([Run(lambda: task(head=AttentiveStats), TRAIN, DEV, 1e-3)], data.batches))
    with pytest.raises(InputError, match="train part"):
        list(fit_many([Run(task, TRAIN[:0], DEV, 1e-3)], data.batches))
    with pytest.raises(InputError, match=r"dev part .* from 80 to 120"):
        list(fit_many([Run(task, TRAIN, torch.arange(80, 121), 1e-3)], data.batches))
    with pytest.raises(ConfigError, match="learning_rate must be above 0"):
        list(fit_many([Run(task, TRAIN, DEV, 0.0)], data.batches))
    with pytest.raises(ConfigError, match="max_steps must be above 0"):
        list(fit_many([good], data.batches, max_steps=0))
    with pytest.raises(ConfigError, match="'adam' or 'adamw'"):
        list(fit_many([good], data.batches, optimizer="sgd"))
    with pytest.raises(ConfigError, match="dev_loss, dev_uar"):
        list(fit_many([good], data.batches, max_steps=1, monitor="dev_eer"))
    with pytest.raises(ConfigError, match="'batched' or 'lightning'"):
        sweep_heads(task, data.batches, data.batches, engine="fast")


def test_a_sweep_is_that_of_the_ordinary_trainer(data: ProbeData) -> None:
    train, dev = (TensorBatches(*data.batches.batch(index)) for index in (TRAIN, DEV))
    settings = {"learning_rates": (1e-3, 1e-2), "max_steps": 20, "eval_every": 5}
    one, other = (sweep_heads(task, train, dev, engine=engine, **settings) for engine in ("batched", "lightning"))
    assert one.learning_rate == other.learning_rate
    for row, reference in zip(one.table, other.table, strict=True):
        assert row == pytest.approx(reference, abs=1e-5)
    assert one.best.history == [pytest.approx(row, abs=1e-5) for row in other.best.history]
