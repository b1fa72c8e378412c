"""Write pictures and sound to a file that reads back exactly: Matroska with FFV1, and FLAC or floating-point PCM."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmssl.files import replace_file

if TYPE_CHECKING:
    import numpy

# Rates of broadcast video are multiples of 1 / 1001: 30000 / 1001.
_LARGEST_DENOMINATOR = 1001
_SAMPLES_A_PACKET = 4096


def write_video(path: Path, pictures: numpy.ndarray, fps: float, waveform: numpy.ndarray | None, rate: int) -> None:
    """Write a file that `mmssl.media.load_audio_video` reads back bit by bit, sound and pictures beginning together.

    Sound of 16 bits, mono or stereo, is written as FLAC, other sound as floating-point PCM.

    Args:
        path: ends in .mkv; appears whole or not at all.
        pictures: (T, H, W, 3) uint8 RGB.
        fps: in Hz.
        waveform: (C, T') float32, or None for a file without sound.
        rate: of the sound, in Hz.
    """
    import av

    buffer = io.BytesIO()
    frequency = Fraction(fps).limit_denominator(_LARGEST_DENOMINATOR)
    with av.open(buffer, "w", format="matroska", options={"fflags": "+bitexact"}) as container:
        video: Any = container.add_stream("ffv1", rate=frequency)
        video.height, video.width = pictures.shape[1:3]
        # the only RGB of eight bits that FFV1 holds; conversion from and to rgb24 changes no value
        video.pix_fmt = "bgr0"
        video.codec_context.thread_count = 1
        sound: Any = None
        if waveform is not None:
            layout = {1: "mono", 2: "stereo"}.get(len(waveform), f"{len(waveform)}c")
            short = _is_16_bit(waveform)
            sound = container.add_stream("flac" if short else "pcm_f32le", rate=rate, layout=layout)
            sound.codec_context.format = "s16" if short else "flt"
        reach = 0
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, 1 / frequency
            container.mux(video.encode(frame))
            if waveform is not None:
                # sound and pictures take turns, as players expect
                until = int((index + 1) * rate / frequency)
                reach = _mux_sound(container, sound, waveform, reach, until, rate)
        if waveform is not None:
            _mux_sound(container, sound, waveform, reach, waveform.shape[1], rate)
            container.mux(sound.encode())
        container.mux(video.encode())
    with replace_file(path) as file:
        file.write(buffer.getvalue())


def _is_16_bit(waveform: numpy.ndarray) -> bool:
    """Whether FLAC of 16 bits holds every sample exactly."""
    import numpy as np

    levels = waveform * np.float32(32768)
    inside = bool(np.all(levels >= -32768) and np.all(levels <= 32767))
    return len(waveform) <= 2 and inside and bool(np.all(levels == np.rint(levels)))


def _mux_sound(container: Any, sound: Any, waveform: numpy.ndarray, reach: int, until: int, rate: int) -> int:
    """Write samples up to `until`; returns where it stopped."""
    import av
    import numpy as np

    format_name = sound.codec_context.format.name
    layout = sound.codec_context.layout.name
    while reach < min(until, waveform.shape[1]):
        piece = waveform[:, reach : min(reach + _SAMPLES_A_PACKET, until)]
        if format_name == "s16":
            piece = np.rint(piece * np.float32(32768)).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece.T).reshape(1, -1), format_name, layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, reach, Fraction(1, rate)
        container.mux(sound.encode(frame))
        reach += piece.shape[1]
    return reach
