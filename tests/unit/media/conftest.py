from __future__ import annotations

from collections.abc import Callable
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
