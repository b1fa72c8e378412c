"""Reading clips for pretraining: sound, pictures, video, or sound and video of the same stretch of time.

A reader measures a clip in units of its own (samples, video frames, or 1 for a picture) and loads a stretch of it.
Which stretch is drawn elsewhere (`mmssl.training.pretrain_batches`), from the seed of the run, the clip and the epoch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from mmssl.errors import ConfigError, DataError
from mmssl.lengths import pad, seconds_to_frames, seconds_to_samples
from mmssl.media.audio import audio_info, load_audio
from mmssl.media.images import load_image
from mmssl.media.sync import load_audio_video
from mmssl.media.video import load_video, video_info
from mmssl.types import Clip, Inputs, Padded, UpstreamSpec

Size = int | tuple[int, int]


@dataclass(frozen=True)
class Item:
    """What was read of one clip.

    Attributes:
        waveform: (T,) float32 in [-1, 1].
        video: (F, 3, H, W) uint8.
        image: (3, H, W) uint8.
    """

    waveform: Tensor | None = None
    video: Tensor | None = None
    image: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        return sum(part.nbytes for part in (self.waveform, self.video, self.image) if part is not None)


class ClipReader(ABC):
    """Reads one kind of clip.

    Attributes:
        rate: units in a second; None for pictures, which have no duration.
        least: shorter clips cannot be used, in units.
        most: longer clips are cropped to this, in units; None to take all.
        step: crops start at multiples of so many units.
    """

    rate: float | None
    least: int = 1
    most: int | None = None
    step: int = 1

    @abstractmethod
    def measure(self, clip: Clip) -> int:
        """Extent of a clip in units.

        Raises:
            DataError: the clip does not have what this reader reads.
            MediaError: its file cannot be read.
        """

    @abstractmethod
    def load(self, clip: Clip, first: int, count: int) -> Item:
        """`count` units of a clip from unit `first` on.

        Raises:
            MediaError: the file cannot be read.
        """

    @abstractmethod
    def cut(self, item: Item, first: int, count: int) -> Item:
        """The same stretch of a clip that was loaded whole."""

    def first_sample(self, first: int) -> int:
        """Sample of the sound at which unit `first` begins."""
        return first

    def collate(self, items: Sequence[Item]) -> Inputs:
        """A batch: padded waveforms, video and images, the latter two as float32 in [0, 1].

        Raises:
            DataError: pictures of unequal size.
        """
        waveforms = video = images = None
        if items[0].waveform is not None:
            waveforms = Padded(*pad([_present(item.waveform) for item in items]))
        if items[0].video is not None:
            videos = [_present(item.video) for item in items]
            _check_equal([tuple(part.shape[1:]) for part in videos])
            padded, lengths = pad(videos)
            video = Padded(padded.float().div_(255), lengths)
        if items[0].image is not None:
            pictures = [_present(item.image) for item in items]
            _check_equal([tuple(part.shape) for part in pictures])
            images = torch.stack(pictures).float().div_(255)
        return Inputs(waveforms, video, images)


class AudioReader(ClipReader):
    """Waveforms.

    Args:
        sample_rate: in Hz.
        max_seconds: longer clips are cropped to this.
        min_samples: shorter clips are of no use.
        step: crops start at multiples of so many samples: the hop of the encoder, so that its frames are those of the
            whole clip.

    Raises:
        ConfigError: a duration that is not positive.
    """

    def __init__(self, sample_rate: int, max_seconds: float = 15.6, min_samples: int = 400, step: int = 1) -> None:
        if not max_seconds > 0 or step < 1 or min_samples < 1:
            raise ConfigError(
                f"max_seconds must be above 0, step and min_samples at least 1, got {max_seconds}, {step} and "
                f"{min_samples}."
            )
        self.sample_rate, self.rate = sample_rate, float(sample_rate)
        self.least, self.most, self.step = min_samples, seconds_to_samples(max_seconds, sample_rate), step

    def measure(self, clip: Clip) -> int:
        """Samples of a clip."""
        return seconds_to_samples(_audio_seconds(clip), self.sample_rate)

    def load(self, clip: Clip, first: int, count: int) -> Item:
        """Samples of a clip; the whole clip is resampled, so that a crop is a slice of it."""
        waveform, _ = load_audio(
            str(clip.audio), sample_rate=self.sample_rate, start=clip.start, duration=clip.duration
        )
        return self.cut(Item(waveform=waveform), first, count)

    def cut(self, item: Item, first: int, count: int) -> Item:
        """A slice."""
        return Item(waveform=_present(item.waveform)[first : first + count])


class ImageReader(ClipReader):
    """Pictures of one size.

    Args:
        size: (height, width), or the side of a square.

    Raises:
        ConfigError: a size below 1.
    """

    rate = None
    most = 1

    def __init__(self, size: Size) -> None:
        self.size = _size(size)

    def measure(self, clip: Clip) -> int:
        """1."""
        if clip.image is None:
            raise DataError(f"The clip {clip.id!r} has no image; {_has(clip)}. This encoder is trained on images.")
        return 1

    def load(self, clip: Clip, first: int, count: int) -> Item:
        """The picture."""
        return Item(image=load_image(str(clip.image), self.size, as_uint8=True))

    def cut(self, item: Item, first: int, count: int) -> Item:
        """The picture."""
        return item


class VideoReader(ClipReader):
    """Stretches of video without sound.

    Args:
        num_frames: of a stretch; shorter videos are of no use.
        size: (height, width), or the side of a square.
        fps: in Hz; None keeps each file's own.

    Raises:
        ConfigError: a value below 1.
    """

    def __init__(self, num_frames: int, size: Size, fps: float | None = None) -> None:
        if num_frames < 1 or (fps is not None and not fps > 0):
            raise ConfigError(f"num_frames must be at least 1 and fps above 0, got {num_frames} and {fps}.")
        self.size, self.fps, self.rate = _size(size), fps, fps
        self.least = self.most = num_frames

    def measure(self, clip: Clip) -> int:
        """Video frames of a clip."""
        return _video_frames(clip, self.fps)

    def load(self, clip: Clip, first: int, count: int) -> Item:
        """Frames of a clip."""
        rate = self.fps or video_info(str(clip.video)).fps
        video, _ = load_video(
            str(clip.video),
            fps=self.fps,
            size=self.size,
            start=clip.start + first / rate,
            duration=count / rate,
            as_uint8=True,
        )
        return Item(video=video[:count])

    def cut(self, item: Item, first: int, count: int) -> Item:
        """A slice."""
        return Item(video=_present(item.video)[first : first + count])


class AudioVideoReader(ClipReader):
    """Sound and video that begin and end together. Units are video frames.

    Args:
        sample_rate: of the sound, in Hz.
        fps: of the video, in Hz.
        seconds: of a stretch; shorter clips are of no use.
        size: (height, width) of the video, or the side of a square.

    Raises:
        ConfigError: a stretch of less than one video frame.
    """

    def __init__(self, sample_rate: int, fps: float, seconds: float, size: Size) -> None:
        self.sample_rate, self.fps, self.rate, self.size = sample_rate, fps, fps, _size(size)
        count = seconds_to_frames(seconds, Fraction(fps))
        if count < 1:
            raise ConfigError(f"A stretch of {seconds} s holds no frame at {fps:g} Hz: give more seconds.")
        self.least = self.most = count

    def measure(self, clip: Clip) -> int:
        """Video frames for which the clip has sound too."""
        frames = _video_frames(clip, self.fps)
        sound = audio_info(clip.audio or str(clip.video)).duration - clip.start
        return min(frames, int(sound * self.fps + 1e-6))

    def load(self, clip: Clip, first: int, count: int) -> Item:
        """Frames of a clip, and the sound of the same time: round(count / fps * sample_rate) samples."""
        video = str(clip.video)
        both = load_audio_video(
            video,
            audio=None if clip.audio in (None, clip.video) else clip.audio,
            fps=self.fps,
            size=self.size,
            sample_rate=self.sample_rate,
            start=clip.start + first / self.fps,
            duration=count / self.fps,
            as_uint8=True,
        )
        return Item(waveform=both.waveform, video=both.video)

    def cut(self, item: Item, first: int, count: int) -> Item:
        """Slices of both."""
        begin, end = self.first_sample(first), self.first_sample(first + count)
        return Item(_present(item.waveform)[begin:end], _present(item.video)[first : first + count])

    def first_sample(self, first: int) -> int:
        """Sample of the sound at which video frame `first` begins."""
        return seconds_to_samples(first / self.fps, self.sample_rate)


class AudioImageReader(AudioReader):
    """Waveforms, each with one picture, such as a spoken and a written digit.

    Args:
        sample_rate, max_seconds, min_samples, step: see `AudioReader`.
        size: (height, width) of the picture, or the side of a square.
    """

    def __init__(
        self, sample_rate: int, size: Size, max_seconds: float = 15.6, min_samples: int = 400, step: int = 1
    ) -> None:
        super().__init__(sample_rate, max_seconds, min_samples, step)
        self._pictures = ImageReader(size)

    def measure(self, clip: Clip) -> int:
        """Samples of a clip that has a picture too."""
        self._pictures.measure(clip)
        return super().measure(clip)

    def load(self, clip: Clip, first: int, count: int) -> Item:
        """Samples and the picture."""
        return replace(super().load(clip, first, count), image=self._pictures.load(clip, 0, 1).image)

    def cut(self, item: Item, first: int, count: int) -> Item:
        """A slice of the samples, and the picture."""
        return replace(super().cut(item, first, count), image=item.image)


def reader_for(
    spec: UpstreamSpec,
    *,
    max_seconds: float = 15.6,
    seconds: float | None = None,
    num_frames: int | None = None,
    image_size: Size | None = None,
) -> ClipReader:
    """The reader of what an encoder takes.

    Args:
        spec: of the encoder.
        max_seconds: of waveforms alone; longer clips are cropped to this.
        seconds: of stretches of sound and video; None for the longest that the encoder takes.
        num_frames: of video alone; None for the most that the encoder takes.
        image_size: of images and video; None for the size that the encoder takes.

    Raises:
        ConfigError: the encoder does not say what is needed and it was not given.
    """
    kinds = frozenset(spec.inputs)
    hop = spec.streams["audio"].hop_lengths[-1] if "audio" in spec.streams else 1
    if kinds == {"waveforms"}:
        return AudioReader(_given(spec.sample_rate, "sample_rate"), max_seconds, spec.min_length, max(hop, 1))
    size = _given(image_size or spec.image_size, "image_size")
    if kinds == {"images"}:
        return ImageReader(size)
    if kinds == {"video"}:
        return VideoReader(_given(num_frames or spec.max_length, "num_frames"), size, spec.video_fps)
    rate = _given(spec.sample_rate, "sample_rate")
    if kinds == {"waveforms", "images"}:
        return AudioImageReader(rate, size, max_seconds, spec.min_length, max(hop, 1))
    longest = None if spec.max_length is None else spec.max_length / rate
    return AudioVideoReader(rate, _given(spec.video_fps, "video_fps"), _given(seconds or longest, "seconds"), size)


def _given(value: int | float | tuple[int, int] | None, name: str):  # type: ignore[no-untyped-def]
    if value is None:
        raise ConfigError(f"The encoder does not say its {name}: give it to the reader.")
    return value


def _audio_seconds(clip: Clip) -> float:
    if clip.audio is None:
        raise DataError(f"The clip {clip.id!r} has no audio; {_has(clip)}. This encoder is trained on waveforms.")
    if clip.duration is not None:
        return clip.duration
    return audio_info(clip.audio).duration - clip.start


def _video_frames(clip: Clip, fps: float | None) -> int:
    if clip.video is None:
        raise DataError(f"The clip {clip.id!r} has no video; {_has(clip)}. This encoder is trained on video.")
    info = video_info(clip.video)
    rest = info.duration - clip.start
    seconds = rest if clip.duration is None else min(clip.duration, rest)
    return max(int(seconds * (fps or info.fps) + 1e-6), 0)


def _has(clip: Clip) -> str:
    kinds = [kind for kind in ("audio", "video", "image") if getattr(clip, kind) is not None]
    return f"it has {' and '.join(kinds)}" if kinds else "it has no media at all"


def _size(size: Size) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ConfigError(f"A picture has at least one pixel, got the size {size}.")
    return height, width


def _present(part: Tensor | None) -> Tensor:
    if part is None:
        raise DataError("A clip of the batch lacks a stream that the others have.")
    return part


def _check_equal(shapes: Sequence[tuple[int, ...]]) -> None:
    if len(set(shapes)) > 1:
        raise DataError(f"Pictures of one batch must have one size, got {sorted(set(shapes))}: give the reader a size.")
