"""Spread, effective rank and code usage against plain numpy, and what they cost."""

from __future__ import annotations

import math
import time

import numpy
import pytest
import torch

from mmssl.objectives.health import effective_rank, spread, usage_entropy


def rank_by_svd(rows: numpy.ndarray) -> float:
    """Exp of the entropy of the singular values, as in the paper."""
    values = numpy.linalg.svd(rows - rows.mean(0), compute_uv=False)
    share = values[values > 0] / values.sum()
    return float(numpy.exp(-(share * numpy.log(share)).sum()))


@pytest.mark.parametrize(("rows", "columns"), [(2, 5), (40, 7), (7, 40), (512, 24), (60, 300)])
def test_the_rank_is_that_of_the_singular_values(rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    values = torch.randn(rows, columns, generator=generator) * torch.logspace(0, -3, columns) + 3
    assert float(effective_rank(values)) == pytest.approx(rank_by_svd(values.double().numpy()), rel=1e-4)


def test_of_many_rows_evenly_spaced_ones_are_looked_at() -> None:
    values = torch.randn(1300, 6, generator=torch.Generator().manual_seed(0))
    chosen = values[torch.linspace(0, 1299, 512).round().long()].double().numpy()
    assert float(effective_rank(values)) == pytest.approx(rank_by_svd(chosen), rel=1e-5)
    # the end of the batch counts too: the second half alone differs
    values[:650] = values[0]
    assert float(effective_rank(values)) > 5


def test_equal_rows_and_values_that_are_not_finite_have_rank_zero() -> None:
    assert float(effective_rank(torch.full((50, 6), 3.3))) == 0
    assert float(effective_rank(torch.full((5, 60), 1e-8))) == 0
    assert float(effective_rank(torch.zeros(5, 3))) == 0
    assert float(effective_rank(torch.tensor([[1.0, math.nan], [0.0, 1.0]]))) == 0
    assert float(effective_rank(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))) == pytest.approx(1)


def test_wide_targets_are_cheap() -> None:
    values = torch.randn(2000, 1536, generator=torch.Generator().manual_seed(0))
    began = time.process_time()
    effective_rank(values)
    # measured: .1 s of one core; singular values of 1024 rows took over 1 s
    assert time.process_time() - began < 1.0


def test_spread_and_usage_by_hand() -> None:
    rows = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    assert float(spread(rows)) == pytest.approx(0.5)
    assert float(spread(rows[:1])) == 0
    assert float(usage_entropy(torch.tensor([0, 0, 3, 3]))) == pytest.approx(math.log(2))
    assert float(usage_entropy(torch.zeros(9, dtype=torch.int64))) == 0
    both = torch.tensor([[0, 1], [1, 1], [2, 1], [3, 1]])
    assert float(usage_entropy(both)) == pytest.approx(math.log(4) / 2)
