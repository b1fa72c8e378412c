"""Clips without the silence at their ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mmssl.errors import MediaError
from mmssl.media.audio import load_audio
from mmssl.media.silence import speech_extent
from mmssl.types import Clip


def trimmed(clips: Sequence[Clip], below: float, on_error: str) -> tuple[list[Clip], dict[str, str]]:
    """Clips without the silence at their ends, see `speech_extent`; each is read once.

    Args:
        clips: with sound.
        below: in dB.
        on_error: "raise", or "skip" to leave out clips that cannot be read.

    Returns:
        The clips, and id -> reason of those that were left out.

    Raises:
        ConfigError: `below` is not above 0.
        MediaError: a file cannot be read, with "raise".
    """
    found: list[Clip] = []
    unreadable: dict[str, str] = {}
    for clip in clips:
        try:
            wave, rate = load_audio(str(clip.audio), start=clip.start, duration=clip.duration)
        except MediaError as error:
            if on_error == "raise":
                raise MediaError(f"{error} To leave such clips out and list them: data.on_error=skip.") from error
            unreadable[clip.id] = str(error)
            continue
        start, end = speech_extent(wave.numpy(), rate, below)
        found.append(replace(clip, start=clip.start + start, duration=end - start))
    return found, unreadable
