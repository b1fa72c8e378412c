from __future__ import annotations

from argparse import Namespace

import pytest
import torch
from torch import nn

from mmssl.errors import CheckpointError
from mmssl.upstreams.renaming import count, load_renamed, options, settled, weights

RULES = ((r"enc\.(\w+)", r"0.\1"),)


def module() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def state() -> dict[str, torch.Tensor]:
    return {
        "enc.weight": torch.ones(3, 2),
        "enc.bias": torch.full((1, 3, 1), 5.0),
        "1.weight": torch.ones(3),
        "1.bias": torch.zeros(3),
        "1.running_mean": torch.zeros(3),
        "1.running_var": torch.ones(3),
        "head.weight": torch.ones(9),
    }


def test_names_and_axes_of_one_are_settled() -> None:
    target = module()
    load_renamed(target, state(), RULES, source="file", ignore=r"head\..*")
    assert target[0].bias.tolist() == [5.0, 5.0, 5.0]
    assert target[1].num_batches_tracked == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"enc.bias": None}, "missing: 0.bias"),
        ({"enc.more": torch.ones(1)}, "left over: 0.more"),
        ({"enc.weight": torch.ones(2, 3)}, "another shape: 0.weight"),
        ({"0.weight": torch.ones(3, 2)}, "two weights are called '0.weight'"),
    ],
)
def test_whatever_does_not_fit_is_named(change: dict[str, torch.Tensor | None], message: str) -> None:
    given = {name: value for name, value in (state() | change).items() if value is not None}
    with pytest.raises(CheckpointError, match=message):
        load_renamed(module(), given, RULES, source="file", ignore=r"head\..*")


def test_a_head_that_is_not_ignored_is_left_over() -> None:
    with pytest.raises(CheckpointError, match=r"left over: head\.weight"):
        load_renamed(module(), state(), RULES, source="file")


def test_sizes_come_from_the_checkpoint_unless_they_contradict() -> None:
    assert settled("size", None, None, 3, None) == 3
    assert settled("size", 4, None, 3, None) == 4
    assert settled("size", None, 5, 3, "file") == 5
    assert settled("size", 5, 5, 3, "file") == 5
    assert settled("flag", False, None, True, None) is False
    with pytest.raises(CheckpointError, match="file has size = 5, 4 was asked for"):
        settled("size", 4, 5, 3, "file")


def test_weights_are_found_below_an_entry_or_bare() -> None:
    tensors = {"a": torch.ones(1)}
    assert weights({"model": tensors, "x": 1}, "file", "weights", "model") == tensors
    assert weights(tensors, "file", "model") == tensors
    with pytest.raises(CheckpointError, match="holds no weights"):
        weights({"x": 1}, "file", "model")
    with pytest.raises(CheckpointError, match="found the entries none"):
        weights([1], "file", "model")
    assert options(Namespace(a=1)) == {"a": 1}
    assert options(3) == {}
    assert count({"l.0.w": 1, "l.11.w": 1, "m.20.w": 1}, r"l\.(\d+)\.w") == 12
