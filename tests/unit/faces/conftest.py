from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

FLASHES = (0.4, 1.2)


@pytest.fixture
def square_and_click() -> Callable[..., Path]:
    """Write a clip in which a bright square and a click come together at FLASHES; the square moves right."""

    def write(
        path: Path,
        *,
        fps: Fraction | int = 25,
        seconds: float = 1.6,
        sound: bool = True,
        sound_seconds: float | None = None,
        sound_delay: Fraction = Fraction(0),
        black: range = range(0),
        codec: str = "libx264",
    ) -> Path:
        rate = 16_000
        with av.open(str(path), "w") as container:
            pictures = container.add_stream(codec, rate=fps)
            pictures.height, pictures.width, pictures.pix_fmt = 64, 96, "yuv420p"
            noise = container.add_stream("mp2" if codec == "mpeg1video" else "aac", rate=rate) if sound else None
            if noise is not None:
                noise.layout = "mono"
            for index in range(int(seconds * fps)):
                begin, end = Fraction(index) / fps, Fraction(index + 1) / fps
                lit = any(begin < Fraction(str(f)) + Fraction(2, 25) and end > Fraction(str(f)) for f in FLASHES)
                content = np.full((64, 96, 3), 60, np.uint8)
                content[20:44, 20 + index % 40 : 44 + index % 40] = 250 if lit else 120
                if index in black:
                    content[:] = 0
                frame = av.VideoFrame.from_ndarray(content, format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1) / fps
                container.mux(pictures.encode(frame))
            container.mux(pictures.encode())
            if noise is not None:
                samples = 0.003 * np.sin(np.arange(round((sound_seconds or seconds) * rate)) * 0.05)
                for flash in FLASHES:
                    at = round((flash - float(sound_delay)) * rate)
                    piece = samples[at : at + rate // 50]
                    piece += 0.6 * np.sin(np.arange(len(piece)) * 0.4)
                frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), format="fltp", layout="mono")
                frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
                frame.pts = round(float(sound_delay) * rate)
                context = noise.codec_context
                resampler = av.AudioResampler(context.format.name, "mono", rate, context.frame_size or 1024)
                for piece in (*resampler.resample(frame), *resampler.resample(None)):
                    container.mux(noise.encode(piece))
                container.mux(noise.encode())
        return path

    return write
