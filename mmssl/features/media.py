"""Sound, video and pictures of clips for upstreams that take more than a waveform.

What is read of a clip is a function of its files alone: sound and pictures of the same stretch of time, the pictures
at the file's own rate, of which those on screen at the upstream's instants are taken. No picture is made up for a clip
without video, and no silence for one without sound: such a clip is an error, or keeps the streams that it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmssl.errors import ConfigError, DataError, InputError, MediaError
from mmssl.features.forward import split_clips
from mmssl.lengths import frames_on_screen, pad, samples_to_seconds
from mmssl.types import Clip, Representation, UpstreamSpec

if TYPE_CHECKING:
    from mmssl.upstreams.base import Upstream

KINDS = {"waveforms": "sound", "video": "video", "images": "image"}
"""Inputs of upstreams, and what a clip must have for each."""
_OWN_STREAM = {"audio": "waveforms", "video": "video", "image": "images"}
# a rate this close to the upstream's is meant to be that: 29.97 for 30000/1001
_SAME_RATE = Fraction(1, 10_000)


@dataclass(frozen=True)
class Feed:
    """What is read of each clip.

    Attributes:
        inputs: of "waveforms", "video" and "images".
        partial: whether a clip may lack some of them.
    """

    inputs: tuple[str, ...]
    partial: bool = False


@dataclass(frozen=True)
class Media:
    """What was read of one clip; None for what it lacks or was not asked for.

    Attributes:
        waveform: (T,) float32 in [-1, 1].
        video: (F, 3, H, W) uint8.
        image: (3, H, W) uint8.
    """

    waveform: Tensor | None = None
    video: Tensor | None = None
    image: Tensor | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of the inputs that are there."""
        parts = {"waveforms": self.waveform, "video": self.video, "images": self.image}
        return tuple(name for name, part in parts.items() if part is not None)


def make_feed(spec: UpstreamSpec, inputs: Sequence[str] | None = None, partial: bool = False) -> Feed | None:
    """What to read for an upstream; None where it takes waveforms alone.

    Args:
        spec: of the upstream.
        inputs: which of its inputs to give to it; None for all.
        partial: take clips that lack an input.

    Raises:
        ConfigError: an input that the upstream does not take, or a choice where it takes one input only.
    """
    wanted = tuple(spec.inputs if inputs is None else dict.fromkeys(inputs))
    wrong = [name for name in wanted if name not in spec.inputs]
    if wrong or not wanted:
        given = repr(wrong[0]) if wrong else "none"
        raise ConfigError(f"The upstream takes {', '.join(spec.inputs)}; inputs asks for {given}.")
    if partial and len(wanted) == 1:
        raise ConfigError(f"partial is for several inputs, and clips are read for {wanted[0]} alone: leave it out.")
    return None if spec.inputs == ("waveforms",) else Feed(wanted, partial)


def kept_streams(spec: UpstreamSpec, streams: Sequence[str] | None, feed: Feed | None) -> list[str] | None:
    """Names of the streams to store; None for all: those asked for, and of them those that the inputs can give.

    Raises:
        ConfigError: no such stream, or one whose input is not given.
    """
    given = tuple(_OWN_STREAM.values()) if feed is None else feed.inputs
    possible = [name for name in spec.streams if name not in _OWN_STREAM or _OWN_STREAM[name] in given]
    wrong = [name for name in streams or () if name not in possible]
    if wrong or (streams is not None and not streams):
        raise ConfigError(
            f"streams must be some of {', '.join(possible)}, which the upstream gives for {', '.join(given)}; "
            f"got {wrong[0] if wrong else 'none'!r}."
        )
    kept = [name for name in spec.streams if name in (possible if streams is None else streams)]
    return None if len(kept) == len(spec.streams) else kept


def check_media(clip: Clip, feed: Feed) -> None:
    """Refuse a clip that names no file for anything that is read.

    Raises:
        DataError: as it says.
    """
    if not files_of(clip, feed):
        wanted = " or ".join(KINDS[name] for name in feed.inputs)
        raise DataError(f"The clip {clip.id!r} has no {wanted}, which features were asked for of: see its manifest.")


def files_of(clip: Clip, feed: Feed) -> list[str]:
    """Paths of the files that are read for a clip, each once."""
    sound = clip.audio or clip.video
    named = {"waveforms": sound, "video": clip.video, "images": clip.image}
    return list(dict.fromkeys(str(named[name]) for name in feed.inputs if named[name] is not None))


def media_seconds(clip: Clip, feed: Feed) -> float:
    """Seconds of a clip, to plan batches; 1 for a picture.

    Raises:
        MediaError: a file cannot be read, or the clip lacks an input that it must have.
    """
    from mmssl.media.audio import audio_info
    from mmssl.media.video import video_info

    found = present(clip, feed)
    if clip.duration is not None:
        return clip.duration
    if "video" in found:
        return max(video_info(str(clip.video)).duration - clip.start, 0.0)
    if "waveforms" in found:
        return max(audio_info(str(clip.audio or clip.video)).duration - clip.start, 0.0)
    return 1.0


def present(clip: Clip, feed: Feed) -> tuple[str, ...]:
    """Names of the inputs that a clip has. A clip without an audio file has the sound of its video file, if any.

    Raises:
        MediaError: it lacks one and must not, or all.
    """
    from mmssl.media.video import video_info

    silent = False
    found = []
    for name in feed.inputs:
        if name == "waveforms" and clip.audio is None and clip.video is not None:
            silent = not video_info(clip.video).has_audio
            there = not silent
        else:
            there = {"waveforms": clip.audio, "video": clip.video, "images": clip.image}[name] is not None
        found += [name] if there else []
    if not found or (len(found) < len(feed.inputs) and not feed.partial):
        lacking = next(name for name in feed.inputs if name not in found)
        source = f"{clip.video} has no sound stream" if lacking == "waveforms" and silent else "its manifest names none"
        remedy = (
            f"partial=True stores the streams that it has, inputs={list(found)} reads no {KINDS[lacking]} of any clip"
            if found
            else "leave it out"
        )
        raise MediaError(f"The clip {clip.id!r} has no {KINDS[lacking]} ({source}): {remedy}.")
    return tuple(found)


