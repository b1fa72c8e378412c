"""Sound and pictures of a clip as an upstream takes them, and which of the two a clip has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from mmssl.data.files import some
from mmssl.errors import DataError, MediaError
from mmssl.media.audio import audio_info
from mmssl.media.video import video_info
from mmssl.training.readers import AudioReader, AudioVideoReader, ClipReader, VideoReader
from mmssl.types import Clip, Inputs, UpstreamSpec

BOTH, AUDIO, VIDEO = "both", "audio", "video"
VIEWS = (AUDIO, VIDEO, BOTH)
"""What of a clip is given: its sound, its pictures, or both."""
_NOTHING = 1e-3
# where the upstream takes pictures of any size
_FREE_SIZE = 96


def with_sound(clip: Clip) -> Clip:
    """The clip with the sound of its video file, where it names no other and the file has one.

    Raises:
        MediaError: the video file cannot be read.
    """
    if clip.audio is not None or clip.video is None:
        return clip
    video_info(clip.video)
    try:
        silent = audio_info(clip.video).duration < _NOTHING
    except MediaError:
        silent = True
    return clip if silent else replace(clip, audio=clip.video)


def has(clip: Clip) -> str | None:
    """What a clip has: "both", "audio", "video", or None."""
    if clip.audio is not None and clip.video is not None:
        return BOTH
    return AUDIO if clip.audio is not None else VIDEO if clip.video is not None else None


def seconds_of(clip: Clip) -> float:
    """Duration of what a clip has; of both, the shorter one.

    Raises:
        MediaError: a file cannot be read, or holds nothing from the clip's start on.
    """
    found = []
    if clip.audio is not None:
        found.append(audio_info(clip.audio).duration - clip.start)
    if clip.video is not None:
        found.append(video_info(clip.video).duration - clip.start)
    seconds = min([*found, *([] if clip.duration is None else [clip.duration])])
    if seconds < _NOTHING:
        raise MediaError(f"The clip {clip.id!r} holds nothing from {clip.start:g} s on.")
    return seconds


def lacking(clips: Iterable[Clip]) -> dict[str, list[str]]:
    """Ids of the clips that have no audio, and of those that have no video."""
    rows = list(clips)
    return {name: [clip.id for clip in rows if getattr(clip, name) is None] for name in (AUDIO, VIDEO)}


def missing_text(without: dict[str, list[str]], count: int) -> str:
    """ "3 of 40 clips have no video (a, b and c)"; empty where nothing is missing."""
    said = [f"{len(ids)} of {count} clips have no {name} ({some(ids, 3)})" for name, ids in without.items() if ids]
    return "; ".join(said)


def given_by(spec: UpstreamSpec) -> str:
    """What an upstream takes: "both", "audio" or "video".

    Raises:
        DataError: it takes single pictures.
    """
    takes = {name: {"waveforms": AUDIO, "video": VIDEO}.get(name) for name in spec.inputs}
    if None in takes.values():
        raise DataError(f"This recipe gives an upstream sound and video; this one takes {', '.join(spec.inputs)}.")
    return BOTH if len(takes) == 2 else str(next(iter(takes.values())))


def reader_of(spec: UpstreamSpec, view: str, image_size: Any = None) -> ClipReader:
    """A reader of the sound, the pictures, or both, at the rates and the size that an upstream takes."""
    size = image_size or spec.image_size or _FREE_SIZE
    if view == AUDIO:
        return AudioReader(int(spec.sample_rate or 0), 1e6, 1)
    fps = float(spec.video_fps or 0)
    if view == VIDEO:
        return VideoReader(1, size, fps)
    return AudioVideoReader(int(spec.sample_rate or 0), fps, 1 / fps, size)


def load_inputs(clips: Sequence[Clip], spec: UpstreamSpec, view: str, seconds: float | None, image_size: Any) -> Inputs:
    """A batch of the stretches in the middle of clips.

    Args:
        clips: that have what is asked for.
        spec: of the upstream.
        view: "audio", "video" or "both".
        seconds: longest stretch; None for what the upstream takes, the whole clip where it takes any length.
        image_size: of the pictures, where the upstream leaves it open.

    Raises:
        MediaError: a file cannot be read.
        DataError: a clip is shorter than one video frame.
    """
    reader = reader_of(spec, view, image_size)
    rate = float(reader.rate or 1)
    most = longest(spec, seconds)
    items = []
    for clip in clips:
        extent = reader.measure(clip)
        size = extent if most is None else min(extent, int(most * rate + 1e-6))
        if size < 1:
            raise DataError(f"The clip {clip.id!r} is too short: it has no whole video frame.")
        items.append(reader.load(clip, (extent - size) // 2, size))
    return reader.collate(items)


def longest(spec: UpstreamSpec, seconds: float | None) -> float | None:
    """Seconds of the longest stretch that is used; None for no limit."""
    rate = spec.sample_rate or spec.video_fps
    own = None if spec.max_length is None or not rate else spec.max_length / rate
    limits = [value for value in (own, seconds) if value is not None]
    return min(limits) if limits else None
