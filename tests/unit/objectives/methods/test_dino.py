"""DINO: the loss against lightly, the pairs of views, the teacher, three steps, bad settings."""

from __future__ import annotations

import math

import pytest
import torch
from lightly.loss import DINOLoss
from torch.nn import functional as F

from mmssl.errors import ConfigError, InputError
from mmssl.objectives.methods.dino import dino, view_pairs
from mmssl.objectives.objective import Objective
from mmssl.objectives.projectors import DinoHead
from mmssl.objectives.targets.other_view import TeacherView, pooled
from mmssl.objectives.types import Examples
from mmssl.types import Inputs
from mmssl.upstreams.base import Upstream
from mmssl.upstreams.speech_transformer import SpeechTransformer
from mmssl.upstreams.torchvision_models import TorchvisionImage
from mmssl.upstreams.vit_mae import MAE

OUTPUTS = 20


def upstream(name: str = "vit") -> Upstream:
    torch.manual_seed(0)
    if name == "vit":
        return MAE("tiny", hidden_size=24, num_layers=2, num_heads=2, feed_forward_size=32, patch_size=4, image_size=16)
    return TorchvisionImage("resnet18", layers=["maxpool", "layer1"], image_size=16)


def build(name: str = "vit", **options: object) -> Objective:
    torch.manual_seed(1)
    sizes = {"num_outputs": OUTPUTS, "hidden_size": 32, "bottleneck_size": 8, "num_local": 2, "decay_steps": 10}
    return dino(upstream(name), **{"health_every": 1, **sizes, **options})  # type: ignore[arg-type]


def batch(count: int = 4, shift: int = 0) -> Examples:
    images = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(shift))
    return Examples(Inputs(images=images), seeds=tuple(range(shift, shift + count)))


def parts(objective: Objective) -> tuple[DinoHead, TeacherView]:
    head, target = objective.terms[0].head, objective.terms[0].target
    assert isinstance(head, DinoHead)
    assert isinstance(target, TeacherView)
    return head, target


def test_every_view_is_paired_with_every_other_global_view() -> None:
    assert view_pairs(2) == [(0, 1), (1, 0)]
    assert view_pairs(4) == [(0, 1), (1, 0), (2, 0), (2, 1), (3, 0), (3, 1)]
    assert set(build(num_local=3).terms[0].pairs) == set(view_pairs(5))


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_losses_and_centres_of_three_steps_are_those_of_lightly(name: str) -> None:
    objective = build(name, warmup_temperature=0.04, teacher_temperature=0.07, warmup_steps=2).train()
    head, target = parts(objective)
    theirs = DINOLoss(OUTPUTS, warmup_teacher_temp=0.04, teacher_temp=0.07, warmup_teacher_temp_epochs=3)
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.1)
    for step in range(3):
        examples = batch(shift=4 * step)
        views = objective.views(examples, objective.encoder, torch.Generator())
        student = [head(pooled(objective.encoder.encode(v)["image"])) for v in views]
        with torch.no_grad():
            assert target.teacher is not None
            assert target.teacher_head is not None
            for module in (target.teacher.model, target.teacher_head.model):
                for part in module.modules():
                    part.training = isinstance(part, torch.nn.BatchNorm2d)
            copy = target.teacher.model
            teacher = [target.teacher_head.model(pooled(copy.encode(v)["image"])) for v in views[:2]]
        expected = theirs(teacher, student, epoch=step)
        output = objective(examples, step)
        assert torch.allclose(output.loss, expected, atol=1e-4), step
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        objective.after_step(step)
        assert torch.allclose(objective.terms[0].loss.center, theirs.center.flatten(), atol=1e-5)


def test_the_loss_at_the_start_is_near_that_of_a_flat_student() -> None:
    output = build(student_temperature=1.0, bottleneck_size=64)(batch(16), 0)
    assert float(output.logs["distillation/ln_n"]) == pytest.approx(math.log(OUTPUTS))
    assert abs(float(output.logs["loss"]) / math.log(OUTPUTS) - 1) < 0.1
    names = ("teacher_entropy", "divergence", "representation_rank", "target_spread", "prediction_spread")
    assert {f"distillation/{n}" for n in names} <= set(output.logs)


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_three_steps_train_the_student_and_move_the_teacher(name: str) -> None:
    objective = build(name, decay=(0.5, 0.5)).train()
    _, target = parts(objective)
    assert target.teacher is not None
    trained = {n: p for n, p in objective.named_parameters() if p.requires_grad}
    assert not any("target" in n for n in trained)
    weights = dict(target.teacher.model.named_parameters())
    before = {n: p.clone() for n, p in weights.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-3)
    touched = set()
    for step in range(3):
        output = objective(batch(), step)
        optimizer.zero_grad()
        output.loss.backward()
        touched |= {n for n, p in trained.items() if p.grad is not None and p.grad.abs().max() > 0}
        frozen = {n: p.clone() for n, p in weights.items()}
        optimizer.step()
        assert all(torch.equal(frozen[n], p) for n, p in weights.items())
        objective.after_step(step)
        assert all(torch.isfinite(value).all() for value in output.logs.values())
    assert touched == set(trained), set(trained) - touched
    assert all(not torch.equal(before[n], p) for n, p in weights.items())
    assert target.teacher.distance(objective.encoder) > 0
    saved = objective.state_dict()
    assert any(key.startswith("terms.0.target.teacher_head.model.") for key in saved)


