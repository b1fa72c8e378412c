from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

Encode = Callable[..., Path]


def tone(rate: int, seconds: float = 6.0, channels: int = 1) -> np.ndarray:
    """(C, T) float32: a sweep whose amplitude beats, so that every place in it is unlike every other."""
    time = np.arange(round(rate * seconds)) / rate
    rows = [
        0.4 * np.sin(2 * np.pi * (150 + 40 * k + 60 * time) * time) * (0.6 + 0.4 * np.sin(5 * time))
        for k in range(channels)
    ]
    return np.stack(rows).astype(np.float32)


@pytest.fixture(scope="session")
def sweep() -> Callable[..., np.ndarray]:
    return tone


@pytest.fixture(scope="session")
def encode() -> Encode:
    """encode(path, samples (C, T) or None, rate, codec, video=..., options=...) writes a file through FFmpeg."""
    import av

    def write(
        path: Path,
        samples: np.ndarray | None,
        rate: int = 44_100,
        codec: str = "aac",
        *,
        video: float = 0.0,
        first_pts: float = 0.0,
        options: dict[str, str] | None = None,
    ) -> Path:
        with av.open(str(path), "w", options=options or {}) as container:
            if video:
                pictures = container.add_stream("mpeg4", rate=25)
                pictures.width = pictures.height = 64
                pictures.pix_fmt = "yuv420p"
            if samples is not None:
                layout = "mono" if len(samples) == 1 else "stereo"
                stream = container.add_stream(
                    codec, rate=rate, **({"options": {"aac_pns": "0"}} if codec == "aac" else {})
                )
                stream.layout = layout
            for index in range(round(video * 25)):
                picture = av.VideoFrame.from_ndarray(np.full((64, 64, 3), index % 256, np.uint8), format="rgb24")
                picture.pts = index
                container.mux(pictures.encode(picture))
            if samples is not None:
                context = stream.codec_context
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=layout)
                frame.sample_rate, frame.pts = rate, round(first_pts * rate)
                size = context.frame_size or 1024
                resampler = av.AudioResampler(format=context.format.name, layout=layout, rate=rate, frame_size=size)
                for piece in (*resampler.resample(frame), *resampler.resample(None)):
                    container.mux(stream.encode(piece))
                container.mux(stream.encode())
            if video:
                container.mux(pictures.encode())
        return path

    return write


FLASHES = (0.52, 1.36, 2.2, 3.04)


@pytest.fixture(scope="session")
def flash_and_click() -> Callable[..., Path]:
    """Write a clip in which a flash and a click come together at the times FLASHES of the file's clock."""
    import av

    def write(
        path: Path,
        video_codec: str = "libx264",
        audio_codec: str | None = "aac",
        *,
        fps: Fraction | int = 25,
        times: Sequence[Fraction] | None = None,
        seconds: float = 4.0,
        video_delay: Fraction = Fraction(0),
        audio_delay: Fraction = Fraction(0),
        rate: int = 48_000,
        size: tuple[int, int] = (48, 64),
        gop: int = 12,
    ) -> Path:
        if times is None:
            times = [Fraction(k) / Fraction(fps) for k in range(int(seconds * fps))]
        ends = [*times[1:], times[-1] + 1 / Fraction(fps)]
        tick = Fraction(1, 90_000) if times[1] - times[0] != 1 / Fraction(fps) or video_delay else 1 / Fraction(fps)
        with av.open(str(path), "w") as container:
            pictures = container.add_stream(video_codec, rate=fps)
            pictures.height, pictures.width = size
            pictures.pix_fmt = "yuvj420p" if video_codec == "mjpeg" else "yuv420p"
            pictures.codec_context.time_base = tick
            pictures.codec_context.gop_size = gop
            if audio_codec:
                sound = container.add_stream(audio_codec, rate=rate)
                sound.layout = "mono"
            for index, (begin, end) in enumerate(zip(times, ends, strict=True)):
                lit = any(
                    begin + video_delay < Fraction(str(flash)) + Fraction(2, 25)
                    and end + video_delay > Fraction(str(flash))
                    for flash in FLASHES
                )
                # the grey of the lower half tells the pictures apart
                content = np.full((*size, 3), 250 if lit else 10, np.uint8)
                content[size[0] // 2 :] = (index * 7) % 200 + 20
                picture = av.VideoFrame.from_ndarray(content, format="rgb24")
                picture.time_base, picture.pts = tick, round((begin + video_delay) / tick)
                container.mux(pictures.encode(picture))
            container.mux(pictures.encode())
            if audio_codec:
                samples = 0.003 * np.sin(np.arange(round(seconds * rate)) * 0.05).astype(np.float32)
                for flash in FLASHES:
                    at = round((flash - float(audio_delay)) * rate)
                    if 0 <= at <= len(samples) - rate // 50:
                        samples[at : at + rate // 50] += 0.6 * np.sin(np.arange(rate // 50) * 0.4)
                frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
                frame.sample_rate, frame.pts = rate, round(float(audio_delay) * rate)
                frame.time_base = Fraction(1, rate)
                context = sound.codec_context
                resampler = av.AudioResampler(context.format.name, "mono", rate, context.frame_size or 1024)
                for piece in (*resampler.resample(frame), *resampler.resample(None)):
                    container.mux(sound.encode(piece))
                container.mux(sound.encode())
        return path

    return write
