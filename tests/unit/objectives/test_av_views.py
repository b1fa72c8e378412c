"""Which stretch of sound stands beside which pictures. Every sample and picture here carries its clip and its time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmssl.errors import ConfigError, InputError
from mmssl.objectives.av_encoders import TwoTowerEncoder
from mmssl.objectives.av_views import AlignedCrops, Correspondence, Synchrony
from mmssl.objectives.types import Examples, View
from mmssl.types import Inputs, Padded
from mmssl.upstreams.l3 import L3

RATE, FPS = 8000, 25
PER_FRAME = RATE // FPS


@pytest.fixture(scope="module")
def encoder() -> TwoTowerEncoder:
    torch.manual_seed(0)
    return TwoTowerEncoder(L3(width=2, sample_rate=RATE, image_size=8))


def numbered(count: int = 6, frames: int = 40, epoch: int = 0) -> Examples:
    """Sample s of clip b is b * 1000 + its picture's number; so is every pixel of that picture."""
    names = torch.arange(count)[:, None] * 1000.0
    sound = names + torch.arange(frames * PER_FRAME) // PER_FRAME
    video = (names + torch.arange(frames))[:, :, None, None, None].expand(-1, -1, 3, 8, 8)
    full = torch.ones(count, dtype=torch.int64)
    inputs = Inputs(Padded(sound, full * sound.shape[1]), Padded(video, full * frames))
    return Examples(inputs, tuple("abcdefgh"[:count]), seeds=tuple(range(50, 50 + count)), epoch=epoch)


