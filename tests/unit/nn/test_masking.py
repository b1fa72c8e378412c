from __future__ import annotations

import pytest
import torch

from mmssl.errors import ConfigError, InputError
from mmssl.nn.masking import hidden_count, random_token_mask, span_mask, tube_mask


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def runs(row: torch.Tensor) -> list[int]:
    """Lengths of the stretches of hidden frames."""
    lengths, current = [], 0
    for hidden in [*row.tolist(), False]:
        if hidden:
            current += 1
        elif current:
            lengths.append(current)
            current = 0
    return lengths


def test_spans_are_whole_inside_the_clip_and_as_many_as_asked() -> None:
    lengths = torch.tensor([500, 90, 37, 6])
    mask = span_mask(lengths, 0.65, 10, generator=seeded())
    assert mask.shape == (4, 500)
    assert mask.dtype == torch.bool
    for row, size in zip(mask, lengths.tolist(), strict=True):
        assert not row[size:].any()
        assert all(length >= 10 for length in runs(row))
    assert not mask[3].any()  # shorter than a span


def test_the_hidden_share_is_that_of_the_paper() -> None:
    # 0.65 / 10 of the frames start a span: a frame stays visible if none of the 10 starts before it was drawn
    mask = span_mask(torch.full((200,), 500), 0.65, 10, generator=seeded())
    assert float(mask.float().mean()) == pytest.approx(1 - (1 - 0.065) ** 10, abs=0.01)
    apart = span_mask(torch.full((200,), 500), 0.65, 10, no_overlap=True, generator=seeded())
    assert float(apart.float().mean()) == pytest.approx(0.65, abs=0.005)


def test_the_number_of_spans_is_rounded_at_random_to_the_exact_mean() -> None:
    mask = span_mask(torch.full((3000,), 14), 0.25, 1, generator=seeded())
    counts = mask.sum(1)
    assert set(counts.tolist()) == {3, 4}
    assert float(counts.float().mean()) == pytest.approx(3.5, abs=0.05)
    assert (mask.float().mean(0) - 0.25).abs().max() < 0.04  # no place is favoured


def test_min_spans_holds_for_short_clips() -> None:
    mask = span_mask(torch.full((100,), 12), 0.05, 4, min_spans=2, generator=seeded())
    assert (mask.sum(1) >= 5).all()


def test_spans_that_keep_apart_never_overlap_and_can_be_anywhere() -> None:
    mask = span_mask(torch.full((400,), 11), 0.8, 3, no_overlap=True, generator=seeded())
    assert set(mask.sum(1).tolist()) <= {6, 9}
    assert mask[:, 0].any()
    assert mask[:, 10].any()


def test_a_mask_follows_its_generator_and_nothing_else() -> None:
    lengths = torch.tensor([60, 40])
    state = torch.get_rng_state()
    first, again = (span_mask(lengths, 0.5, 5, generator=seeded(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, span_mask(lengths, 0.5, 5, generator=seeded(4)))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(("probability", "span"), [(0.0, 10), (1.2, 10), (0.5, 0)])
def test_masks_that_hide_nothing_are_refused(probability: float, span: int) -> None:
    with pytest.raises(ConfigError, match="hide nothing"):
        span_mask(torch.tensor([50]), probability, span)


def test_clips_too_short_for_any_span_are_refused() -> None:
    with pytest.raises(InputError, match="clips of 5 to 9 frames"):
        span_mask(torch.tensor([5, 9]), 0.5, 10)


def test_token_masks_have_exact_counts_and_are_uniform() -> None:
    mask = random_token_mask(2000, 20, 15, generator=seeded())
    assert (mask.sum(1) == 15).all()
    assert (mask.float().mean(0) - 0.75).abs().max() < 0.04
    assert hidden_count(196, 0.75) == 147
    assert hidden_count(128, 0.8) == 103  # 25 visible, as MAE rounds
    for tokens, hidden in ((10, 0), (10, 10)):
        with pytest.raises(ConfigError, match="leave at least one"):
            random_token_mask(1, tokens, hidden)
    with pytest.raises(ConfigError, match="ratio"):
        hidden_count(10, 1.0)


def test_tubes_hide_the_same_places_in_every_step() -> None:
    mask = tube_mask(3, 8, 100, 90, generator=seeded())
    steps = mask.view(3, 8, 100)
    assert (steps.sum(2) == 90).all()
    assert (steps == steps[:, :1]).all()
    assert not torch.equal(steps[0, 0], steps[1, 0])
    with pytest.raises(ConfigError, match="time step"):
        tube_mask(1, 0, 100, 90)
