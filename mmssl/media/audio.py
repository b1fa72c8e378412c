"""Sound in: any file, rate, width and channel count to one float waveform, or a clear error.

Nothing stands in for data that is not there: a file that is missing, cut short, empty, silent or not finite raises
`MediaError`, and whoever walks over a corpus decides whether to stop or to leave the clip out.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmssl.errors import MediaError
from mmssl.lengths import samples_to_seconds, seconds_to_samples
from mmssl.media import container, sound_file
from mmssl.media.remote import local_file
from mmssl.media.resampling import resample

if TYPE_CHECKING:
    import numpy
    from torch import Tensor

# Manifests round times, and lossy codecs pad or trim: a segment may pass the end of its file by this many seconds.
END_TOLERANCE = 0.05
# Lossy decoders overshoot full scale a little; samples far above it are integers written into a float file.
_LARGEST = 8.0


@dataclass(frozen=True)
class AudioInfo:
    """What a sound file holds.

    Attributes:
        sample_rate: in Hz.
        num_samples: per channel.
        num_channels: 1 for mono.
    """

    sample_rate: int
    num_samples: int
    num_channels: int

    @property
    def duration(self) -> float:
        """In seconds."""
        return samples_to_seconds(self.num_samples, self.sample_rate)


def audio_info(path: str | os.PathLike[str]) -> AudioInfo:
    """Rate, length and channels of a sound file, or of the first sound stream of a video file.

    Sound files answer from their headers; that an mp3 is cut short shows only when it is loaded. Containers (m4a, mp4,
    mkv ...) state no number of samples, so their sound is decoded to count it.

    Raises:
        MediaError: the file is missing, truncated, holds no samples, or is not a sound file.
    """
    with local_file(path) as file:
        try:
            info = AudioInfo(*sound_file.inspect(file))
        except sound_file.UnreadableError:
            info = AudioInfo(*container.inspect(file))
        if info.num_samples <= 0:
            raise _without_samples(file)
        return info


def load_audio(
    path: str | os.PathLike[str],
    *,
    sample_rate: int | None = None,
    start: float = 0.0,
    duration: float | None = None,
    mono: bool = True,
) -> tuple[Tensor, int]:
    """Read a sound file, or the sound of a video file.

    A segment reads only what it needs and equals that slice of the whole file (lossy codecs: to the rounding of their
    decoders, and but for the noise with which AAC fills high bands). Resampling runs on the whole segment at once
    (torchaudio's windowed sinc), so that the result does not depend on any chunking.

    Args:
        path: any file that libsndfile or FFmpeg reads, or a URL that fsspec knows; the content decides, not the name.
        sample_rate: rate of the result in Hz; None keeps the file's own.
        start: first moment of the segment, in seconds from the first sample.
        duration: of the segment in seconds; None means to the end. It may pass the end of the file by 50 ms at most
            and is then shortened to it.
        mono: return the mean over channels; False keeps all channels.

    Returns:
        The waveform, float32 in [-1, 1], of shape (T,), or (C, T) for `mono=False`, and its rate in Hz.
        Lossy and float files may overshoot [-1, 1] slightly and are not clipped.

    Raises:
        MediaError: the file is missing, empty, truncated, damaged, not a sound file, without a sound stream, silent
            (every sample 0) or not finite, or the segment is not inside it.
    """
    import torch

    with local_file(path) as file:
        check_request(file, sample_rate, start, duration)
        try:
            samples, rate, total = sound_file.read(file, start, duration)
        except sound_file.UnreadableError:
            samples, rate, total = container.read(file, start, duration)
        check_extent(file, samples.shape[1], rate, total, start, duration)
        check_values(file, samples)
        if not samples.any():
            raise silent(file, samples.shape[1])
        waveform = torch.from_numpy(samples.copy() if samples.shape[0] == 1 or not mono else samples.mean(axis=0)[None])
        if mono and not waveform.any():
            raise cancelled(file)
    if sample_rate is not None and sample_rate != rate:
        waveform, rate = resample(waveform, rate, sample_rate), sample_rate
    return (waveform[0] if mono else waveform), rate


def _without_samples(file: Path) -> MediaError:
    return MediaError(f"{file} has a header but no samples. Restore it from its source or leave the clip out.")


def silent(file: Path, samples: int) -> MediaError:
    """The error for a file of zeros."""
    return MediaError(
        f"{file} is silent: every one of the {samples} samples read is 0. Restore it from its source or leave the clip "
        "out."
    )


def cancelled(file: Path) -> MediaError:
    """The error for channels whose mean is zero everywhere."""
    return MediaError(f"{file}: its channels cancel each other out. Read it with mono=False and choose one.")


def check_request(file: Path, sample_rate: int | None, start: float, duration: float | None) -> None:
    """Refuse a rate below 1 Hz and a stretch that no file can have.

    Raises:
        MediaError: as it says.
    """
    if sample_rate is not None and (
        isinstance(sample_rate, bool) or not isinstance(sample_rate, int) or sample_rate < 1
    ):
        raise MediaError(
            f"{file}: the sample rate to load it at must be a whole number of Hz >= 1, got {sample_rate!r}."
        )
    if not (math.isfinite(start) and start >= 0):
        raise MediaError(f"{file}: start must be 0 or more seconds, got {start!r}. Mend the clip's start.")
    if duration is not None and not (math.isfinite(duration) and duration > 0):
        raise MediaError(
            f"{file}: duration must be more than 0 seconds, or None for all to the end, got {duration!r}. Mend the "
            "clip's duration."
        )


def check_extent(file: Path, read: int, rate: int, total: int | None, start: float, duration: float | None) -> None:
    """Refuse a stretch that is not inside its file.

    Raises:
        MediaError: as it says.
    """
    if total == 0:
        raise _without_samples(file)
    first = seconds_to_samples(start, rate)
    length = (
        "" if total is None else f" it lasts {samples_to_seconds(total, rate):.3f} s ({total} samples at {rate} Hz)."
    )
    if total is not None and first >= total:
        raise MediaError(f"{file}: the segment starts at {start} s, past the end:{length} Mend the clip's start.")
    if duration is None:
        return
    wanted = seconds_to_samples(duration, rate)
    if wanted == 0:
        raise MediaError(f"{file}: a duration of {duration} s is less than one sample at {rate} Hz. Lengthen the clip.")
    if wanted - read > seconds_to_samples(END_TOLERANCE, rate):
        raise MediaError(
            f"{file}: the segment from {start} s to {start + duration:.3f} s passes the end by more than "
            f"{END_TOLERANCE} s:{length} Mend the clip's start and duration."
        )


def check_values(file: Path, samples: numpy.ndarray) -> None:
    """Refuse samples that are not finite, or far outside [-1, 1].

    Raises:
        MediaError: as it says.
    """
    import numpy as np

    peak = float(np.abs(samples).max())
    if not math.isfinite(peak):
        wrong = int(np.count_nonzero(~np.isfinite(samples)))
        raise MediaError(
            f"{file} holds {wrong} samples that are NaN or infinite, of {samples.size}. Make the file anew or leave "
            "the clip out."
        )
    if peak > _LARGEST:
        raise MediaError(
            f"{file}: samples reach {peak:.6g}, far outside [-1, 1]: integers seem to have been written as floats. "
            "Divide them by their full scale (32768 for 16 bit) and write the file anew."
        )
