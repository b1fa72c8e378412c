"""Noise and rooms for speaker training, from folders of any size: files are read when they are drawn."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mmssl.augment.base import Augmentation, Chain, OneOf, Range, With, integer, require_dims
from mmssl.augment.noise import AdditiveNoise
from mmssl.augment.reverb import Reverberation
from mmssl.data.files import natural_key
from mmssl.errors import ConfigError, DataError, MediaError
from mmssl.lengths import samples_to_seconds
from mmssl.media.audio import audio_info, load_audio

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aac", ".sph")
SYNTHETIC = "synthetic"
# MUSAN's folders, the SNR in dB and how many files are added up: the x-vector recipe (Snyder et al. 2018, section 3.3)
MUSAN: dict[str, tuple[Range, tuple[int, int]]] = {
    "noise": ((0.0, 15.0), (1, 1)),
    "music": ((5.0, 15.0), (1, 1)),
    "speech": ((13.0, 20.0), (4, 7)),
}


class NoiseFromFiles(Augmentation):
    """Noise from files at a true signal-to-noise ratio, see `mmssl.augment.noise.AdditiveNoise`.

    Of each file that is drawn a stretch as long as the clip is read, from a random place; a shorter file is repeated.
    Several files are brought to equal power and added up, as in babble. A stretch of silence adds nothing.

    Args:
        files: to draw from.
        snr: range in dB.
        together: fewest and most files at once.
        sample_rate: of the clips, in Hz.

    Raises:
        ConfigError: no files, or a range that is none.
    """

    def __init__(
        self,
        files: Sequence[str],
        snr: Range = (0.0, 15.0),
        together: tuple[int, int] = (1, 1),
        sample_rate: int = 16000,
    ) -> None:
        if not files or not 1 <= together[0] <= together[1]:
            raise ConfigError(f"Noise needs files and 1 <= fewest <= most, got {len(files)} files and {together}.")
        AdditiveNoise(snr)  # checks the range
        self.files, self.snr, self.together, self.sample_rate = tuple(files), snr, together, sample_rate

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """(T,) -> (T,)."""
        require_dims(x, (1,), "a waveform (T,)")
        total = torch.zeros(len(x))
        for _ in range(integer(*self.together, generator)):
            stretch = self._draw(len(x), generator)
            if stretch is not None:
                total += stretch / stretch.square().mean().sqrt()
        return AdditiveNoise(self.snr, [total])(x, generator) if bool(total.any()) else x.clone()

    def _draw(self, size: int, generator: torch.Generator) -> Tensor | None:
        path = self.files[integer(0, len(self.files) - 1, generator)]
        place = float(torch.rand((), dtype=torch.float64, generator=generator))
        info = audio_info(path)
        seconds = samples_to_seconds(size, self.sample_rate)
        try:
            if info.duration > seconds:
                start = place * (info.duration - seconds)
                wave, _ = load_audio(path, sample_rate=self.sample_rate, start=start, duration=seconds)
            else:
                wave, _ = load_audio(path, sample_rate=self.sample_rate)
        except MediaError:
            # a stretch of zeros in a good file; a file that is damaged or silent as a whole fails again here
            load_audio(path, sample_rate=self.sample_rate)
            return None
        wave = wave.repeat(-(-size // len(wave)))[:size] if len(wave) < size else wave[:size]
        return wave if bool(wave.any()) else None


class RoomsFromFiles(Augmentation):
    """Convolution with an impulse response from a file, see `mmssl.augment.reverb.Reverberation`.

    Args:
        files: of impulse responses, to draw from.
        sample_rate: of the clips, in Hz.

    Raises:
        ConfigError: no files.
    """

    def __init__(self, files: Sequence[str], sample_rate: int = 16000) -> None:
        if not files:
            raise ConfigError("Rooms need files of impulse responses, got none.")
        self.files, self.sample_rate = tuple(files), sample_rate

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """(T,) -> (T,)."""
        path = self.files[integer(0, len(self.files) - 1, generator)]
        return Reverberation([path], sample_rate=self.sample_rate)(x, generator)


def speaker_augmentation(
    noise: str | None = None, rooms: str | None = None, probability: float = 0.6, sample_rate: int = 16000
) -> Augmentation | None:
    """With a probability one of the kinds of noise that there are, or a room; all are equally likely.

    Args:
        noise: a folder, "synthetic" for coloured noise at 0-15 dB made on the spot, or None. A folder with MUSAN's
            parts `noise`, `music` and `speech` gives three kinds: noise at 0-15 dB, music at 5-15 dB, and babble of
            four to seven voices at 13-20 dB. Any other folder gives noise at 0-15 dB.
        rooms: a folder of impulse responses, "synthetic" for rooms made on the spot, or None.
        probability: that a clip is changed at all; 0.6 in WeSpeaker.
        sample_rate: of the clips, in Hz.

    Returns:
        The augmentation; None where both are None.

    Raises:
        DataError: a folder does not exist or holds no sound file.
        ConfigError: the probability is out of range.
    """
    kinds: list[Augmentation] = []
    if noise == SYNTHETIC:
        kinds.append(AdditiveNoise((0.0, 15.0), sample_rate=sample_rate))
    elif noise is not None:
        parts = [part for part in MUSAN if (Path(noise) / part).is_dir()]
        for part in parts:
            snr, together = MUSAN[part]
            kinds.append(NoiseFromFiles(sound_files(Path(noise) / part, "noise"), snr, together, sample_rate))
        if not parts:
            kinds.append(NoiseFromFiles(sound_files(noise, "noise"), sample_rate=sample_rate))
    if rooms == SYNTHETIC:
        kinds.append(Reverberation(sample_rate=sample_rate))
    elif rooms is not None:
        kinds.append(RoomsFromFiles(sound_files(rooms, "impulse responses"), sample_rate))
    return Chain([With(probability, OneOf(kinds))]) if kinds else None


def sound_files(folder: str | os.PathLike[str], what: str) -> list[str]:
    """All sound files below a folder, sorted by name.

    Raises:
        DataError: there is no such folder, or no sound file in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(
            f"The folder of {what} {str(folder)!r} does not exist (seen from {Path.cwd()}). Give an existing folder, "
            f"{SYNTHETIC!r} for what is made on the spot, or null for none."
        )
    found = (Path(base) / name for base, _, names in os.walk(root, followlinks=True) for name in names)
    files = sorted((str(path) for path in found if path.suffix.lower() in SUFFIXES), key=natural_key)
    if not files:
        raise DataError(f"The folder of {what} {str(folder)!r} holds no sound file ({', '.join(SUFFIXES)}).")
    return files
