"""Standardisation and clip statistics: exact on frames and on stored statistics, and blind to padding."""

from __future__ import annotations

import pytest
import torch

from mmssl.errors import ConfigError, InputError
from mmssl.interfaces.standardized import Standardized
from mmssl.types import Layers

SIZES, HOPS = (4, 4), (320, 320)


def batch(pad: float = 0.0) -> Layers:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([5, 3])
    states = tuple(torch.randn(2, 7, 4, generator=generator) * 3 + 2 for _ in SIZES)
    for h in states:
        for row, n in zip(h, lengths, strict=True):
            row[n:] = pad
    return Layers(states, (lengths, lengths))


def pooled(layers: Layers, std: bool) -> Layers:
    rows = []
    for k in range(len(layers)):
        parts = []
        for frames in layers[k].unpad():
            stats = [frames.mean(0), frames.std(0, correction=0)] if std else [frames.mean(0)]
            parts.append(torch.cat(stats))
        rows.append(torch.stack(parts)[:, None])
    one = torch.ones(2, dtype=torch.int64)
    return Layers(tuple(rows), (one, one))


def fitted(statistics: str, interface: str = "weighted_sum", **arguments: object) -> Standardized:
    built = Standardized(SIZES, HOPS, interface, statistics, arguments)
    generator = torch.Generator().manual_seed(1)
    width = built.widths[0]
    means = [torch.randn(width, generator=generator) for _ in SIZES]
    stds = [torch.rand(width, generator=generator) + 0.5 for _ in SIZES]
    built.set_statistics(means, stds)
    return built


@pytest.mark.parametrize("statistics", ["mean", "mean_std"])
def test_stored_statistics_give_what_frames_give(statistics: str) -> None:
    interface, layers = fitted(statistics), batch(pad=9e9)
    from_frames = interface(layers)
    from_store = interface(pooled(layers, statistics == "mean_std"))
    assert from_frames.data.shape == (2, 1, 8 if statistics == "mean_std" else 4)
    assert from_frames.lengths.tolist() == [1, 1]
    torch.testing.assert_close(from_frames.data, from_store.data, atol=1e-5, rtol=1e-5)


def test_values_are_those_of_the_definition() -> None:
    interface, layers = fitted("mean_std", "layer", layer=1), batch()
    row = pooled(layers, std=True).hidden_states[1]
    expected = (row - interface.mean_1) * interface.scale_1
    torch.testing.assert_close(interface(layers).data, expected, atol=1e-5, rtol=1e-5)


def test_frames_commute_with_the_mean_and_leave_padding_out() -> None:
    interface, layers = fitted("frames"), batch()
    assert interface.affine
    frames = interface(layers)
    assert frames.lengths.tolist() == [5, 3]
    assert float(frames.data[1, 3:].detach().abs().max()) == 0.0
    means = torch.stack([row.mean(0) for row in frames.unpad()])
    torch.testing.assert_close(means, interface(pooled(layers, std=False)).data[:, 0], atol=1e-5, rtol=1e-5)


def test_what_is_affine() -> None:
    assert fitted("mean").affine
    assert not fitted("mean_std").affine
    assert not fitted("frames", normalize=True).affine


def test_a_dimension_that_never_changes_is_not_blown_up() -> None:
    interface = Standardized(SIZES, HOPS, "layer", "frames", {"layer": 0})
    interface.set_statistics([torch.zeros(4)] * 2, [torch.tensor([1.0, 0.0, 1e-12, 2.0])] * 2)
    assert interface.scale_0.tolist() == [1.0, 1.0, 1.0, 0.5]


def test_statistics_are_part_of_the_saved_model() -> None:
    trained, fresh = fitted("mean_std"), Standardized(SIZES, HOPS, "weighted_sum", "mean_std")
    fresh.load_state_dict(trained.state_dict())
    torch.testing.assert_close(fresh(batch()).data, trained(batch()).data)


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(ConfigError, match="frames, mean, mean_std"):
        Standardized(SIZES, HOPS, statistics="median")
    wide = Layers(tuple(torch.zeros(1, 2, 5) for _ in SIZES), (torch.tensor([2]),) * 2)
    for statistics in ("frames", "mean", "mean_std"):
        with pytest.raises(InputError):
            fitted(statistics)(wide)
