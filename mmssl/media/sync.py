"""Sound and video of a file on one clock.

Streams of a file need not begin or end together: recorders start one late, codecs delay, transport streams are cut.
Both are therefore placed by their time stamps, and what is returned is only what both hold: no picture is made up for
sound without video, and no silence for video without sound.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from mmssl.errors import MediaError
from mmssl.lengths import samples_to_seconds, seconds_to_frames, seconds_to_samples
from mmssl.media import container
from mmssl.media.audio import load_audio
from mmssl.media.paths import existing_file
from mmssl.media.video import Size, VideoCut, check_extent, check_request, cut_video, to_tensor, tolerated_frames

if TYPE_CHECKING:
    from torch import Tensor

# Matroska rounds to milliseconds: sound this much later than the first picture costs no picture.
_ROUNDING = Fraction(1, 1000)


@dataclass(frozen=True)
class AudioVideo:
    """A stretch of sound and video that begin together.

    Attributes:
        waveform: (T,) or (C, T) float32 in [-1, 1].
        sample_rate: in Hz.
        video: (F, 3, H, W) float32 in [0, 1], or uint8.
        fps: in Hz. Picture k is on screen from k / fps on; T is F / fps * sample_rate, to the rounding of samples.
        start: of the stretch, in seconds on the clock that `load_audio_video` describes.
    """

    waveform: Tensor
    sample_rate: int
    video: Tensor
    fps: float
    start: float

    @property
    def duration(self) -> float:
        """In seconds."""
        return samples_to_seconds(len(self.video), self.fps)


def load_audio_video(
    path: str | os.PathLike[str],
    *,
    audio: str | os.PathLike[str] | None = None,
    fps: float | None = None,
    size: Size | None = None,
    sample_rate: int | None = None,
    start: float = 0.0,
    duration: float | None = None,
    mono: bool = True,
    as_uint8: bool = False,
) -> AudioVideo:
    """Read sound and video of the same stretch of time.

    The clock is the one of players: it begins with the file's first moment, be it a sample or a picture. The stretch
    begins at the picture nearest to `start` and holds a whole number of pictures; the sound is cut to the same stretch.

    Args:
        path: a video file.
        audio: a file of its sound, where that lies apart (its first sample and the first picture then belong
            together); None takes the sound stream of the video file.
        fps: as in `load_video`.
        size: as in `load_video`.
        sample_rate: of the result in Hz; None keeps the file's own.
        start: first moment of the stretch in seconds. Where one stream begins later, so does the result.
        duration: in seconds; None means as long as both streams last. With a duration, each stream must hold all of
            it, but for 50 ms at the end; at the beginning the stretch moves by as much where needed.
        mono: as in `load_audio`.
        as_uint8: as in `load_video`.

    Raises:
        MediaError: as `load_video` and `load_audio` do; also where one stream is missing, or the two share no time.
    """
    file = existing_file(path)
    check_request(file, fps, size, start, duration)
    sound = file if audio is None else existing_file(audio)
    heard = container.first_time(file) if audio is None else None
    begins = Fraction(0)

    def stretch(rate: Fraction, shown: Fraction) -> tuple[int, int | None]:
        nonlocal begins
        begins = _begin(file, rate, shown, shown if heard is None else heard, start, duration)
        return int(begins * rate), None if duration is None else seconds_to_frames(duration, rate)

    cut = cut_video(file, fps, size, stretch)
    check_extent(file, cut, float(begins), duration)
    first_sound = cut.origin if heard is None else heard
    # negative by at most the tolerated rounding
    audio_start = max(Fraction(0), cut.origin + begins - first_sound)
    waveform, rate = load_audio(
        sound,
        sample_rate=sample_rate,
        start=float(audio_start),
        duration=None if duration is None else float(len(cut.pictures) / cut.frame_rate),
        mono=mono,
    )
    count = _common_frames(waveform.shape[-1], rate, cut)
    if count < 1:
        raise MediaError(
            f"{sound}: its sound ends {waveform.shape[-1] / rate:.3f} s into the segment, before the first picture "
            "does. Mend the clip's start and duration."
        )
    samples = seconds_to_samples(float(count / cut.frame_rate), rate)
    return AudioVideo(
        waveform=waveform[..., :samples],
        sample_rate=rate,
        video=to_tensor(cut.pictures[:count], as_uint8),
        fps=float(cut.frame_rate),
        start=float(cut.origin + begins - min(first_sound, cut.origin)),
    )


def _begin(
    file: Path, rate: Fraction, shown: Fraction, heard: Fraction, start: float, duration: float | None
) -> Fraction:
    """Where the stretch begins: in seconds from the first picture, on the grid of pictures."""
    wanted = Fraction(repr(float(start))) + min(shown, heard) - shown
    common = max(Fraction(0), heard - shown)
    earliest = math.ceil((common - _ROUNDING) * rate) / rate
    nearest = seconds_to_frames(wanted, rate) / rate
    if duration is not None and earliest - nearest > Fraction(tolerated_frames(rate)) / rate:
        late, by = ("sound", heard - shown) if heard > shown else ("video", shown - heard)
        raise MediaError(
            f"{file}: the segment starts at {start} s, but the {late} begins {float(by):.3f} s after the rest. "
            "Mend the clip's start."
        )
    return max(earliest, nearest)


def _common_frames(samples: int, sample_rate: int, cut: VideoCut) -> int:
    """Pictures for which there is sound to their end."""
    held = Fraction(samples + 1, sample_rate) * cut.frame_rate
    return min(len(cut.pictures), math.floor(held))