def load_media(clip: Clip, spec: UpstreamSpec, feed: Feed) -> Media:
    """Decode a clip for an upstream.

    Raises:
        MediaError: a file cannot be read, the clip lacks an input that it must have, or is shorter or longer than the
            upstream takes.
    """
    try:
        media = _decode(clip, spec, present(clip, feed))
    except OSError as error:
        raise MediaError(f"The clip {clip.id!r} cannot be read: {error}.") from error
    _check_lengths(clip, media, spec)
    return media


def _decode(clip: Clip, spec: UpstreamSpec, found: Sequence[str]) -> Media:
    from mmssl.media.audio import load_audio
    from mmssl.media.images import load_image
    from mmssl.media.sync import load_audio_video
    from mmssl.media.video import load_video

    waveform = video = image = None
    stretch = {"start": clip.start, "duration": clip.duration}
    if "waveforms" in found and "video" in found:
        both = load_audio_video(
            str(clip.video),
            audio=None if clip.audio in (None, clip.video) else clip.audio,
            size=spec.image_size,
            sample_rate=spec.sample_rate,
            as_uint8=True,
            **stretch,  # type: ignore[arg-type]
        )
        waveform, video = both.waveform, shown_at(both.video, both.fps, spec.video_fps)
    elif "video" in found:
        own, fps = load_video(str(clip.video), size=spec.image_size, as_uint8=True, **stretch)  # type: ignore[arg-type]
        video = shown_at(own, fps, spec.video_fps)
    elif "waveforms" in found:
        waveform, _ = load_audio(str(clip.audio or clip.video), sample_rate=spec.sample_rate, **stretch)  # type: ignore[arg-type]
    if "images" in found:
        image = load_image(str(clip.image), spec.image_size, as_uint8=True)
    return Media(waveform, video, image)


def shown_at(video: Tensor, fps: float, wanted: float | None) -> Tensor:
    """Pictures (F, C, H, W) at `fps` -> those on screen at 0, 1 / wanted, 2 / wanted ... s; None or equal: all."""
    if wanted is None:
        return video
    own, rate = Fraction(fps).limit_denominator(1001), Fraction(wanted).limit_denominator(1001)
    if abs(rate - own) < _SAME_RATE * own:
        return video
    count = frames_on_screen(len(video) / own, rate, Fraction(0))
    return video[[int(k * own / rate) for k in range(count)]]


def _check_lengths(clip: Clip, media: Media, spec: UpstreamSpec) -> None:
    """The spec's limits are samples of the waveform, or video frames for an upstream without one."""
    part, rate, unit = media.waveform, float(spec.sample_rate or 0), "samples"
    if "waveforms" not in spec.inputs and media.video is not None:
        part, rate, unit = media.video, float(spec.video_fps or 0), "video frames"
    if part is None or not rate:
        return
    count, most = len(part), spec.max_length
    if count < spec.min_length or (most is not None and count > most):
        short = count < spec.min_length
        remedy = "leave it out (on_error=skip lists it) or lengthen it" if short else "cut it into shorter segments"
        raise MediaError(
            f"The clip {clip.id!r} has {count} {unit} at {rate:g} Hz ({samples_to_seconds(count, rate):.4f} s); the "
            f"upstream takes at {f'least {spec.min_length}' if short else f'most {most}'}: {remedy}."
        )


@torch.no_grad()
def forward_media(upstream: Upstream, clips: Sequence[Media]) -> list[Representation]:
    """Representations of single clips, computed together as far as they have the same inputs and picture sizes.

    A batch that does not fit into memory is halved until it does.

    Raises:
        InputError: the upstream cannot take a clip.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for number, clip in enumerate(clips):
        sizes = [None if part is None else tuple(part.shape[-2:]) for part in (clip.video, clip.image)]
        groups.setdefault((clip.kinds, *sizes), []).append(number)
    found: dict[int, Representation] = {}
    for numbers in groups.values():
        results = _forward_alike(upstream, [clips[number] for number in numbers])
        found |= dict(zip(numbers, results, strict=True))
    return [found[number] for number in range(len(clips))]


def _forward_alike(upstream: Upstream, clips: Sequence[Media]) -> list[Representation]:
    device = upstream.device
    inputs: dict[str, Tensor] = {}
    if clips[0].waveform is not None:
        inputs["waveforms"], inputs["lengths"] = _padded([clip.waveform for clip in clips], device)
    if clips[0].video is not None:
        pictures, inputs["video_lengths"] = _padded([clip.video for clip in clips], device)
        inputs["video"] = pictures.float().div_(255)
    if clips[0].image is not None:
        inputs["images"] = torch.stack([_given(clip.image) for clip in clips]).to(device).float().div_(255)
    try:
        return split_clips(upstream(**inputs), len(clips))
    except torch.OutOfMemoryError:
        if len(clips) == 1:
            raise
    half = len(clips) // 2
    return _forward_alike(upstream, clips[:half]) + _forward_alike(upstream, clips[half:])


def _padded(parts: Sequence[Tensor | None], device: torch.device) -> tuple[Tensor, Tensor]:
    data, lengths = pad([_given(part) for part in parts])
    return data.to(device), lengths.to(device)


def _given(part: Tensor | None) -> Tensor:
    if part is None:
        raise InputError("A clip of the batch lacks an input that the others have.")
    return part
