from __future__ import annotations

import numpy as np
import pytest
import torch

from mmssl.errors import ConfigError
from mmssl.nn.tdnn import (
    AttentiveStatistics,
    EcapaEncoder,
    MaskedBatchNorm,
    SERes2Block,
    StatisticsPooling,
    TdnnLayer,
    XVectorEncoder,
)
from mmssl.types import Padded


@pytest.mark.parametrize(("channels", "millions"), [(512, 6.2), (1024, 14.7)])
def test_ecapa_has_as_many_parameters_as_in_the_paper(channels: int, millions: float) -> None:
    with torch.device("meta"):
        encoder = EcapaEncoder(channels=channels)
    assert round(sum(p.numel() for p in encoder.parameters()) / 1e6, 1) == millions
    assert encoder.output_size == 192


def test_xvector_has_as_many_parameters_as_in_the_paper() -> None:
    with torch.device("meta"):
        encoder = XVectorEncoder()
    assert round(sum(p.numel() for p in encoder.parameters()) / 1e6, 1) == 4.2


def test_batch_norm_in_training_sees_valid_steps_only() -> None:
    norm, reference = MaskedBatchNorm(3), torch.nn.BatchNorm1d(3)
    x = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0))
    garbage = x.clone()
    garbage[1, :, 2:] = 1e4
    out = norm(garbage, torch.tensor([6, 2]))
    valid = torch.cat([x[0].t(), x[1, :, :2].t()])
    expected = reference(valid)
    torch.testing.assert_close(out[0].t(), expected[:6])
    torch.testing.assert_close(out[1, :, :2].t(), expected[6:])
    assert not out[1, :, 2:].any()
    torch.testing.assert_close(norm.running_mean, reference.running_mean)


@pytest.mark.parametrize("pooling", [StatisticsPooling(), AttentiveStatistics(4, 3).eval()], ids=["plain", "attentive"])
def test_pooling_does_not_see_padding(pooling: torch.nn.Module) -> None:
    x = torch.randn(1, 4, 7, generator=torch.Generator().manual_seed(0))
    padded = torch.cat([x, torch.full((1, 4, 5), 30.0)], dim=2)
    torch.testing.assert_close(pooling(padded, torch.tensor([7])), pooling(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tanh", [True, False])
def test_attentive_pooling_is_that_of_the_equations(tanh: bool) -> None:
    torch.manual_seed(0)
    pooling = AttentiveStatistics(4, 3, tanh=tanh).eval()
    pooling.hidden.norm.running_mean.uniform_(-1, 1)
    pooling.hidden.norm.running_var.uniform_(0.5, 2)
    # weights that were trained before there was a choice fit
    conv, norm = ("weight", "bias"), ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = [*(f"hidden.conv.{n}" for n in conv), *(f"hidden.norm.{n}" for n in norm)]
    assert list(pooling.state_dict()) == [*names, "scores.weight", "scores.bias"]
    values = {name: value.double().numpy() for name, value in pooling.state_dict().items()}
    x = torch.randn(2, 4, 9)
    x[1, :, 6:] = torch.nan
    out = pooling(x, torch.tensor([9, 6]))
    for row, length in enumerate((9, 6)):
        h = x[row, :, :length].double().numpy()
        rows = [*h, *np.repeat([*h.mean(1), *h.std(1, ddof=1)], length).reshape(8, length)]
        hidden = values["hidden.conv.weight"][..., 0] @ rows + values["hidden.conv.bias"][:, None]
        deviation = np.sqrt(values["hidden.norm.running_var"] + 1e-5)
        hidden = (np.maximum(hidden, 0) - values["hidden.norm.running_mean"][:, None]) / deviation[:, None]
        scores = values["scores.weight"][..., 0] @ (np.tanh(hidden) if tanh else hidden)
        weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        mean = (weights * h).sum(1)
        expected = [*mean, *np.sqrt((weights * h**2).sum(1) - mean**2)]
        np.testing.assert_allclose(out[row].detach().numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tanh", [True, False])
def test_equal_scores_pool_to_the_plain_statistics(tanh: bool) -> None:
    attentive, plain = AttentiveStatistics(4, 3, tanh=tanh).eval(), StatisticsPooling()
    torch.nn.init.zeros_(attentive.scores.weight)
    x = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(attentive(x), plain(x), rtol=1e-4, atol=1e-5)


def test_training_a_padded_batch_gives_finite_gradients() -> None:
    encoder = EcapaEncoder(10, 16, 12, 5).train()
    features = torch.randn(3, 20, 10, generator=torch.Generator().manual_seed(0))
    encoder(Padded(features, torch.tensor([20, 1, 12]))).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(ConfigError, match="must be odd, got 4"):
        TdnnLayer(3, 3, 4)
    with pytest.raises(ConfigError, match="10 channels and scale 8"):
        SERes2Block(10)
