from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl.errors import InputError
from mmssl.nn.masking import random_token_mask, span_mask, tube_mask


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 80), min_size=1, max_size=4),
    probability=st.floats(0.05, 1.0),
    span=st.integers(1, 12),
    min_spans=st.integers(0, 3),
    no_overlap=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_spans_are_whole_and_inside_the_clip(
    lengths: list[int], probability: float, span: int, min_spans: int, no_overlap: bool, seed: int
) -> None:
    try:
        mask = span_mask(
            torch.tensor(lengths),
            probability,
            span,
            min_spans=min_spans,
            no_overlap=no_overlap,
            generator=torch.Generator().manual_seed(seed),
        )
    except InputError:
        # nothing is hidden only where no span fits, or where rounding left none and none was asked for
        assert max(lengths) < span or (min_spans == 0 and probability * max(lengths) / span < 1)
        return
    for row, size in zip(mask, lengths, strict=True):
        assert not row[size:].any()
        edges = torch.nn.functional.pad(row.int(), (1, 1)).diff()
        starts, ends = (edges == 1).nonzero().flatten(), (edges == -1).nonzero().flatten()
        assert all(int(end - start) >= span for start, end in zip(starts, ends, strict=True))
        if no_overlap:
            assert int(row.sum()) % span == 0
        if size >= span and min_spans:
            assert row.any()


@settings(max_examples=40, deadline=None)
@given(tokens=st.integers(2, 60), data=st.data(), steps=st.integers(1, 5), seed=st.integers(0, 1000))
def test_counts_are_exact(tokens: int, data: st.DataObject, steps: int, seed: int) -> None:
    hidden = data.draw(st.integers(1, tokens - 1))
    generator = torch.Generator().manual_seed(seed)
    assert (random_token_mask(3, tokens, hidden, generator=generator).sum(1) == hidden).all()
    tubes = tube_mask(2, steps, tokens, hidden, generator=generator).view(2, steps, tokens)
    assert (tubes.sum(2) == hidden).all()
    assert (tubes == tubes[:, :1]).all()
