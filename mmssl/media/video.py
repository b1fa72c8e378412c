"""Video in: any container, codec and rate to pictures at a constant rate, or a clear error.

Files with a variable frame rate, or read at another rate than their own, become a constant rate by time stamps: picture
k is the one that is on screen at k / fps, so never one that comes later. At the file's own rate each picture stands in
the slot that its time stamp is nearest to, so that rounded and trembling time stamps neither double nor drop one.
Nothing stands in for pictures that are not there: damaged, truncated and empty files raise `MediaError`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmssl.errors import MediaError
from mmssl.lengths import frames_on_screen, samples_to_seconds, seconds_to_frames
from mmssl.media import container
from mmssl.media.audio import END_TOLERANCE
from mmssl.media.paths import existing_file
from mmssl.media.pictures import LostError, Picture, Pictures

if TYPE_CHECKING:
    import numpy
    from torch import Tensor

Size = int | tuple[int, int]

# A rate this close to the file's own is meant to be that: 29.97 for 30000/1001.
_SAME_RATE = Fraction(1, 10_000)
# Below it, decoding from the beginning costs less than a seek.
_SEEK_FROM = Fraction(2)


@dataclass(frozen=True)
class VideoInfo:
    """What the first video stream of a file holds.

    Attributes:
        fps: pictures per second that `load_video` gives by default.
        num_frames: how many pictures that are.
        width, height: in pixels, as shown (turned as the file asks).
        start: when the first picture is shown, in seconds from the file's first moment: the earlier of the first
            picture and the first sample.
        has_audio: whether there is a sound stream.
        audio_start: when the first sample is heard, likewise; None without sound.
    """

    fps: float
    num_frames: int
    width: int
    height: int
    start: float
    has_audio: bool
    audio_start: float | None

    @property
    def duration(self) -> float:
        """In seconds."""
        return samples_to_seconds(self.num_frames, self.fps)


@dataclass(frozen=True)
class VideoCut:
    """A stretch of video on its exact time grid.

    Attributes:
        pictures: (T, H, W, 3) uint8.
        frame_rate: exact.
        first: position of the first picture on the grid of the whole video.
        origin: when the whole video's first picture is shown, in seconds on the container's clock.
    """

    pictures: numpy.ndarray
    frame_rate: Fraction
    first: int
    origin: Fraction


def video_info(path: str | os.PathLike[str]) -> VideoInfo:
    """Rate, length, size and offset of a video file.

    The whole file is read but, where its container tells all times, only the first picture is decoded: that a later
    one is damaged shows when it is loaded.

    Raises:
        MediaError: the file is missing, truncated, not a video file, or has no picture.
    """
    file = existing_file(path)
    with Pictures(file) as video:
        head = next(iter(video), None)
        if head is None:
            raise video.empty()
        video.rewind()
        times = video.packet_times()
        if times is None:
            video.rewind()
            times = [(picture.start, picture.end) for picture in video]
        rate, lead = _grid(video, None)
        end = max(times)[1]
        count = max(1, frames_on_screen(end - head.start, rate, lead))
        has_audio = bool(video.container.streams.audio)
    sound = container.first_time(file) if has_audio else head.start
    turned = _quarter_turns(head.frame) % 2
    width, height = head.frame.width, head.frame.height
    zero = min(sound, head.start)
    return VideoInfo(
        fps=float(rate),
        num_frames=count,
        width=height if turned else width,
        height=width if turned else height,
        start=float(head.start - zero),
        has_audio=has_audio,
        audio_start=float(sound - zero) if has_audio else None,
    )


def load_video(
    path: str | os.PathLike[str],
    *,
    fps: float | None = None,
    size: Size | None = None,
    start: float = 0.0,
    duration: float | None = None,
    as_uint8: bool = False,
) -> tuple[Tensor, float]:
    """Read the pictures of a video file at a constant rate.

    A segment equals that slice of the whole: `load_video(path)[0][round(start * fps) :]` and so on, whatever the
    container. mp4, mov, mkv and webm are sought by their key frames; other files are decoded from the beginning.
    Pictures are turned as the file asks; a pixel aspect ratio other than 1 is not applied.

    Args:
        path: any video file that FFmpeg reads; the content decides, not the name.
        fps: rate of the result in Hz; None keeps the file's own.
        size: (height, width), or the length of the shorter side, in pixels; None keeps the file's own. Scaling is
            bilinear with the filter widened as pictures shrink.
        start: first moment of the segment, in seconds from the first picture; the nearest picture is taken.
        duration: of the segment in seconds; None means to the end. It may pass the end by 50 ms, counted in begun
            pictures, and is then shortened to it.
        as_uint8: return 0 to 255 instead of [0, 1].

    Returns:
        The video (T, 3, H, W), float32 in [0, 1] (or uint8), and its rate in Hz.

    Raises:
        MediaError: the file is missing, truncated, damaged, without a video stream or pictures, changes its picture
            size (without `size`), or the segment is not inside it.
    """
    file = existing_file(path)
    check_request(file, fps, size, start, duration)

    def stretch(rate: Fraction, _: Fraction) -> tuple[int, int | None]:
        return seconds_to_frames(start, rate), None if duration is None else seconds_to_frames(duration, rate)

    cut = cut_video(file, fps, size, stretch)
    check_extent(file, cut, start, duration)
    return to_tensor(cut.pictures, as_uint8), float(cut.frame_rate)


def check_request(file: Path, fps: float | None, size: Size | None, start: float, duration: float | None) -> None:
    """Refuse rates, sizes and times that mean nothing."""
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise MediaError(f"{file}: the frame rate to load it at must be more than 0 Hz, got {fps!r}.")
    sides = (size,) if isinstance(size, int) or size is None else tuple(size)
    whole = all(side is None or (isinstance(side, int) and not isinstance(side, bool) and side > 0) for side in sides)
    if not whole or len(sides) > 2:
        raise MediaError(f"{file}: size must be (height, width) or the shorter side, in pixels >= 1, got {size!r}.")
    if not (math.isfinite(start) and start >= 0):
        raise MediaError(f"{file}: start must be 0 or more seconds, got {start!r}. Mend the clip's start.")
    if duration is not None and not (math.isfinite(duration) and duration > 0):
        raise MediaError(
            f"{file}: duration must be more than 0 seconds, or None for all to the end, got {duration!r}. Mend the "
            "clip's duration."
        )


def check_extent(file: Path, cut: VideoCut, start: float, duration: float | None) -> None:
    """Refuse a stretch that the file does not hold."""
    rate, read = cut.frame_rate, len(cut.pictures)
    if duration is not None and seconds_to_frames(duration, rate) == 0:
        raise MediaError(
            f"{file}: a duration of {duration} s is less than one picture at {float(rate):g} Hz. Lengthen the clip."
        )
    if read == 0:
        raise MediaError(f"{file}: the segment starts at {start} s, past the end of the video. Mend the clip's start.")
    if duration is None:
        return
    missing = seconds_to_frames(duration, rate) - read
    if missing > tolerated_frames(rate):
        raise MediaError(
            f"{file}: the segment from {start} s to {start + duration:.3f} s passes the end of the video by {missing} "
            f"pictures: it lasts {samples_to_seconds(cut.first + read, float(rate)):.3f} s. Mend the clip's start and "
            "duration."
        )


def tolerated_frames(rate: Fraction) -> int:
    """How many pictures a stretch may miss at an end of the file: those that begin in 50 ms."""
    return frames_on_screen(Fraction(repr(END_TOLERANCE)), rate, Fraction(0))


def cut_video(
    file: Path,
    fps: float | None,
    size: Size | None,
    stretch: Callable[[Fraction, Fraction], tuple[int, int | None]],
) -> VideoCut:
    """Decode a stretch.

    Args:
        file: an existing file.
        fps: as in `load_video`.
        size: as in `load_video`.
        stretch: (exact rate, time of the first picture on the container's clock) -> (first picture, how many or None
            for all), on the grid of the whole video.
    """
    import numpy as np

    with Pictures(file) as video:
        rate, lead = _grid(video, fps)
        pictures = iter(video)
        head = next(pictures, None)
        if head is None:
            raise video.empty()
        first, count = stretch(rate, head.start)
        target = head.start + first / rate + lead
        scale = _Scaler(file, size)
        frames: list[numpy.ndarray] = []
        if target - head.start > _SEEK_FROM and video.seek(target):
            try:
                frames = list(_sample(iter(video), None, target, rate, count, scale))
            except LostError:
                video.rewind()
                frames = list(_sample(iter(video), None, target, rate, count, scale))
        else:
            frames = list(_sample(pictures, head, target, rate, count, scale))
    stacked = np.stack(frames) if frames else np.zeros((0, 1, 1, 3), dtype=np.uint8)
    return VideoCut(stacked, rate, first, head.start)


def to_tensor(pictures: numpy.ndarray, as_uint8: bool) -> Tensor:
    """(T, H, W, 3) uint8 array -> (T, 3, H, W) tensor, uint8 or float32 in [0, 1]."""
    import torch

    video = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
    return video if as_uint8 else video.float().div_(255)


def _grid(video: Pictures, fps: float | None) -> tuple[Fraction, Fraction]:
    """Exact rate of the result, and how long after its slot's beginning a picture still counts for it."""
    own = video.frame_rate
    rate = own if fps is None else Fraction(repr(float(fps)))
    if abs(rate - own) < _SAME_RATE * own:
        return own, 1 / (2 * own)
    # a time stamp rounded up must not put its picture one slot later; coarse clocks count pictures and round nothing
    return rate, video.tick if video.tick < 1 / (4 * own) else Fraction(0)


