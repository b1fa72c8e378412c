from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from mmssl.errors import MediaError
from mmssl.media.audio import load_audio
from mmssl.media.sync import AudioVideo, load_audio_video
from mmssl.media.video import load_video, video_info

Write = Callable[..., Path]
FLASHES = (0.52, 1.36, 2.2, 3.04)
NTSC = Fraction(30_000, 1001)
# a camera that trembles and loses pictures
UNEVEN = [
    Fraction(k * 40 + (0 if k in (13, 34, 55, 76) else (k * 7) % 11), 1000) for k in range(100) if k % 9 not in (2, 6)
]
CASES = {
    "a.mp4": {"fps": 25},
    "b.mp4": {"fps": NTSC},
    "c.mp4": {"fps": 30, "rate": 44_100},
    "late_sound.mp4": {"fps": 25, "audio_delay": Fraction(31, 100)},
    "late_video.mp4": {"fps": 30, "video_delay": Fraction(1, 3)},
    "uneven.mp4": {"times": UNEVEN},
    "a.mkv": {"fps": NTSC, "audio_codec": "libopus"},
    "b.mkv": {"fps": 30},
    "uneven.mkv": {"times": UNEVEN},
    "late_sound.mkv": {"fps": NTSC, "audio_delay": Fraction(1, 4)},
    "late_video.mkv": {"fps": 25, "video_delay": Fraction(1, 5)},
    "a.mov": {"fps": 30, "video_codec": "mpeg4", "audio_codec": "pcm_s16le"},
    "a.avi": {"fps": 25, "video_codec": "mpeg4", "audio_codec": "pcm_s16le"},
    "b.avi": {"fps": NTSC, "video_codec": "mjpeg", "audio_codec": "mp2"},
    "a.mpg": {"fps": 25, "video_codec": "mpeg1video", "audio_codec": "mp2"},
    "b.mpg": {"fps": NTSC, "video_codec": "mpeg2video", "audio_codec": "mp2", "rate": 44_100},
    "a.ts": {"fps": 25, "audio_codec": "mp2"},
    "a.webm": {"fps": 30, "video_codec": "libvpx", "audio_codec": "libopus"},
}


