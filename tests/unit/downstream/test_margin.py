from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from mmssl.downstream.margin import (
    MarginSoftmax,
    SupervisedContrastive,
    add_angle,
    margin_at,
    safe_sine,
    subtract_angle,
)
from mmssl.errors import ConfigError, InputError


def example(batch: int = 6, size: int = 5, classes: int = 7, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(batch, size, generator=generator, dtype=dtype)
    return embeddings, torch.randint(classes, (batch,), generator=generator)


def by_hand(loss: MarginSoftmax, embeddings: torch.Tensor, targets: torch.Tensor) -> float:
    """The loss from angles, one number at a time."""
    total = 0.0
    for x, y in zip(embeddings.tolist(), targets.tolist(), strict=True):
        angles = []
        for c in range(loss.num_classes):
            rows = loss.weight.tolist()[c * loss.sub_centers : (c + 1) * loss.sub_centers]
            cosines = [sum(a * b for a, b in zip(x, w, strict=True)) / math.hypot(*x) / math.hypot(*w) for w in rows]
            angles.append(math.acos(max(cosines)))
        wrong = sorted((a, c) for c, a in enumerate(angles) if c != y)[: loss.top_k]
        logits = [math.cos(a) for a in angles]
        m, p = loss.margin, loss.top_penalty
        for angle, c in wrong:
            if loss.kind == "am":
                logits[c] += p
            else:
                logits[c] = math.cos(angle - p) if angle > p else math.cos(angle) + 1 - math.cos(p)
        if loss.kind == "am":
            logits[y] -= m
        else:
            bent = math.cos(angles[y]) - 1 - math.cos(math.pi - m)
            logits[y] = math.cos(angles[y] + m) if angles[y] + m < math.pi else bent
        largest = max(logits)
        total += loss.scale * (largest - logits[y])
        total += math.log(sum(math.exp(loss.scale * (v - largest)) for v in logits))
    return total / len(targets)


@pytest.mark.parametrize("kind", ["am", "aam"])
@pytest.mark.parametrize(("sub_centers", "top_k"), [(1, 0), (3, 0), (1, 2), (3, 4)])
@pytest.mark.parametrize("margin", [0.0, 0.2, 1.2])
def test_equals_the_loss_written_out(kind: str, sub_centers: int, top_k: int, margin: float) -> None:
    loss = MarginSoftmax(5, 7, kind, margin, 30.0, sub_centers, top_k).double()
    embeddings, targets = example()
    out = loss(embeddings, targets)
    assert out.loss.item() == pytest.approx(by_hand(loss, embeddings, targets), rel=1e-10)
    assert out.count == 6
    if not margin and not top_k:
        assert out.loss.item() == pytest.approx(F.cross_entropy(out.predictions, targets).item())
    torch.testing.assert_close(out.predictions, 30 * loss.cosines(embeddings))


def test_without_margin_softmax_is_a_linear_classifier() -> None:
    loss = MarginSoftmax(5, 7, "softmax")
    embeddings, targets = example(dtype=torch.float32)
    expected = F.cross_entropy(embeddings @ loss.weight.t() + loss.bias, targets)
    torch.testing.assert_close(loss(embeddings, targets).loss, expected)


@pytest.mark.parametrize("margin", [0.06, 0.2, 0.5, 1.5])
def test_turned_cosines_fall_without_a_jump(margin: float) -> None:
    angles = torch.linspace(0, math.pi, 20001, dtype=torch.float64)
    for turned in (add_angle(angles.cos(), margin), subtract_angle(angles.cos(), margin)):
        steps = turned.diff()
        assert (steps <= 1e-12).all()
        assert steps.abs().max() < 2 * math.pi / 20000
    before = angles < math.pi - margin - 1e-6
    torch.testing.assert_close(add_angle(angles.cos(), margin)[before], (angles + margin).cos()[before])
    after = angles > margin + 1e-6
    torch.testing.assert_close(subtract_angle(angles.cos(), margin)[after], (angles - margin).cos()[after])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("top_k", [0, 2])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gradients_are_finite_at_both_ends(dtype: torch.dtype, top_k: int, sign: float) -> None:
    loss = MarginSoftmax(4, 3, "aam", 0.3, top_k=top_k).to(dtype)
    with torch.no_grad():
        loss.weight.copy_(torch.eye(3, 4))
        loss.weight[1] = -loss.weight[0]
    # exactly on a centre, exactly opposite, a zero vector, and scaled copies that rounding may put outside [-1, 1]
    embeddings = sign * torch.stack([loss.weight[0], 3.7 * loss.weight[0], 0 * loss.weight[0], 1e-30 * loss.weight[2]])
    embeddings = embeddings.detach().requires_grad_()
    out = loss(embeddings, torch.tensor([0, 1, 0, 2]))
    out.loss.backward()
    assert out.loss.isfinite()
    assert embeddings.grad.isfinite().all()
    assert loss.weight.grad.isfinite().all()


def test_the_sine_is_safe_and_exact() -> None:
    ends = torch.tensor([1.0, -1.0, 1.0 + 1e-6, -1.0 - 1e-6], requires_grad=True)
    safe_sine(ends).sum().backward()
    assert not safe_sine(ends).any()
    assert not ends.grad.any()
    angle = torch.tensor([3e-3, 0.5, 2.0, math.pi - 3e-3], dtype=torch.float64)
    torch.testing.assert_close(safe_sine(angle.cos()), angle.sin(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("kind", ["am", "aam"])
def test_gradients_equal_finite_differences(kind: str) -> None:
    loss = MarginSoftmax(5, 7, kind, 0.4, 4.0, 2, 3).double()
    embeddings, targets = example()
    embeddings.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, targets).loss, embeddings)


def test_half_precision_is_computed_in_float32() -> None:
    loss = MarginSoftmax(5, 7)
    embeddings, targets = example(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        under = loss(embeddings, targets)
    assert under.loss.dtype == torch.float32
    assert under.loss.item() == loss(embeddings, targets).loss.item()
    half = loss(embeddings.bfloat16(), targets).loss
    assert half.item() == loss(embeddings.bfloat16().float(), targets).loss.item()


def test_margin_makes_the_task_harder_and_can_be_changed() -> None:
    loss = MarginSoftmax(5, 7, margin=0.0)
    embeddings, targets = example(dtype=torch.float32)
    losses = []
    for margin in (0.0, 0.2, 0.5):
        loss.margin = margin
        losses.append(loss(embeddings, targets).loss.item())
    assert losses == sorted(losses)
    assert losses[0] < losses[2]


def test_supervised_contrast_equals_its_equation() -> None:
    embeddings, _ = example(batch=7)
    targets = torch.tensor([0, 1, 0, 2, 1, 0, 3])
    z = F.normalize(embeddings) / 0.3**0.5
    terms = []
    for i in range(7):
        positives = [p for p in range(7) if p != i and targets[p] == targets[i]]
        below = sum(torch.exp(z[i] @ z[a]) for a in range(7) if a != i)
        if positives:
            terms.append(-sum(torch.log(torch.exp(z[i] @ z[p]) / below) for p in positives) / len(positives))
    got = SupervisedContrastive(0.3)(embeddings, targets)
    torch.testing.assert_close(got, torch.stack(terms).mean())


def test_supervised_contrast_has_finite_gradients_for_equal_clips() -> None:
    embeddings = torch.ones(4, 3, requires_grad=True)
    loss = SupervisedContrastive()(embeddings, torch.tensor([0, 0, 1, 1]))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(3), abs=1e-5)
    assert embeddings.grad.isfinite().all()


def test_margins_ramp_between_two_values() -> None:
    assert margin_at(0, 20, 40) == margin_at(20, 20, 40) == 0
    assert margin_at(40, 20, 40) == margin_at(99, 20, 40) == 0.2
    ramp = [margin_at(20 + t / 10, 20, 40) for t in range(201)]
    assert ramp == sorted(ramp)
    assert max(b - a for a, b in pairwise(ramp)) < 0.0075
    # half way 1 - 0.001^0.5 = 0.9684 of the whole
    assert margin_at(30, 20, 40) == pytest.approx(0.2 * 0.96838 / 0.999, rel=1e-4)
    assert margin_at(25, 20, 40, 0.1, 0.3, "linear") == pytest.approx(0.15)
    assert margin_at(5, 5, 5, 0, 0.5) == 0.5


def test_mistakes_are_named() -> None:
    for wrong, message in [
        ({"kind": "arc"}, "softmax, am, aam"),
        ({"margin": 2.0}, "margin must lie"),
        ({"top_k": 7}, "top_k lie in 0 to 6"),
        ({"kind": "softmax", "sub_centers": 3}, "need cosines"),
        ({"top_penalty": -1}, "top_penalty"),
        ({"scale": 0}, "scale=0"),
    ]:
        with pytest.raises(ConfigError, match=message):
            MarginSoftmax(5, 7, **wrong)
    loss, (embeddings, targets) = MarginSoftmax(5, 7), example(dtype=torch.float32)
    for bad in ((embeddings[:, :4], targets), (embeddings, targets[:3]), (embeddings, targets + 7)):
        with pytest.raises(InputError):
            loss(*bad)
    with pytest.raises(InputError, match="int64"):
        loss(embeddings, targets.int())
    with pytest.raises(InputError, match="No class occurs twice"):
        SupervisedContrastive()(embeddings, torch.arange(6))
    with pytest.raises(InputError, match="takes"):
        SupervisedContrastive()(embeddings, torch.arange(5))
    with pytest.raises(ConfigError, match="temperature"):
        SupervisedContrastive(0)
    with pytest.raises(ConfigError, match="start <= end"):
        margin_at(1, 5, 3)
