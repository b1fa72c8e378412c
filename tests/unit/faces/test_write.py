from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from mmssl.faces.write import write_video
from mmssl.media.sync import load_audio_video
from mmssl.media.video import load_video, video_info


@pytest.mark.parametrize("fps", [25.0, 30_000 / 1001, 24_000 / 1001, 50.0, 12.5])
@pytest.mark.parametrize(("rate", "channels", "short"), [(16_000, 1, True), (44_100, 2, True), (48_000, 1, False)])
def test_what_is_written_reads_back_bit_by_bit(
    tmp_path: Path, fps: float, rate: int, channels: int, short: bool
) -> None:
    draw = np.random.default_rng(1)
    pictures = draw.integers(0, 256, (41, 24, 24, 3), dtype=np.uint8)
    length = int(41 / Fraction(fps).limit_denominator(1001) * rate)
    waveform = draw.uniform(-1.2, 1.2, (channels, length)).astype(np.float32)
    if short:
        waveform = (draw.integers(-32768, 32768, waveform.shape) / 32768).astype(np.float32)
    file = tmp_path / "a.mkv"
    write_video(file, pictures, fps, waveform, rate)
    both = load_audio_video(file, mono=False, as_uint8=True)
    assert torch.equal(both.video, torch.from_numpy(pictures).permute(0, 3, 1, 2))
    assert both.sample_rate == rate
    assert both.start == 0
    assert both.fps == pytest.approx(fps, rel=1e-6)
    assert np.array_equal(both.waveform.reshape(channels, -1).numpy(), waveform[:, : both.waveform.shape[-1]])
    assert both.waveform.shape[-1] >= length - 1


def test_without_sound(tmp_path: Path) -> None:
    pictures = np.random.default_rng(2).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    write_video(tmp_path / "a.mkv", pictures, 25.0, None, 0)
    assert not video_info(tmp_path / "a.mkv").has_audio
    assert np.array_equal(load_video(tmp_path / "a.mkv", as_uint8=True)[0].permute(0, 2, 3, 1).numpy(), pictures)
