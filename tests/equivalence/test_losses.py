"""Losses against slow computations written out, and against lightly where it is installed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mmssl.objectives.losses.barlow_twins import BarlowTwins
from mmssl.objectives.losses.cosine import Cosine
from mmssl.objectives.losses.cross_entropy import MaskedCrossEntropy
from mmssl.objectives.losses.diversity import Diversity
from mmssl.objectives.losses.feature_penalty import FeaturePenalty
from mmssl.objectives.losses.info_nce import InfoNCE
from mmssl.objectives.losses.nt_xent import NTXent
from mmssl.objectives.losses.regression import L1, MSE, SmoothL1
from mmssl.objectives.losses.soft_cross_entropy import SoftCrossEntropy
from mmssl.objectives.losses.utterance_info_nce import UtteranceInfoNCE
from mmssl.objectives.losses.vicreg import VICReg

ROWS = [(2, 3), (5, 8), (7, 2), (16, 33)]
FRAMES = [(1, 4, 3), (3, 9, 5), (2, 17, 8)]


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def cos(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def pair(shape: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=shape), rng.normal(size=shape)
    return torch.tensor(a, dtype=torch.float32), torch.tensor(b, dtype=torch.float32), a, b


@pytest.mark.parametrize("shape", ROWS)
def test_nt_xent(shape: tuple[int, int]) -> None:
    a, b, na, nb = pair(shape)
    z, n = np.concatenate([na, nb]), len(na)
    total = 0.0
    for i in range(2 * n):
        others = [j for j in range(2 * n) if j != i]
        p = softmax(np.array([cos(z[i], z[j]) / 0.3 for j in others]))
        total -= math.log(p[others.index((i + n) % (2 * n))])
    assert float(NTXent(0.3)(a, b).loss) == pytest.approx(total / (2 * n), rel=1e-5)
    lightly = pytest.importorskip("lightly.loss")
    assert float(NTXent(0.3)(a, b).loss) == pytest.approx(float(lightly.NTXentLoss(0.3)(a, b)), rel=1e-5)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("shape", ROWS)
def test_info_nce(shape: tuple[int, int], symmetric: bool) -> None:
    a, b, na, nb = pair(shape)
    forward = -np.mean([math.log(softmax(np.array([cos(x, y) / 0.07 for y in nb]))[i]) for i, x in enumerate(na)])
    back = -np.mean([math.log(softmax(np.array([cos(x, y) / 0.07 for y in na]))[i]) for i, x in enumerate(nb)])
    expected = (forward + back) / 2 if symmetric else forward
    assert float(InfoNCE(0.07, symmetric)(a, b).loss) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_info_nce_with_a_queue() -> None:
    a, b, na, nb = pair((4, 6))
    _, old, _, n_old = pair((3, 6), seed=1)
    loss = InfoNCE(0.2, symmetric=False, queue_size=8)
    loss(old.requires_grad_(), old.detach(), torch.tensor([True, True, True]))
    loss.after_step()
    keys = np.concatenate([nb, n_old])
    expected = -np.mean([math.log(softmax(np.array([cos(x, y) / 0.2 for y in keys]))[i]) for i, x in enumerate(na)])
    assert float(loss(a, b).loss) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("shape", FRAMES)
def test_utterance_info_nce(shape: tuple[int, int, int], repeated: bool) -> None:
    a, b, na, nb = pair(shape)
    if repeated:  # codes: many targets are equal
        nb = nb.copy()
        nb[:, ::2] = nb[:, :1]
        b = torch.tensor(nb, dtype=torch.float32)
    rng = np.random.default_rng(2)
    where = rng.random(shape[:2]) < 0.6
    where[:, :2] = True
    counts = where.sum(1)
    negatives = np.zeros((shape[0], counts.max(), 7), dtype=np.int64)
    total, count = 0.0, 0
    for clip in range(shape[0]):
        frames = np.flatnonzero(where[clip])
        for m, frame in enumerate(frames):
            drawn = [int(rng.choice([k for k in range(len(frames)) if k != m])) for _ in range(7)]
            negatives[clip, m] = drawn
            keys = [nb[clip, frame]]
            keys += [nb[clip, frames[k]] for k in drawn if not np.array_equal(nb[clip, frames[k]], nb[clip, frame])]
            total -= math.log(softmax(np.array([cos(na[clip, frame], key) / 0.1 for key in keys]))[0])
            count += 1
    out = UtteranceInfoNCE(7).contrast(a, b, torch.tensor(where), torch.tensor(negatives))
    assert out.count == count
    assert float(out.loss) == pytest.approx(total / count, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("shape", FRAMES)
def test_regression_and_cosine(shape: tuple[int, ...]) -> None:
    a, b, na, nb = pair(shape)
    where = np.random.default_rng(3).random(shape[:2]) < 0.5
    where[0, 0] = True
    mask, d = torch.tensor(where), (na - nb)[where]
    assert float(L1()(a, b, mask).loss) == pytest.approx(np.abs(d).mean(), rel=1e-5)
    assert float(MSE()(a, b, mask).loss) == pytest.approx((d**2).mean(), rel=1e-5)
    scaled = (d**2).sum(-1).mean() / math.sqrt(shape[-1])
    assert float(MSE(scale_by_size=True)(a, b, mask).loss) == pytest.approx(scaled, rel=1e-5)
    smooth = np.where(np.abs(d) < 0.5, d**2 / (2 * 0.5), np.abs(d) - 0.25).mean()
    assert float(SmoothL1(0.5)(a, b, mask).loss) == pytest.approx(smooth, rel=1e-5)
    cosine = np.mean([cos(x, y) for x, y in zip(na[where], nb[where], strict=True)])
    byol = Cosine("byol")(a, b, mask)
    assert float(byol.loss) == pytest.approx(2 - 2 * cosine, rel=1e-5)
    assert byol.count == where.sum()
    assert float(Cosine("simsiam")(a, b, mask).loss) == pytest.approx(-cosine, rel=1e-4, abs=1e-6)
    assert float(FeaturePenalty()(a, None, mask).loss) == pytest.approx((na[where] ** 2).mean(), rel=1e-5)
    lightly = pytest.importorskip("lightly.loss")
    expected = float(lightly.NegativeCosineSimilarity()(a[mask], b[mask]))
    assert float(Cosine("simsiam")(a, b, mask).loss) == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(2, 5, 4), (3, 7, 2, 6)])
def test_masked_cross_entropy(shape: tuple[int, ...], smoothing: float) -> None:
    logits, _, values, _ = pair(shape)
    rng = np.random.default_rng(4)
    labels = rng.integers(shape[-1], size=shape[:-1])
    where = rng.random(shape[:2]) < 0.5
    where[0, 0] = True
    losses, hits = [], []
    for row, label in zip(values[where].reshape(-1, shape[-1]), labels[where].reshape(-1), strict=True):
        p = np.log(softmax(row))
        losses.append(-(1 - smoothing) * p[label] - smoothing * p.mean())
        hits.append(row.argmax() == label)
    out = MaskedCrossEntropy(smoothing)(logits, torch.tensor(labels), torch.tensor(where))
    assert float(out.loss) == pytest.approx(np.mean(losses), rel=1e-5)
    assert float(out.logs["accuracy"]) == pytest.approx(np.mean(hits))
    assert out.count == where.sum()


@pytest.mark.parametrize("shape", ROWS)
def test_soft_cross_entropy(shape: tuple[int, int]) -> None:
    a, b, na, nb = pair(shape)
    loss = SoftCrossEntropy(shape[1], student_temperature=0.2, teacher_temperature=0.5)
    loss.center.copy_(b[0])
    centre = nb[0].astype(np.float32)
    expected = -np.mean([softmax((y - centre) / 0.5) @ np.log(softmax(x / 0.2)) for x, y in zip(na, nb, strict=True)])
    assert float(loss(a, b).loss) == pytest.approx(expected, rel=1e-4)


def test_dino_over_several_crops_equals_lightly() -> None:
    lightly = pytest.importorskip("lightly.loss")
    torch.manual_seed(0)
    students = [torch.randn(4, 6, requires_grad=True) for _ in range(4)]
    ours, theirs = SoftCrossEntropy(6), lightly.DINOLoss(6, warmup_teacher_temp_epochs=0)
    for _ in range(3):
        teachers = [torch.randn(4, 6) for _ in range(2)]
        pairs = [(s, t) for s in range(4) for t in range(2) if s != t]
        total = sum(ours(students[s], teachers[t]).loss for s, t in pairs) / len(pairs)
        assert float(total.detach()) == pytest.approx(float(theirs(teachers, students).detach()), rel=1e-4)
        ours.after_step()
        assert torch.allclose(ours.center, theirs.center.flatten(), atol=1e-6)


@pytest.mark.parametrize("shape", ROWS)
def test_barlow_twins(shape: tuple[int, int]) -> None:
    a, b, na, nb = pair(shape)
    sa, sb = ((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) for x in (na, nb))
    expected = 0.0
    for i in range(shape[1]):
        for j in range(shape[1]):
            c = float(sa[:, i] @ sb[:, j]) / len(na)
            expected += (1 - c) ** 2 if i == j else 0.005 * c**2
    assert float(BarlowTwins()(a, b).loss) == pytest.approx(expected, rel=1e-4)
    lightly = pytest.importorskip("lightly.loss")
    assert float(BarlowTwins()(a, b).loss) == pytest.approx(float(lightly.BarlowTwinsLoss()(a, b)), rel=1e-4)


@pytest.mark.parametrize("shape", ROWS)
def test_vicreg(shape: tuple[int, int]) -> None:
    a, b, na, nb = pair(shape)
    variance = np.mean([np.maximum(0, 1 - np.sqrt(x.var(0, ddof=1) + 1e-4)).mean() for x in (na, nb)])
    covariance = 0.0
    for x in (na, nb):
        c = np.atleast_2d(np.cov(x.T))
        covariance += (c**2).sum() / len(c) - (np.diag(c) ** 2).sum() / len(c)
    expected = 25 * ((na - nb) ** 2).mean() + 25 * variance + covariance
    assert float(VICReg()(a, b).loss) == pytest.approx(expected, rel=1e-4)
    lightly = pytest.importorskip("lightly.loss")
    assert float(VICReg()(a, b).loss) == pytest.approx(float(lightly.VICRegLoss()(a, b)), rel=1e-4)


@pytest.mark.parametrize("shape", [(3, 4, 2, 5), (6, 3, 7)])
def test_diversity(shape: tuple[int, ...]) -> None:
    probabilities = np.random.default_rng(5).dirichlet(np.ones(shape[-1]), size=shape[:-1])
    mean = probabilities.reshape(-1, *shape[-2:]).mean(0)
    perplexity = sum(math.exp(-sum(p * math.log(p) for p in group)) for group in mean)
    codes = shape[-2] * shape[-1]
    out = Diversity()(torch.tensor(probabilities, dtype=torch.float32))
    assert float(out.loss) == pytest.approx((codes - perplexity) / codes, rel=1e-4, abs=1e-6)