def test_the_last_layer_is_frozen_in_the_first_epochs() -> None:
    objective = build(frozen_epochs=1)
    head, _ = parts(objective)
    objective.before_epoch(0)
    objective(batch(), 0).loss.backward()
    assert not head.directions.grad.any()  # type: ignore[union-attr]
    twin = build(frozen_epochs=1)
    twin.load_state_dict(objective.state_dict())  # as after a kill in the middle of the epoch
    assert bool(parts(twin)[0].frozen)
    objective.before_epoch(1)
    objective(batch(), 0).loss.backward()
    assert head.directions.grad.any()  # type: ignore[union-attr]


def test_local_views_are_smaller_and_only_the_student_sees_them() -> None:
    objective = build(num_local=3)
    sizes: list[tuple[int, int]] = []
    _, target = parts(objective)
    assert target.teacher is not None
    model = target.teacher.model
    model.upstream.encoder.patch_embed.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[-1]))
    views = objective.views(batch(), objective.encoder, torch.Generator())
    assert [v.inputs.images.shape[-1] for v in views] == [16, 16, 8, 8, 8]
    objective(batch(), 0)
    assert sizes == [16, 16]


def test_a_collapse_shows_in_the_logs() -> None:
    objective = build()
    head, target = parts(objective)
    for module in (head, target.teacher_head.model):  # type: ignore[union-attr]
        module.mlp[4].weight.data.zero_()
        module.mlp[4].bias.data.fill_(1.0)
    logs = objective(batch(), 0).logs
    assert float(logs["distillation/target_spread"]) < 1e-6
    assert float(logs["distillation/target_rank"]) == 0


def test_cross_entropy_of_one_pair_by_hand() -> None:
    loss = build().terms[0].loss
    student, teacher = torch.randn(5, OUTPUTS), torch.randn(5, OUTPUTS)
    loss.center.normal_()
    p = F.softmax((teacher - loss.center) / 0.04, dim=1)
    expected = -(p * F.log_softmax(student / 0.1, dim=1)).sum(1).mean()
    assert torch.allclose(loss(student, teacher).loss, expected, rtol=1e-5)


def test_batch_norm_in_the_head_tells_clips_apart_at_the_start() -> None:
    spread = {}
    for batch_norm in (False, True):
        objective = build(batch_norm=batch_norm).train()
        logs = objective(batch(16), 0).logs
        spread[batch_norm] = float(logs["distillation/target_spread"]) / float(logs["distillation/target_size"])
        head, target = parts(objective)
        norms = [m for m in head.modules() if isinstance(m, torch.nn.BatchNorm1d)]
        assert len(norms) == 2 * batch_norm
        # the teacher's own statistics are those of the batch, and its buffers stay as they were
        assert target.teacher_head is not None
        copies = [m for m in target.teacher_head.model.modules() if isinstance(m, torch.nn.BatchNorm1d)]
        assert all(m.num_batches_tracked is not None and not m.num_batches_tracked.any() for m in copies)
    assert spread[True] > spread[False]
    with pytest.raises(InputError, match="at least 2 clips"):
        build(batch_norm=True).train()(batch(1), 0)


def test_the_last_layer_turns_as_fast_as_that_of_the_authors() -> None:
    head = parts(build(num_outputs=2000, bottleneck_size=64))[0]
    theirs = torch.nn.Linear(64, 2000, bias=False).weight
    assert torch.allclose(head.directions.norm(dim=1).mean(), theirs.norm(dim=1).mean(), rtol=0.02)


def test_bad_settings_and_batches_are_refused() -> None:
    for options in (
        {"num_local": -1},
        {"frozen_epochs": -1},
        {"local_size": 10},
        {"num_outputs": 1},
        {"teacher_temperature": 0.0},
        {"decay_steps": 0},
        {"global_scale": (0.5, 2.0)},
        {"center_momentum": 2.0},
    ):
        with pytest.raises(ConfigError):
            build(**options)
    with pytest.raises(ConfigError, match="encoder of pictures"):
        dino(SpeechTransformer("wav2vec2_tiny"))
    with pytest.raises(InputError, match="has none"):
        build()(Examples(Inputs()), 0)
