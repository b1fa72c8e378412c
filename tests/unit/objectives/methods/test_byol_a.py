"""BYOL-A: the loss by hand, the loss at the start, three steps, the teacher, corpus statistics, and that it learns."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmssl.errors import ConfigError, DataError, InputError
from mmssl.objectives.methods.byol_a import byol_a, log_mel_statistics
from mmssl.objectives.objective import Objective
from mmssl.objectives.targets.other_view import TeacherView, pooled
from mmssl.objectives.types import Examples
from mmssl.types import Inputs, Padded
from mmssl.upstreams.byol_a import ByolA
from mmssl.upstreams.vit_mae import MAE

RATE = 16000


def build(**options: object) -> Objective:
    torch.manual_seed(0)
    upstream = ByolA(hidden_size=24, num_mel_bins=16)
    upstream.fc[2].p = 0.0
    sizes = {"hidden_size": 32, "size": 16, "frames": 16, "health_every": 1}
    return byol_a(upstream, **{**sizes, **options})  # type: ignore[arg-type]


def batch(count: int = 6) -> Examples:
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(count, 4000, generator=generator) * 0.1
    data = data * torch.linspace(0.2, 1, count)[:, None]
    lengths = torch.randint(1500, 4000, (count,), generator=generator)
    return Examples(Inputs(waveforms=Padded(data, lengths)), seeds=tuple(range(count)))


def test_the_loss_is_the_sum_of_both_directions() -> None:
    objective = build().train()
    head = objective.terms[0].head
    assert isinstance(head, nn.Sequential)
    projector, predictor = head
    one, two = objective.views(batch(), objective.encoder, torch.Generator())
    student = copy.deepcopy(objective.encoder).train()
    rows = [projector(pooled(student.encode(v)["audio"])) for v in (one, two)]
    # at the first step the teacher equals the student
    guesses = [F.normalize(predictor(r), dim=1) for r in rows]
    truths = [F.normalize(r, dim=1) for r in rows]
    expected = sum((2 - 2 * (g * t).sum(1)).mean() for g, t in zip(guesses, (truths[1], truths[0]), strict=True))
    assert torch.allclose(objective(batch(), 0).loss, torch.as_tensor(expected), atol=1e-4)


def test_the_loss_at_the_start_is_that_of_vectors_that_know_nothing_of_each_other() -> None:
    logs = build(size=128, hidden_size=128)(batch(16), 0).logs
    assert abs(float(logs["prediction/loss"]) - 2) < 0.5
    names = ("cosine", "representation_rank", "representation_spread", "target_spread", "prediction_spread")
    assert {f"prediction/{n}" for n in names} <= set(logs)
    assert float(logs["loss"]) == pytest.approx(2 * float(logs["prediction/loss"]))


def test_three_steps_train_the_student_alone_and_the_teacher_follows() -> None:
    objective = build(decay=0.5).train()
    target = objective.terms[0].target
    assert isinstance(target, TeacherView)
    assert target.teacher is not None
    assert target.teacher_head is not None
    trained = {n: p for n, p in objective.named_parameters() if p.requires_grad}
    assert not any("target" in n for n in trained)
    assert len(list(target.teacher_head.parameters())) == 5  # of the projector: the predictor has no teacher
    before = [p.clone() for p in target.parameters()]
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-3)
    losses, touched = [], set()
    for step in range(3):
        output = objective(batch(), step)
        optimizer.zero_grad()
        output.loss.backward()
        touched |= {n for n, p in trained.items() if p.grad is not None and p.grad.abs().max() > 0}
        held = [p.clone() for p in target.parameters()]
        optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(held, target.parameters(), strict=True))
        objective.after_step(step)
        losses.append(float(output.logs["loss"]))
    assert losses[2] < losses[0]
    assert touched == set(trained), set(trained) - touched
    assert all(not torch.equal(a, b) for a, b in zip(before, target.parameters(), strict=True))


def test_padding_cannot_reach_the_loss() -> None:
    objective = build().train()
    examples = batch()
    padded = examples.inputs.waveforms
    assert padded is not None
    dirty = padded.data.masked_fill(~padded.mask, 9.0)
    other = Examples(Inputs(waveforms=Padded(dirty, padded.lengths)), seeds=examples.seeds)
    assert torch.equal(objective(examples, 0).loss, objective(other, 0).loss)
    longer = Padded(F.pad(padded.data, (0, 777)), padded.lengths)
    again = Examples(Inputs(waveforms=longer), seeds=examples.seeds)
    assert torch.equal(objective(examples, 0).loss, objective(again, 0).loss)


def test_statistics_of_a_corpus() -> None:
    upstream = ByolA(hidden_size=24, num_mel_bins=16)
    waves = [torch.randn(n) * 0.1 for n in (3000, 100, 5000)]
    mean, std = log_mel_statistics(upstream, waves)
    values = torch.cat([upstream.log_mel(w[None])[0] for w in (waves[0], waves[2])])
    assert mean == pytest.approx(float(values.mean()), abs=1e-4)
    assert std == pytest.approx(float(values.std()), rel=1e-3)
    for bad in ([], [torch.zeros(100)], [torch.zeros(4000)]):
        with pytest.raises(DataError, match="no spread"):
            log_mel_statistics(upstream, bad)


def test_bad_settings_and_batches_are_refused() -> None:
    for options in ({"frames": 4}, {"mixup": 2.0}, {"decay": 1.5}, {"fader": -1.0}, {"size": 0}):
        with pytest.raises(ConfigError):
            build(**options)
    with pytest.raises(ConfigError, match="trains byol_a"):
        byol_a(MAE("tiny"))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 2 clips"):
        build().train()(batch(1), 0)
    with pytest.raises(InputError, match="at least 2 clips"):
        build(mixup=0.0).train()(batch(1), 0)
    with pytest.raises(InputError, match="has none"):
        build()(Examples(Inputs(images=torch.rand(2, 3, 8, 8))), 0)
