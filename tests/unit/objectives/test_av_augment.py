"""Augmentations of pairs: a function of the clip's seed, in training alone, the same for all pictures of a clip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from mmssl.errors import ConfigError
from mmssl.objectives.av_augment import PairAugmentation, pair_augmentation
from mmssl.objectives.av_encoders import TwoTowerEncoder
from mmssl.objectives.av_views import AlignedCrops, Correspondence, Synchrony
from mmssl.objectives.methods.correspondence import correspondence
from mmssl.objectives.methods.cross_modal import cross_modal
from mmssl.objectives.methods.synchrony import synchrony
from mmssl.objectives.objective import Objective
from mmssl.objectives.types import Examples
from mmssl.objectives.views import Views
from mmssl.types import Inputs, Padded
from mmssl.upstreams.l3 import L3

EVERYTHING = PairAugmentation((0.5, 0.9), 0.5, 0.4, 6.0)


def inputs(clips: int = 3) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    sounds, pictures = (
        torch.randn(clips, 16000, generator=generator),
        torch.rand(clips, 25, 3, 16, 16, generator=generator),
    )
    # one clip is shorter than the others
    lengths = torch.tensor([16000] * (clips - 1) + [12800]), torch.tensor([25] * (clips - 1) + [20])
    return Inputs(Padded(sounds, lengths[0]), Padded(pictures, lengths[1]))


def test_what_is_drawn_depends_on_the_clip_alone() -> None:
    given = inputs()
    whole = EVERYTHING(given, [7, 8, 9])
    for row, seed in enumerate((7, 8, 9)):
        alone = EVERYTHING(
            Inputs(*(Padded(p.unpad()[row][None], p.lengths[row : row + 1]) for p in (given.waveforms, given.video))),
            [seed],
        )
        for one, all_ in ((alone.waveforms, whole.waveforms), (alone.video, whole.video)):
            assert torch.equal(one.unpad()[0], all_.unpad()[row])
    assert not torch.equal(whole.video.data[0], EVERYTHING(given, [6, 8, 9]).video.data[0])


def test_the_level_changes_by_so_many_db_and_nothing_else_does() -> None:
    given = inputs(8)
    made = PairAugmentation(gain=6.0)(given, list(range(8)))
    assert made.video is given.video
    changes = []
    for before, after in zip(given.waveforms.unpad(), made.waveforms.unpad(), strict=True):
        factor = after / before
        assert torch.allclose(factor, factor[0].expand_as(factor), rtol=1e-4)
        changes.append(float(20 * factor.median().log10()))
    assert max(map(abs, changes)) <= 6.0
    assert max(changes) - min(changes) > 2.0


def test_all_pictures_of_a_clip_are_changed_alike_and_lengths_stay() -> None:
    given = inputs()
    still = given.video.data[:, :1].expand(-1, 25, -1, -1, -1)
    made = EVERYTHING(replace(given, video=Padded(still, given.video.lengths)), [1, 2, 3])
    assert torch.equal(made.video.lengths, given.video.lengths)
    assert torch.equal(made.waveforms.lengths, given.waveforms.lengths)
    for before, clip in zip(still, made.video.unpad(), strict=True):
        assert clip.shape[1:] == (3, 16, 16)
        assert torch.allclose(clip, clip[:1].expand_as(clip), atol=1e-6)
        assert not torch.allclose(clip[0], before[0], atol=0.01)


def test_mirrored_pictures() -> None:
    images = torch.rand(40, 3, 8, 8)
    made = PairAugmentation(flip=0.5)(Inputs(images=images), list(range(40))).images
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(made, images, strict=True)]
    assert all(torch.equal(a, b) for a, b, flipped in zip(made, images, mirrored, strict=True) if not flipped)
    assert 8 <= sum(mirrored) <= 32


@pytest.mark.parametrize(
    "views",
    [
        AlignedCrops(0.4, 2, augment=EVERYTHING),
        Correspondence(0.4, 1, augment=EVERYTHING),
        Synchrony(0.4, 0.2, 0.4, augment=EVERYTHING),
    ],
)
def test_views_augment_in_training_alone(views: Views) -> None:
    encoder = TwoTowerEncoder(L3(width=2, sample_rate=16000, image_size=16))
    examples = Examples(inputs(), ids=("a", "b", "c"), seeds=(1, 2, 3))

    def shown(training: bool) -> torch.Tensor:
        (view,) = views.train(training)(examples, encoder, torch.Generator().manual_seed(0))
        assert view.inputs.video is not None
        return view.inputs.video.data

    plain = shown(False)
    views.augment = None
    assert torch.equal(plain, shown(True))
    views.augment = EVERYTHING
    assert not torch.equal(plain, shown(True))
    assert torch.equal(shown(True), shown(True))


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match="gain"):
        PairAugmentation(gain=-1.0)
    with pytest.raises(ConfigError, match="scale"):
        PairAugmentation((0.9, 0.5))
    with pytest.raises(ConfigError, match="probability"):
        PairAugmentation(flip=2.0)
    with pytest.raises(ConfigError, match="brightness"):
        PairAugmentation(jitter=-0.5)
    with pytest.raises(ConfigError, match=r"augment.flop: no such key. Did you mean 'flip'"):
        pair_augmentation({"flop": 0.5})


@pytest.mark.parametrize("method", [correspondence, synchrony, cross_modal])
def test_objectives_take_it_by_its_arguments(method: Callable[..., Objective]) -> None:
    model = L3(width=2, image_size=16)
    views = method(model, augment={"crop_scale": [0.7, 1.0], "flip": 0.5, "jitter": 0.4, "gain": 3.0}).views
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = views.augment(Inputs(images=images), [1, 2, 3]).images
    assert torch.equal(found, PairAugmentation((0.7, 1.0), 0.5, 0.4, 3.0)(Inputs(images=images), [1, 2, 3]).images)
    assert method(model, augment=EVERYTHING).views.augment is EVERYTHING
    for nothing in ({}, None):
        assert torch.equal(
            method(model, augment=nothing).views.augment(Inputs(images=images), [1, 2, 3]).images, images
        )
