from __future__ import annotations

import pytest
import torch
from torch import nn

from mmssl.errors import ConfigError
from mmssl.nn.ema import EMA


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


def test_weights_follow_by_the_decay_and_buffers_are_copied() -> None:
    torch.manual_seed(0)
    source = network()
    ema = EMA(source, shared=("3.",))
    start = source[0].weight.detach().clone()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(torch.randn_like(parameter))
    source(torch.randn(8, 3))  # moves the statistics of the batch norm
    assert ema.distance(source) > 0.1
    ema.update(source, 0.9)
    assert torch.allclose(ema.model[0].weight, 0.9 * start + 0.1 * source[0].weight)
    assert torch.equal(ema.model[3].weight, source[3].weight)
    assert torch.equal(ema.model[1].running_mean, source[1].running_mean)
    ema.update(source, 0.0)
    assert ema.distance(source) == 0.0


def test_the_copy_is_frozen_in_eval_mode_and_the_source_is_not_registered() -> None:
    source = network()
    ema = EMA(source).train()
    assert not ema.model.training
    assert not any(p.requires_grad for p in ema.parameters())
    mine = {id(p) for p in ema.parameters()}
    assert not mine & {id(p) for p in source.parameters()}
    assert len(list(ema.parameters())) == len(list(source.parameters()))
    assert {name.split(".")[0] for name in ema.state_dict()} == {"model"}


def test_bad_values_are_refused() -> None:
    source = network()
    with pytest.raises(ConfigError, match="starts with 'conv'"):
        EMA(source, shared=("conv",))
    with pytest.raises(ConfigError, match="decay"):
        EMA(source).update(source, 1.1)
