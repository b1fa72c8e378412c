"""Heads trained together equal heads trained one by one with Lightning, in every number that a run gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mmssl.downstream.heads import build_head
from mmssl.downstream.tasks import UtteranceClassification, UtteranceRegression
from mmssl.interfaces.base import build_interface
from mmssl.probing.fit_many import Run, Trained, fit_many
from mmssl.training.batches import TensorBatches
from mmssl.training.fit import FitResult, fit
from mmssl.types import Layers, StreamSpec

LAYERS, WIDTH, CLASSES, CLIPS = 3, 6, 4, 75
STANDARDIZED = "mmssl.interfaces.standardized.Standardized"


def corpus(dtype: torch.dtype = torch.float64, regression: bool = False) -> TensorBatches:
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(CLIPS) % CLASSES
    centres = torch.randn(CLASSES, WIDTH, generator=generator)
    rows = [
        (centres[labels] + (1 + k) * torch.randn(CLIPS, WIDTH, generator=generator)).to(dtype)[:, None]
        for k in range(LAYERS)
    ]
    ones = (torch.ones(CLIPS, dtype=torch.int64),) * LAYERS
    targets = rows[1][:, 0, 0].float() + 0.5 * labels if regression else labels
    return TensorBatches(Layers(tuple(rows), ones), targets)


def builder(
    interface: str = "weighted_sum",
    head: str = "linear",
    *,
    regression: str | None = None,
    weights: bool = False,
    moments: tuple[list[Tensor], list[Tensor]] | None = None,
    dtype: torch.dtype = torch.float64,
    **arguments: object,
) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        stream = StreamSpec((WIDTH,) * LAYERS, (320,) * LAYERS)
        name, own = interface, dict(arguments)
        if moments is not None:
            name, own = STANDARDIZED, {"interface": interface, "statistics": "mean", "arguments": arguments}
        built = build_interface(name, stream, **own)
        if moments is not None:
            built.set_statistics(*moments)
        outputs = 1 if regression else CLASSES
        made = build_head(head, built.output_size, outputs, hidden_size=5)
        if regression:
            return UtteranceRegression(built, made, regression).to(dtype)
        fixed = torch.tensor([0.5, 1.0, 1.5, 2.0]) if weights else None
        return UtteranceClassification(built, made, fixed).to(dtype)

    return build


def part(clips: TensorBatches, index: Tensor) -> TensorBatches:
    layers, targets = clips.batch(index)
    return TensorBatches(layers, targets)


def one_by_one(run: Run, clips: TensorBatches, **settings: object) -> FitResult:
    from mmssl.random import isolated_rng

    with isolated_rng(run.seed):
        task = run.build()
    own = {"learning_rate": run.learning_rate, "weight_decay": run.weight_decay, "seed": run.seed}
    return fit(task, part(clips, run.train), part(clips, run.dev), **own, **settings)  # type: ignore[arg-type]


def assert_equal(trained: Trained, reference: FitResult, atol: float) -> None:
    own = trained.fit
    assert own is not None
    assert [row["step"] for row in own.history] == [row["step"] for row in reference.history]
    for row, other in zip(own.history, reference.history, strict=True):
        assert row.keys() == other.keys()
        assert row == pytest.approx(other, abs=max(atol, 1e-6))
    assert (own.best_step, own.stopped_early, own.monitor) == (
        reference.best_step,
        reference.stopped_early,
        reference.monitor,
    )
    assert own.state_dict.keys() == reference.state_dict.keys()
    for name, value in reference.state_dict.items():
        torch.testing.assert_close(own.state_dict[name], value, atol=atol, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
        torch.testing.assert_close(trained.task.state_dict()[name], value, atol=atol, rtol=0)


FOLDS = ((torch.arange(0, 50), torch.arange(50, 62)), (torch.arange(13, 75), torch.arange(0, 13)))


@pytest.mark.parametrize(
    ("kinds", "settings"),
    [
        ({}, {}),
        ({"weights": True}, {"optimizer": "adamw"}),
        ({"head": "mlp"}, {"grad_clip": 0.05}),
        ({"interface": "last_layer"}, {"grad_clip": None}),
        ({"interface": "concat"}, {"batch_size": 3}),
        ({"regression": "mse"}, {"grad_clip": 0.3}),
        ({"regression": "ccc", "head": "mlp"}, {}),
    ],
    ids=["weighted sum", "class weights, adamw", "mlp, clipped", "last layer", "concat, small batch", "mse", "ccc"],
)
def test_every_head_equals_the_ordinary_trainer(kinds: dict, settings: dict) -> None:
    clips = corpus(regression="regression" in kinds)
    build = builder(**kinds)
    runs = [
        Run(build, train, dev, rate, decay, seed)
        for train, dev in FOLDS
        for seed in (0, 1)
        for rate, decay in ((1e-3, 0.0), (3e-2, 0.1))
    ]
    common = {"max_steps": 30, "batch_size": 16, "eval_every": 4, "patience": 3, **settings}
    together = list(fit_many(runs, clips, **common))
    for run, trained in zip(runs, together, strict=True):
        # the CCC of float32 targets is computed in float32 by the ordinary task
        assert_equal(trained, one_by_one(run, clips, **common), 1e-6 if kinds.get("regression") == "ccc" else 1e-9)


def test_in_float32_as_close_as_rounding_allows() -> None:
    clips, build = corpus(torch.float32), builder(dtype=torch.float32)
    train, dev = FOLDS[0]
    runs = [Run(build, train, dev, rate) for rate in (1e-4, 1e-3, 1e-2)]
    common = {"max_steps": 60, "batch_size": 16, "patience": None}
    for run, trained in zip(runs, fit_many(runs, clips, **common), strict=True):
        assert_equal(trained, one_by_one(run, clips, **common), 1e-5)


def test_heads_that_stop_leave_the_others_as_they_were() -> None:
    clips, build = corpus(), builder()
    # very unequal rates: some heads stop at once, others late, in both folds
    runs = [Run(build, *fold, rate) for fold in FOLDS for rate in (1e-6, 1e-3, 1e-2, 3e-2, 0.3)]
    common = {"max_steps": 80, "batch_size": 16, "eval_every": 2, "patience": 2}
    together = list(fit_many(runs, clips, **common))
    lasts = [trained.fit.history[-1]["step"] for trained in together]
    assert len(set(lasts)) > 3, lasts
    for run, trained in zip(runs, together, strict=True):
        assert_equal(trained, one_by_one(run, clips, **common), 1e-9)


def test_memory_limit_and_neighbours_change_nothing() -> None:
    clips, build = corpus(), builder()
    runs = [Run(build, *fold, rate, 0.0, seed) for fold in FOLDS for seed in (0, 1) for rate in (1e-3, 1e-2)]
    common = {"max_steps": 12, "batch_size": 16}
    whole = list(fit_many(runs, clips, **common))
    for limit in (1, 20_000):
        for one, other in zip(whole, fit_many(runs, clips, max_bytes=limit, **common), strict=True):
            assert_equal(one, other.fit, 1e-12)


def test_a_layer_scan_shares_its_batches_with_learned_weights() -> None:
    clips = corpus()
    moments = [torch.full((WIDTH,), 0.3)] * LAYERS, [torch.full((WIDTH,), 1.7)] * LAYERS
    train, dev = FOLDS[0]
    builders = [builder("layer", layer=k, moments=moments) for k in range(LAYERS)]
    runs = [Run(b, train, dev, rate) for b in [*builders, builder(moments=moments)] for rate in (1e-3, 1e-2)]
    common = {"max_steps": 20, "batch_size": 16}
    for run, trained in zip(runs, fit_many(runs, clips, **common), strict=True):
        assert_equal(trained, one_by_one(run, clips, **common), 1e-9)


def test_a_diverging_head_is_marked_and_harms_no_other() -> None:
    clips, build = corpus(regression=True), builder(regression="mse")
    train, dev = FOLDS[0]
    runs = [Run(build, train, dev, rate) for rate in (1e-3, 1e200, 1e-2)]
    common = {"max_steps": 20, "batch_size": 16}
    first, wild, last = fit_many(runs, clips, **common)
    assert wild.fit is None
    assert_equal(first, one_by_one(runs[0], clips, **common), 1e-9)
    assert_equal(last, one_by_one(runs[2], clips, **common), 1e-9)