def _sample(
    pictures: Iterator[Picture],
    shown: Picture | None,
    target: Fraction,
    rate: Fraction,
    count: int | None,
    scale: _Scaler,
) -> Iterator[numpy.ndarray]:
    """What is on screen at target, target + 1 / rate ...; `shown` is the picture that was taken off `pictures`."""
    emitted = 0
    while count is None or emitted < count:
        following = next(pictures, None)
        if shown is None:
            if following is None:
                return
            if following.start > target:
                raise LostError
            shown = following
            continue
        end = shown.end if following is None else following.start
        content: numpy.ndarray | None = None
        while target + emitted / rate < end and (count is None or emitted < count):
            content = scale(shown.frame) if content is None else content
            yield content
            emitted += 1
        if following is None:
            return
        shown = following


class _Scaler:
    """Turns decoded frames into (H, W, 3) uint8 arrays of one size."""

    def __init__(self, file: Path, size: Size | None) -> None:
        from av.video.reformatter import VideoReformatter

        self._file = file
        self._size = size
        self._own: tuple[int, int] | None = None
        self._reformatter = VideoReformatter()

    def __call__(self, frame: Any) -> numpy.ndarray:
        import numpy as np
        from av.video.reformatter import Interpolation

        own = (frame.width, frame.height)
        if self._size is None and self._own not in (None, own):
            raise MediaError(
                f"{self._file}: the picture size changes from {self._own} to {own} within the stream. Load it with a "
                "fixed size."
            )
        self._own = own
        turns = _quarter_turns(frame)
        width, height = self._target(*own) if turns % 2 == 0 else self._target(*own[::-1])[::-1]
        # the exact flags make the result independent of the processor's vector instructions
        exact = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.BITEXACT
        flags = Interpolation.BILINEAR | exact
        rgb = self._reformatter.reformat(frame, width, height, "rgb24", interpolation=flags, threads=1).to_ndarray()
        return np.rot90(rgb, turns) if turns else rgb

    def _target(self, width: int, height: int) -> tuple[int, int]:
        if self._size is None:
            return width, height
        if isinstance(self._size, int):
            short = min(width, height)
            return max(1, round(width * self._size / short)), max(1, round(height * self._size / short))
        return self._size[1], self._size[0]


def _quarter_turns(frame: Any) -> int:
    """Counter-clockwise quarter turns that bring a decoded frame upright."""
    return round(frame.rotation / 90) % 4
