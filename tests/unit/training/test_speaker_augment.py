from __future__ import annotations

import math
from pathlib import Path

import pytest
import soundfile
import torch

from mmssl.augment.base import Chain, OneOf, With
from mmssl.errors import ConfigError, DataError
from mmssl.training.speaker_augment import NoiseFromFiles, RoomsFromFiles, sound_files, speaker_augmentation


def write(path: Path, wave: torch.Tensor) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave.numpy(), 16000, subtype="FLOAT")
    return str(path)


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("samples", [700, 9000])
def test_noise_comes_at_the_ratio_asked_for(tmp_path: Path, samples: int) -> None:
    noise = torch.randn(samples, generator=draw(1)) * 1e-3
    path = write(tmp_path / "n.wav", noise)
    clip = torch.randn(3000, generator=draw(2)) * 0.1
    added = NoiseFromFiles([path], (10.0, 10.0))(clip, draw()) - clip
    ratio = 10 * math.log10(float(clip.square().mean() / added.square().mean()))
    assert ratio == pytest.approx(10, abs=0.01)
    unit = added / added.norm()
    places = noise.repeat(6)[: max(samples, 4000) * 2].unfold(0, 3000, 1)
    assert float((places / places.norm(dim=1, keepdim=True) @ unit).max()) == pytest.approx(1, abs=1e-3)


def test_voices_of_a_babble_have_equal_power(tmp_path: Path) -> None:
    low, high = (torch.sin(2 * math.pi * f * torch.arange(4000) / 16000) for f in (200.0, 3000.0))
    files = [write(tmp_path / "a.wav", 0.5 * low), write(tmp_path / "b.wav", 0.001 * high)]
    clip = torch.full((4000,), 0.1)
    for seed in range(20):
        added = NoiseFromFiles(files, (10.0, 10.0), (2, 2))(clip, draw(seed)) - clip
        parts = [float((added @ wave).abs()) for wave in (low, high)]
        if min(parts) > 1:  # one of each was drawn
            assert parts[0] == pytest.approx(parts[1], rel=0.05)
            return
    raise AssertionError("twenty draws of two files never gave both")


def test_silence_in_a_file_adds_nothing(tmp_path: Path) -> None:
    wave = torch.zeros(16000)
    wave[-1] = 0.5
    path = write(tmp_path / "n.wav", wave)
    clip = torch.ones(1000)
    assert torch.equal(NoiseFromFiles([path])(clip, draw(3)), clip)


def test_a_room_is_drawn_from_files(tmp_path: Path) -> None:
    response = torch.zeros(400)
    response[100], response[300] = 1.0, -0.5
    path = write(tmp_path / "r.wav", response)
    clip = torch.zeros(1000)
    clip[0] = 1.0
    wet = RoomsFromFiles([path])(clip, draw())
    assert wet[200] / wet[0] == pytest.approx(-0.5, abs=1e-4)


def test_musan_gives_noise_music_and_babble(tmp_path: Path) -> None:
    for part in ("noise", "music", "speech"):
        write(tmp_path / "musan" / part / "deep" / f"{part}.wav", torch.randn(4000, generator=draw()) * 0.1)
    write(tmp_path / "rirs" / "room.wav", torch.eye(1, 50)[0])
    found = speaker_augmentation(str(tmp_path / "musan"), str(tmp_path / "rirs"), 1.0)
    assert isinstance(found, Chain)
    chosen = found.steps[0]
    assert isinstance(chosen, With)
    assert isinstance(chosen.augmentation, OneOf)
    noise, music, babble, rooms = chosen.augmentation.choices
    assert [(n.snr, n.together) for n in (noise, music, babble)] == [
        ((0.0, 15.0), (1, 1)),
        ((5.0, 15.0), (1, 1)),
        ((13.0, 20.0), (4, 7)),
    ]
    assert isinstance(rooms, RoomsFromFiles)
    clip = torch.randn(2000, generator=draw(1)) * 0.1
    first, again = found(clip, draw(4)), found(clip, draw(4))
    assert torch.equal(first, again)
    assert not torch.equal(first, clip)


def test_what_is_made_on_the_spot_needs_no_files() -> None:
    clip = torch.randn(2000, generator=draw(1)) * 0.1
    found = speaker_augmentation("synthetic", "synthetic", 1.0)
    assert found is not None
    assert len({tuple(found(clip, draw(seed)).tolist()) for seed in range(4)}) == 4
    assert speaker_augmentation() is None


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"folder of noise .*nowhere' does not exist"):
        speaker_augmentation(noise=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"folder of impulse responses .* holds no sound file"):
        speaker_augmentation(rooms=str(tmp_path))
    with pytest.raises(ConfigError, match="probability"):
        speaker_augmentation("synthetic", probability=2)
    with pytest.raises(ConfigError, match="needs files"):
        NoiseFromFiles([])
    with pytest.raises(ConfigError, match="Rooms need files"):
        RoomsFromFiles([])
    write(tmp_path / "b" / "2.wav", torch.ones(9))
    write(tmp_path / "a" / "10.wav", torch.ones(9))
    assert [Path(p).name for p in sound_files(tmp_path, "noise")] == ["10.wav", "2.wav"]