def first_values(view: View) -> tuple[torch.Tensor, torch.Tensor]:
    """First value of each sound and of each video."""
    assert view.inputs.waveforms is not None
    assert view.inputs.video is not None
    return view.inputs.waveforms.data[:, 0], view.inputs.video.data[:, 0, 0, 0, 0]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_picture_is_shown_within_its_sound(encoder: TwoTowerEncoder) -> None:
    starts, places = set(), set()
    for seed in range(40):
        examples = replace(numbered(), seeds=tuple(range(seed * 9, seed * 9 + 6)))
        (view,) = AlignedCrops(0.4, 2)(examples, encoder, generator())
        sound, shown = first_values(view)
        assert view.inputs.waveforms is not None
        assert view.inputs.waveforms.data.shape == (6, 3200)
        inside = shown - sound
        # ten pictures are shown in 0.4 s, two of them are taken
        assert ((inside >= 0) & (inside <= 8)).all()
        assert torch.equal(sound // 1000, torch.arange(6.0))
        starts |= set((sound % 1000).tolist())
        places |= set(inside.tolist())
    assert starts == set(range(31))
    assert places == set(range(9))


def test_a_crop_depends_on_the_clips_seed_alone(encoder: TwoTowerEncoder) -> None:
    for views in (AlignedCrops(0.4, 2), Synchrony(0.4, 0.2, 1.0)):
        (whole,) = views(numbered(), encoder, generator(1))
        examples = numbered()
        assert examples.inputs.waveforms is not None
        assert examples.inputs.video is not None
        order = [4, 1, 3]
        parts = Inputs(
            Padded(examples.inputs.waveforms.data[order], examples.inputs.waveforms.lengths[order]),
            Padded(examples.inputs.video.data[order], examples.inputs.video.lengths[order]),
        )
        few = Examples(parts, tuple("ebd"), seeds=(54, 51, 53))
        (some,) = views(few, encoder, generator(2))
        rows = order if isinstance(views, AlignedCrops) else [8, 9, 2, 3, 6, 7]
        for a, b in zip(first_values(whole), first_values(some), strict=True):
            assert torch.equal(a[rows], b)


def test_correspondence_pairs(encoder: TwoTowerEncoder) -> None:
    (view,) = Correspondence(0.4, 1)(numbered(), encoder, generator(3))
    sound, shown = (values // 1000 for values in first_values(view))
    sound, shown = sound[view.labels["audio"]], shown[view.labels["video"]]
    match = view.labels["match"]
    assert torch.equal(sound == shown, match == 1)
    assert match.float().mean() == 0.5
    for side in (view.labels["audio"], view.labels["video"]):
        assert sorted(side[match == 1].tolist()) == sorted(side[match == 0].tolist()) == list(range(6))


def test_false_pairs_differ_in_a_label_and_are_never_of_one_clip(encoder: TwoTowerEncoder) -> None:
    speakers = torch.tensor([0, 0, 1, 1, 2, 2])
    examples = replace(numbered(), labels={"speaker": speakers})
    for seed in range(20):
        labels = Correspondence(0.4, 1, different="speaker")(examples, encoder, generator(seed))[0].labels
        false = labels["match"] == 0
        assert (speakers[labels["audio"]] != speakers[labels["video"]])[false].all()
        twice = replace(examples, ids=("a", "a", "b", "b", "c", "c"))
        labels = Correspondence(0.4, 1)(twice, encoder, generator(seed))[0].labels
        assert (labels["audio"] // 2 != labels["video"] // 2)[labels["match"] == 0].all()
    with pytest.raises(InputError, match="accent"):
        Correspondence(0.4, 1, different="accent")(examples, encoder, generator())


def test_false_pairs_can_agree_in_a_label(encoder: TwoTowerEncoder) -> None:
    speakers = torch.tensor([0, 0, 1, 1, 1, 2])
    examples = replace(numbered(), labels={"speaker": speakers})
    for seed in range(20):
        labels = Correspondence(0.4, 1, same="speaker")(examples, encoder, generator(seed))[0].labels
        assert torch.equal(speakers[labels["audio"]], speakers[labels["video"]])
        assert torch.equal(labels["audio"] == labels["video"], labels["match"] == 1)
        # the one clip of speaker 2 has no false pair, so it has no true one
        assert sorted(labels["audio"].tolist()) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    unknown = replace(examples, labels={"speaker": torch.tensor([0, 0, -1, -1, -1, 1])})
    labels = Correspondence(0.4, 1, same="speaker")(unknown, encoder, generator())[0].labels
    assert sorted(labels["audio"].tolist()) == [0, 0, 1, 1]
    with pytest.raises(ConfigError, match="one of the two"):
        Correspondence(0.4, 1, different="speaker", same="accent")


def test_synchrony_pairs_are_true_or_shifted_within_the_segment(encoder: TwoTowerEncoder) -> None:
    for seed in range(10):
        examples = replace(numbered(), seeds=tuple(range(seed * 9, seed * 9 + 6)))
        (view,) = Synchrony(0.4, 0.2, 0.6)(examples, encoder, generator())
        sound, shown = first_values(view)
        assert view.inputs.waveforms is not None
        assert view.inputs.video is not None
        # a wrap or a pad would break the counting
        assert (view.inputs.video.data[:, :, 0, 0, 0].diff(dim=1) == 1).all()
        assert (view.inputs.waveforms.data[:, ::PER_FRAME].diff(dim=1) == 1).all()
        audio, video, match = (view.labels[name] for name in ("audio", "video", "match"))
        shift = (sound[audio] - shown[video]).abs()
        assert (shift[match == 1] == 0).all()
        assert ((shift[match == 0] >= 5) & (shift[match == 0] <= 15)).all()
        # each crop of either side is in one true and one false pair: neither side alone can tell
        for side in (audio, video):
            assert sorted(side[match == 1].tolist()) == sorted(side[match == 0].tolist()) == list(range(12))


def test_easy_negatives_are_of_other_clips(encoder: TwoTowerEncoder) -> None:
    easy = Synchrony(0.4, 0.2, 0.6, hard_share=0.0)(numbered(), encoder, generator())[0]
    sound, shown = (values // 1000 for values in first_values(easy))
    audio, video, match = (easy.labels[name] for name in ("audio", "video", "match"))
    assert torch.equal(sound[audio] == shown[video], match == 1)
    assert sorted(audio[match == 0].tolist()) == list(range(12))
    turns = Synchrony(0.4, 0.2, 0.6, hard_share=lambda epoch: float(epoch >= 2))
    for epoch in (0, 2):
        labels = turns(numbered(epoch=epoch), encoder, generator())[0].labels
        same = labels["audio"] // 2 == labels["video"] // 2
        assert bool(same[labels["match"] == 0].all()) is (epoch == 2)


@pytest.mark.parametrize("views", [Correspondence(0.4, 1, "shuffled"), Synchrony(0.4, 0.2, 1.0, control="shuffled")])
def test_shuffled_pairs_have_nothing_to_do_with_each_other(
    views: Correspondence | Synchrony, encoder: TwoTowerEncoder
) -> None:
    (view,) = views(numbered(), encoder, generator(1))
    sound, shown = (values // 1000 for values in first_values(view))
    assert (sound != shown).all()


@pytest.mark.parametrize("control", ["audio_only", "video_only"])
def test_a_modality_that_is_left_out_is_noise(control: str, encoder: TwoTowerEncoder) -> None:
    (view,) = AlignedCrops(0.4, 2, control)(numbered(), encoder, generator(1))
    (other,) = AlignedCrops(0.4, 2, control)(numbered(), encoder, generator(2))
    same = [torch.equal(a, b) for a, b in zip(first_values(view), first_values(other), strict=True)]
    assert same == [control == "audio_only", control == "video_only"]


def test_pictures_without_time(encoder: TwoTowerEncoder) -> None:
    lengths = torch.tensor([800, 500, 700])
    inputs = Inputs(Padded(torch.rand(3, 800), lengths), images=torch.rand(3, 3, 8, 8))
    (view,) = Correspondence(None, None)(Examples(inputs), encoder, generator())
    assert view.inputs is inputs
    with pytest.raises(ConfigError, match="audio_seconds"):
        Correspondence(1.0, 1)(Examples(inputs), encoder, generator())


def test_what_is_refused(encoder: TwoTowerEncoder) -> None:
    examples = numbered(2, 10)
    with pytest.raises(InputError, match="too short"):
        AlignedCrops(0.5, 1)(examples, encoder, generator())
    with pytest.raises(InputError, match="longer segments"):
        Synchrony(0.4, 0.2, 1.0)(examples, encoder, generator())
    with pytest.raises(ConfigError, match="less than one picture"):
        Synchrony(0.2, 0.01, 1.0)(examples, encoder, generator())
    with pytest.raises(ConfigError, match="control"):
        Synchrony(control="roll")
    assert examples.inputs.video is not None
    assert examples.inputs.waveforms is not None
    uneven = Padded(examples.inputs.video.data, torch.tensor([10, 8]))
    with pytest.raises(InputError, match="length alone"):
        AlignedCrops(None, None)(Examples(Inputs(examples.inputs.waveforms, uneven)), encoder, generator())
    with pytest.raises(InputError, match="waveforms"):
        AlignedCrops()(Examples(Inputs(examples.inputs.waveforms)), encoder, generator())
