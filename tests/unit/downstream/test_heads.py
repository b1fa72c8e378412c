from __future__ import annotations

import pytest
import torch

from mmssl.downstream.heads import Head, build_head
from mmssl.downstream.pooling import AttentiveStatsPooling, masked_mean, masked_std
from mmssl.errors import ConfigError, InputError, RegistryError
from mmssl.random import isolated_rng
from mmssl.types import Padded

HEADS = ("linear", "mlp", "attentive_stats", "blstm")
CLIPS = [torch.randn(n, 5, generator=torch.Generator().manual_seed(n)) for n in (4, 9, 1)]


def padded(value: float = 0.0, extra: int = 2) -> Padded:
    data = torch.full((len(CLIPS), max(map(len, CLIPS)) + extra, 5), value)
    for row, clip in enumerate(CLIPS):
        data[row, : len(clip)] = clip
    return Padded(data, torch.tensor([len(clip) for clip in CLIPS]))


def built(name: str, **kwargs) -> Head:
    with isolated_rng(0):
        return build_head(name, 5, 3, **kwargs)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("value", [0.0, 1e4, float("nan"), float("inf")])
def test_padding_changes_neither_scores_nor_gradients(name: str, value: float) -> None:
    head = built(name)
    scores = head(padded(value))
    for row, clip in enumerate(CLIPS):
        torch.testing.assert_close(scores[row], head(Padded(clip[None], torch.tensor([len(clip)])))[0])
    scores.square().sum().backward()
    gradients = [p.grad.clone() for p in head.parameters()]
    head.zero_grad()
    sum(head(Padded(c[None], torch.tensor([len(c)]))).square().sum() for c in CLIPS).backward()
    for together, alone in zip(gradients, (p.grad for p in head.parameters()), strict=True):
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", HEADS)
def test_affine_before_pooling_means_that_the_mean_of_the_frames_is_enough(name: str) -> None:
    head = built(name)
    frames = Padded(CLIPS[1][None], torch.tensor([9]))
    pooled = Padded(CLIPS[1].mean(0)[None, None], torch.tensor([1]))
    assert head.affine_before_pooling == bool((head(frames) - head(pooled)).abs().max() < 1e-6)


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_pooling_equals_the_statistics_of_each_clip(value: float) -> None:
    mean, std = masked_mean(padded(value)), masked_std(padded(value))
    for row, clip in enumerate(CLIPS):
        torch.testing.assert_close(mean[row], clip.mean(0))
        torch.testing.assert_close(std[row], clip.var(0, correction=0).add(1e-7).sqrt())


def test_standard_deviation_of_a_constant_has_a_finite_gradient() -> None:
    data = torch.ones(1, 4, 2, requires_grad=True)
    pooling = AttentiveStatsPooling(2)
    for pooled in (masked_std(Padded(data, torch.tensor([4]))), pooling(Padded(data, torch.tensor([1])))):
        data.grad = None
        pooled.sum().backward()
        assert torch.isfinite(pooled).all()
        assert torch.isfinite(data.grad).all()


def test_attention_is_the_papers_formula() -> None:
    with isolated_rng(1):
        pooling = AttentiveStatsPooling(5, attention_size=4)
    pooled = pooling(padded(float("nan")))
    weights = pooling.attention(padded(float("nan")))
    assert not weights[2, 1:].any()
    for row, clip in enumerate(CLIPS):
        score = torch.tanh(clip @ pooling.hidden.weight.T + pooling.hidden.bias) @ pooling.score.weight[0]
        alpha = score.softmax(0)[:, None]  # the bias k cancels in the softmax
        mean = (alpha * clip).sum(0)
        std = ((alpha * clip**2).sum(0) - mean**2 + 1e-7).clamp(min=0).sqrt()
        torch.testing.assert_close(pooled[row, :5], mean)
        torch.testing.assert_close(pooled[row, 5:], std, atol=2e-4, rtol=1e-4)


def test_linear_is_superbs_head() -> None:
    head = built("linear")
    assert head.projector.out_features == 256
    frames = head.projector(CLIPS[1]).mean(0)
    scores = head(Padded(CLIPS[1][None], torch.tensor([9])))[0]
    torch.testing.assert_close(scores, head.classifier(frames), atol=1e-6, rtol=1e-5)


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'hidden_size'"):
        build_head("mlp", 5, 3, hidden_sizes=8)
    with pytest.raises(RegistryError, match="attentive_stats"):
        build_head("attentive_stat", 5, 3)
    with pytest.raises(ConfigError, match="num_outputs must be a whole number of at least 1, got 0"):
        build_head("linear", 5, 0)
    with pytest.raises(ConfigError, match="hidden_size"):
        build_head("linear", 5, 3, hidden_size=0)
    with pytest.raises(ConfigError, match="derive from that class"):
        build_head("torch.nn.Linear", 5, 3)
    with pytest.raises(InputError, match="width 5"):
        built("linear")(Padded(torch.zeros(1, 2, 4), torch.tensor([2])))
    with pytest.raises(InputError, match="A clip without a frame cannot be pooled"):
        built("linear")(Padded(torch.zeros(2, 2, 5), torch.tensor([2, 0])))
    with pytest.raises(InputError, match="between 1 and the 2 frames"):
        built("linear")(Padded(torch.zeros(1, 2, 5), torch.tensor([3])))
