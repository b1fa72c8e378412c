"""Augmented crops of pretraining: of the clip and the epoch alone, as long as they were, labels of the clean clip."""

from __future__ import annotations

from typing import Any

import pytest
import soundfile
import torch

from mmssl.augment.base import Augmentation, Chain, With
from mmssl.augment.level import Gain
from mmssl.augment.speed import SpeedPerturbation
from mmssl.errors import ConfigError
from mmssl.stages.ssl_setup import augmentation
from mmssl.training.pretrain_batches import PretrainBatches
from mmssl.training.readers import AudioReader
from mmssl.types import Clip

READER = AudioReader(16000, 0.1, 60, 40)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    folder = tmp_path_factory.mktemp("wav")
    generator = torch.Generator().manual_seed(0)
    for number in range(6):
        soundfile.write(folder / f"{number}.wav", (0.05 * torch.randn(1900, generator=generator)).numpy(), 16000)
    return [Clip(f"c{number}", audio=str(folder / f"{number}.wav")) for number in range(6)]


def crops(clips: list[Clip], augment: Augmentation | None, number: int = 0, **changes: int) -> dict[str, torch.Tensor]:
    """Crop of each clip in a batch."""
    settings = {"batch_size": 6, "seed": 3} | changes
    examples = PretrainBatches(clips, READER, augment=augment, **settings)[number].examples
    assert examples.inputs.waveforms is not None
    return dict(zip(examples.ids, examples.inputs.waveforms.unpad(), strict=True))


def test_a_crop_is_changed_after_it_was_cut_by_a_draw_of_its_own(clips: list[Clip]) -> None:
    clean, loud = crops(clips, None), crops(clips, Gain((-12, 12)))
    ratios = {name: (loud[name] / clean[name])[clean[name].abs() > 1e-3] for name in clean}
    for ratio in ratios.values():
        torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio))
    assert len({round(float(ratio.mean()), 4) for ratio in ratios.values()}) == 6


@pytest.mark.parametrize("changes", [{"cache_bytes": 10**6}, {"batch_size": 3}, {"rank": 1, "world_size": 2}])
def test_it_depends_on_neither_cache_nor_batch_nor_rank(clips: list[Clip], changes: dict[str, int]) -> None:
    augment = With(0.5, Gain((-12, 12)))
    whole, other = crops(clips, augment), crops(clips, augment, **changes)
    for name, crop in other.items():
        torch.testing.assert_close(crop, whole[name], rtol=0, atol=0)


def test_every_epoch_draws_anew(clips: list[Clip]) -> None:
    first, second = (crops(clips, Gain((-12, 12)), number) for number in (0, 1))
    levels = [{name: float(crop.square().mean()) for name, crop in found.items()} for found in (first, second)]
    assert all(abs(levels[0][name] / levels[1][name] - 1) > 1e-3 for name in levels[0])


@pytest.mark.parametrize(
    ("described", "expected"),
    [
        ({"_target_": "chain", "steps": []}, type(None)),
        ({"_target_": "gain", "decibels": [-6, 6]}, Gain),
        ({"_target_": "chain", "steps": [{"_target_": "gain", "decibels": [-6, 6]}]}, Chain),
    ],
)
def test_a_chain_without_steps_is_no_augmentation(described: dict[str, Any], expected: type) -> None:
    assert type(augmentation({"augment": described})) is expected


def test_changes_of_length_are_refused(clips: list[Clip]) -> None:
    with pytest.raises(ConfigError, match="keep the length of a clip, and made 1600 samples"):
        crops(clips, SpeedPerturbation([0.5]))
