"""AV-SUPERB's embedding: padding does not count."""

from __future__ import annotations

import pytest
import torch

from mmssl.downstream.projection import MeanProjection
from mmssl.errors import ConfigError
from mmssl.types import Padded


def test_padding_does_not_count() -> None:
    encoder = MeanProjection(3, 4)
    data = torch.randn(2, 5, 3)
    data[1, 2:] = torch.nan
    found = encoder(Padded(data, torch.tensor([5, 2])))
    alone = [encoder.projector(row).mean(0) for row in (data[0], data[1, :2])]
    torch.testing.assert_close(found, torch.stack(alone))
    with pytest.raises(ConfigError, match="at least 1"):
        MeanProjection(3, 0)