def onsets(clip: AudioVideo) -> tuple[np.ndarray, np.ndarray]:
    """Seconds at which clicks and flashes begin."""
    window = clip.sample_rate // 1000
    level = clip.waveform[: len(clip.waveform) // window * window].reshape(-1, window).abs().amax(1).numpy()
    loud = level > 0.2
    # a click lasts 20 ms and is followed by half a second of quiet
    clicks = [k for k in np.flatnonzero(loud) if not loud[max(0, k - 100) : k].any()]
    lit = (clip.video[:, :, : clip.video.shape[2] // 3].mean((1, 2, 3)) > 0.5).numpy()
    flashes = [k for k in np.flatnonzero(lit) if k == 0 or not lit[k - 1]]
    return np.array(clicks) * window / clip.sample_rate, np.array(flashes) / clip.fps


@pytest.mark.parametrize("fps", [None, 25.0])
@pytest.mark.parametrize("name", CASES)
def test_flash_and_click_stay_together(tmp_path: Path, flash_and_click: Write, name: str, fps: float | None) -> None:
    path = flash_and_click(tmp_path / name, **CASES[name])
    whole = load_audio_video(path, fps=fps, sample_rate=16_000)
    for clip, begin, end in (
        (whole, whole.start, 4.0),
        (load_audio_video(path, fps=fps, start=1.0), 1.0, 4.0),
        (load_audio_video(path, fps=fps, start=1.1, duration=1.5), 1.1, 2.6),
        (load_audio_video(path, fps=fps, start=2.95, duration=0.5), 2.95, 3.45),
    ):
        clicks, flashes = onsets(clip)
        expected = [flash - clip.start for flash in FLASHES if begin < flash < end]
        assert len(clicks) == len(flashes) == len(expected) > 0
        # a flash lies in the picture that its time falls into, and is sampled at the next instant of the result's grid
        frame = 1 / min(clip.fps, float(CASES[name].get("fps", 25))) + 0.002
        # AVI does not say by how much the codec delays the sound: 481 samples
        assert np.abs(flashes - clicks).max() <= frame + (0.011 if name == "b.avi" else 0)
        # program streams begin a codec's delay before their content
        assert np.abs(clicks - expected).max() <= (0.025 if name.endswith(("mpg", "avi", "ts")) else 0.002)
        assert abs(len(clip.waveform) - round(len(clip.video) / clip.fps * clip.sample_rate)) <= 1
        assert clip.start == pytest.approx(begin, abs=0.51 / clip.fps)


def test_a_stretch_equals_that_of_each_stream(tmp_path: Path, flash_and_click: Write) -> None:
    path = flash_and_click(tmp_path / "a.mkv", audio_delay=Fraction(2, 5))
    video, _ = load_video(path)
    sound, rate = load_audio(path)
    clip = load_audio_video(path, start=1.2, duration=1.0)
    torch.testing.assert_close(clip.video, video[30:55], rtol=0, atol=0)
    # the sound lies where the container says, which AAC's priming shifts by a fraction of a picture
    info = video_info(path)
    assert info.has_audio
    assert info.start == 0.0
    assert info.audio_start == pytest.approx(0.4, abs=0.025)
    first = round((1.2 - info.audio_start) * rate)
    torch.testing.assert_close(clip.waveform, sound[first : first + rate], rtol=0, atol=1e-6)
    whole = load_audio_video(path)
    assert whole.start == pytest.approx(info.audio_start, abs=1 / 25)
    torch.testing.assert_close(whole.video[:40], video[round(whole.start * 25) :][:40], rtol=0, atol=0)


def test_streams_of_unequal_length_give_what_both_hold(tmp_path: Path, flash_and_click: Write) -> None:
    times = [Fraction(k, 25) for k in range(50)]
    path = flash_and_click(tmp_path / "short_video.mp4", times=times)
    clip = load_audio_video(path)
    assert clip.video.shape[0] == 50
    assert clip.duration == 2.0
    assert len(clip.waveform) == 96_000
    with pytest.raises(MediaError, match="passes the end of the video by 13 pictures"):
        load_audio_video(path, start=1.5, duration=1.0)
    with pytest.raises(MediaError, match="past the end of the video"):
        load_audio_video(path, start=2.5)
    times = [Fraction(k, 25) for k in range(150)]
    path = flash_and_click(tmp_path / "short_sound.mp4", times=times)
    assert 100 <= len(load_audio_video(path).video) <= 101
    with pytest.raises(MediaError, match=r"short_sound.*passes the end"):
        load_audio_video(path, start=3.5, duration=1.0)


def test_a_start_that_one_stream_does_not_hold_is_refused(tmp_path: Path, flash_and_click: Write) -> None:
    path = flash_and_click(tmp_path / "a.mp4", audio_delay=Fraction(1, 2))
    with pytest.raises(MediaError, match=r"sound begins 0\.478"):
        load_audio_video(path, start=0.1, duration=1.0)
    clip = load_audio_video(path, start=0.48, duration=1.0)
    assert clip.start == 0.48
    assert len(clip.video) == 25
    # one picture before the sound: the stretch moves
    clip = load_audio_video(path, start=0.44, duration=1.0)
    assert clip.start == 0.48
    assert len(clip.video) == 25


def test_sound_from_a_file_of_its_own(tmp_path: Path, flash_and_click: Write) -> None:
    path = flash_and_click(tmp_path / "a.mp4")
    sound, rate = load_audio(path)
    soundfile.write(tmp_path / "a.wav", sound.numpy(), rate)
    mute = flash_and_click(tmp_path / "mute.mp4", audio_codec=None)
    together, apart = load_audio_video(path, start=1.0), load_audio_video(mute, audio=tmp_path / "a.wav", start=1.0)
    torch.testing.assert_close(apart.video, together.video, rtol=0, atol=0)
    torch.testing.assert_close(apart.waveform, together.waveform, rtol=0, atol=1e-3)
    with pytest.raises(MediaError, match=r"mute\.mp4 holds no sound stream"):
        load_audio_video(mute)
    with pytest.raises(MediaError, match=r"a\.wav holds no video stream"):
        load_audio_video(tmp_path / "a.wav")


@pytest.mark.data
def test_grid_has_a_whole_number_of_pictures(corpora: Callable[[str], Path]) -> None:
    clip = load_audio_video(min(corpora("grid").glob("*.mpg")), sample_rate=16_000, size=(72, 90))
    assert clip.video.shape == (74, 3, 72, 90)
    assert clip.waveform.shape == (74 * 640,)
