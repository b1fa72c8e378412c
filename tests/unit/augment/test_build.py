"""Augmentations from configurations: the shipped ones build, nested ones are built first, mistakes are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import mmssl
from mmssl.augment.base import Chain, OneOf, With
from mmssl.augment.build import build_augmentation
from mmssl.augment.level import Gain
from mmssl.errors import ConfigError, MmsslError
from mmssl.registry import AUGMENTATIONS

SHIPPED = sorted((Path(mmssl.__file__).parent / "conf" / "augment").glob("*.yaml"))
NOT_FOR_WAVEFORMS = ("simclr", "spec_augment")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_what_comes_with_mmssl_builds(path: Path) -> None:
    build_augmentation(yaml.safe_load(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", AUGMENTATIONS.names())
def test_every_name_is_an_augmentation(name: str) -> None:
    assert callable(AUGMENTATIONS.resolve(name))


@pytest.mark.parametrize(
    "described",
    [
        *({"_target_": name} for name in ("gain", "polarity", "limit_peak", "band_limit", "noise", "reverberation")),
        *({"_target_": name} for name in ("speed", "pitch", "speaker")),
        {"_target_": "temporal_crop", "size": 1500},
        {"_target_": "temporal_shift", "max_shift": 100},
        *(yaml.safe_load(path.read_text(encoding="utf-8")) for path in SHIPPED if path.stem not in NOT_FOR_WAVEFORMS),
    ],
    ids=lambda described: str(described["_target_"].rpartition(".")[2]),
)
def test_whether_a_length_is_kept_is_known_before_anything_is_drawn(described: dict[str, Any]) -> None:
    built = build_augmentation(described)
    clip = torch.linspace(-0.4, 0.5, 3000)
    lengths = {len(built(clip, torch.Generator().manual_seed(seed))) for seed in range(8)}
    assert built.keeps_length == (lengths == {3000})
    for whole in (Chain([Gain(), built]), With(1.0, built), OneOf([built, built])):
        assert whole.keeps_length == built.keeps_length


def test_nested_ones_equal_those_built_by_hand() -> None:
    gain = {"_target_": "gain", "decibels": [-6, 6]}
    built = build_augmentation(
        {"_target_": "chain", "steps": [{"_target_": "with", "probability": 0.5, "augmentation": gain}]}
    )
    by_hand = Chain([With(0.5, Gain((-6, 6)))])
    clip = torch.linspace(-0.1, 0.1, 100)
    for seed in range(4):
        found, expected = (a(clip, torch.Generator().manual_seed(seed)) for a in (built, by_hand))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("described", "words"),
    [
        ({"steps": []}, "_target_: NAME"),
        ({"_target_": "spaker"}, "speaker"),
        ({"_target_": "gain", "decibel": [0, 1]}, "decibels"),
        ({"_target_": "collections.OrderedDict"}, "gives a OrderedDict"),
        ({"_target_": "chain", "steps": [{"_target_": "with", "probability": 2, "augmentation": None}]}, "0, 1"),
    ],
)
def test_mistakes_are_named(described: dict[str, Any], words: str) -> None:
    with pytest.raises(MmsslError, match=words):
        build_augmentation(described)
    assert issubclass(ConfigError, MmsslError)
