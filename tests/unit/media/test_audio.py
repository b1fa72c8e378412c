from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from mmssl.errors import MediaError
from mmssl.lengths import resampled_length, seconds_to_samples
from mmssl.media.audio import AudioInfo, audio_info, load_audio

Sweep = Callable[..., np.ndarray]
SEGMENTS = ((0.0, 0.5), (0.3127, 0.25), (2.5, 0.2), (2.7773, 1.1), (4.03, 0.7), (5.5, 0.48))
FORMATS = {
    "pcm16.wav": (16_000, {"subtype": "PCM_16"}, 1e-4),
    "pcm24.wav": (44_100, {"subtype": "PCM_24"}, 1e-6),
    "float.wav": (48_000, {"subtype": "FLOAT"}, 0.0),
    "u8.wav": (8_000, {"subtype": "PCM_U8"}, 1e-2),
    "ulaw.wav": (8_000, {"subtype": "ULAW"}, 3e-2),
    "x.flac": (22_050, {}, 1e-4),
    "x.ogg": (16_000, {}, 5e-2),
    "x.mp3": (16_000, {}, 5e-2),
    "x.aiff": (11_025, {}, 1e-4),
}


@pytest.fixture
def wav(tmp_path: Path, sweep: Sweep) -> Path:
    path = tmp_path / "a.wav"
    soundfile.write(path, sweep(16_000, 1.0)[0], 16_000, subtype="FLOAT")
    return path


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("channels", [1, 2])
def test_reads_every_libsndfile_format_whole_and_in_segments(
    tmp_path: Path, sweep: Sweep, name: str, channels: int
) -> None:
    rate, how, tolerance = FORMATS[name]
    samples = sweep(rate, 6.0, channels)
    soundfile.write(tmp_path / name, samples.T, rate, **how)
    whole, got = load_audio(tmp_path / name, mono=False)
    assert got == rate
    assert whole.dtype == torch.float32
    assert whole.shape == samples.shape
    np.testing.assert_allclose(whole.numpy(), samples, atol=tolerance, rtol=0)
    assert audio_info(tmp_path / name) == AudioInfo(rate, samples.shape[1], channels)
    assert audio_info(tmp_path / name).duration == 6.0
    mono, _ = load_audio(tmp_path / name)
    assert mono.shape == (samples.shape[1],)
    torch.testing.assert_close(mono, whole.mean(0))
    for start, duration in SEGMENTS:
        first, count = seconds_to_samples(start, rate), seconds_to_samples(duration, rate)
        segment, _ = load_audio(tmp_path / name, start=start, duration=duration, mono=False)
        torch.testing.assert_close(
            segment, whole[:, first : first + count], rtol=0, atol=0 if is_lossless(name) else 1e-6
        )
    rest, _ = load_audio(tmp_path / name, start=4.5, mono=False)
    assert rest.shape[1] == samples.shape[1] - seconds_to_samples(4.5, rate)


def is_lossless(name: str) -> bool:
    return not name.endswith(("ogg", "mp3"))


def test_a_segment_does_not_read_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sweep: Sweep) -> None:
    soundfile.write(tmp_path / "a.wav", sweep(16_000)[0], 16_000)
    asked = []
    original = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile, "read", lambda self, frames=-1, **kw: asked.append(frames) or original(self, frames, **kw)
    )
    load_audio(tmp_path / "a.wav", start=1.0, duration=0.5)
    assert asked == [8000]


@pytest.mark.parametrize(
    ("rate", "new"), [(44_100, 16_000), (48_000, 16_000), (8_000, 16_000), (22_050, 16_000), (16_000, 44_100)]
)
def test_resampling_keeps_the_signal_and_has_the_declared_length(
    tmp_path: Path, sweep: Sweep, rate: int, new: int
) -> None:
    samples = sweep(rate, 1.001)
    soundfile.write(tmp_path / "a.wav", samples[0], rate, subtype="FLOAT")
    waveform, got = load_audio(tmp_path / "a.wav", sample_rate=new)
    assert got == new
    assert waveform.shape == (resampled_length(samples.shape[1], rate, new),)
    middle = slice(new // 10, -new // 10)
    expected = sweep(new, 1.1)[0][: len(waveform)]
    np.testing.assert_allclose(waveform.numpy()[middle], expected[middle], atol=2e-3)
    again, _ = load_audio(tmp_path / "a.wav", sample_rate=new)
    assert torch.equal(waveform, again)


def test_rates_without_a_common_divisor_resample_too(tmp_path: Path, sweep: Sweep) -> None:
    samples = sweep(22_051, 1.0)
    soundfile.write(tmp_path / "a.wav", samples[0], 22_051, subtype="FLOAT")
    waveform, _ = load_audio(tmp_path / "a.wav", sample_rate=16_000)
    assert len(waveform) == resampled_length(22_051, 22_051, 16_000) == 16_000
    np.testing.assert_allclose(waveform[1600:-1600], sweep(16_000, 1.0)[0][1600:-1600], atol=2e-3)


def test_the_callers_generator_is_left_alone(wav: Path) -> None:
    before = torch.random.get_rng_state()
    load_audio(wav, sample_rate=8000)
    assert torch.equal(before, torch.random.get_rng_state())


def test_content_decides_not_the_name(tmp_path: Path, sweep: Sweep) -> None:
    samples = sweep(16_000, 1.0)[0]
    soundfile.write(tmp_path / "flac.wav", samples, 16_000, format="FLAC")
    soundfile.write(tmp_path / "wav.raw", samples, 16_000, format="WAV")
    soundfile.write(tmp_path / "wav.mp4", samples, 16_000, format="WAV")
    for name in ("flac.wav", "wav.raw", "wav.mp4"):
        assert audio_info(tmp_path / name).num_samples == 16_000
        np.testing.assert_allclose(load_audio(tmp_path / name)[0], samples, atol=1e-4)


def test_a_stream_of_unknown_size_is_read_to_its_end(tmp_path: Path, wav: Path) -> None:
    data = bytearray(wav.read_bytes())
    place = data.find(b"data") + 4
    data[4:8] = data[place : place + 4] = b"\xff\xff\xff\xff"
    (tmp_path / "piped.wav").write_bytes(data)
    torch.testing.assert_close(load_audio(tmp_path / "piped.wav")[0], load_audio(wav)[0])


def refused(path: Path, *words: str, **how: object) -> None:
    with pytest.raises(MediaError) as caught:
        load_audio(path, **how)
    for word in (str(path), *words):
        assert word in str(caught.value)


def test_missing_folder_empty_and_text_files(tmp_path: Path) -> None:
    refused(tmp_path / "none.wav", "does not exist")
    refused(tmp_path, "folder")
    (tmp_path / "empty.wav").write_bytes(b"")
    refused(tmp_path / "empty.wav", "empty")
    (tmp_path / "text.wav").write_text("this is a text and no sound\n" * 50)
    refused(tmp_path / "text.wav")
    for name in ("none.wav", "empty.wav", "text.wav"):
        with pytest.raises(MediaError, match=name):
            audio_info(tmp_path / name)


def test_header_without_samples(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(0), 16_000)
    refused(tmp_path / "a.wav", "no samples")
    with pytest.raises(MediaError, match="no samples"):
        audio_info(tmp_path / "a.wav")


@pytest.mark.parametrize("name", ["a.wav", "a.rf64", "a.w64", "a.aiff", "a.au", "a.caf", "a.flac", "a.ogg", "a.mp3"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated_files(tmp_path: Path, sweep: Sweep, name: str, share: float) -> None:
    soundfile.write(tmp_path / name, sweep(16_000, 3.0)[0], 16_000, format=name[2:].upper())
    load_audio(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * share)])
    refused(tmp_path / name, "truncated")
    if name != "a.mp3":
        with pytest.raises(MediaError, match="truncated"):
            audio_info(tmp_path / name)


@pytest.mark.parametrize("name", ["a.mp3", "a.ogg", "a.opus"])
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_segments_of_lossy_files_lie_exactly(tmp_path: Path, sweep: Sweep, name: str, mode: str) -> None:
    path, rate = tmp_path / name, 16_000
    how = {"format": "OGG", "subtype": "OPUS"} if name == "a.opus" else {}
    if name == "a.mp3":
        how = {"bitrate_mode": mode}
    soundfile.write(path, sweep(rate, 12.0)[0], rate, compression_level=0.9, **how)
    whole, _ = load_audio(path)
    for first in range(0, 12 * rate - 4001, 7993):
        segment, _ = load_audio(path, start=first / rate, duration=0.25)
        torch.testing.assert_close(segment, whole[first : first + 4000], rtol=0, atol=1e-6)


def test_a_wav_that_lacks_one_sample_is_truncated(wav: Path) -> None:
    data = wav.read_bytes()
    held = data.find(b"data") + 8 + 4 * 16_000
    wav.write_bytes(data[: held - 4])
    refused(wav, "truncated")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite(tmp_path: Path, sweep: Sweep, bad: float) -> None:
    samples = sweep(16_000, 1.0)[0]
    samples[[7, 9000]] = bad
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    refused(tmp_path / "a.wav", "2 samples", "NaN")


def test_silence_cancelling_channels_and_integers_as_floats(tmp_path: Path, sweep: Sweep) -> None:
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000), 16_000)
    refused(tmp_path / "silent.wav", "silent", "16000 samples")
    samples = sweep(16_000, 1.0)[0]
    soundfile.write(tmp_path / "opposed.wav", np.stack([samples, -samples], 1), 16_000, subtype="FLOAT")
    refused(tmp_path / "opposed.wav", "cancel")
    assert load_audio(tmp_path / "opposed.wav", mono=False)[0].shape == (2, 16_000)
    soundfile.write(tmp_path / "loud.wav", samples * 32768, 16_000, subtype="FLOAT")
    refused(tmp_path / "loud.wav", "[-1, 1]")


def test_segments_outside_the_file(wav: Path) -> None:
    refused(wav, "start", start=-0.1)
    refused(wav, "start", start=math.nan)
    refused(wav, "duration", duration=0.0)
    refused(wav, "duration", duration=-1.0)
    refused(wav, "less than one sample", duration=1e-6)
    refused(wav, "past the end", "1.000 s", start=1.0)
    refused(wav, "past the end", start=7.0, duration=1.0)
    refused(wav, "passes the end", "16000 samples", start=0.5, duration=0.56)
    for rate in (0, -8000, 16000.0, True):
        refused(wav, "sample rate", sample_rate=rate)
    clipped, _ = load_audio(wav, start=0.5, duration=0.54)
    assert torch.equal(clipped, load_audio(wav)[0][8000:])


def test_the_result_may_be_written_to(wav: Path) -> None:
    waveform, _ = load_audio(wav)
    assert waveform.is_contiguous()
    waveform.zero_()
    assert load_audio(wav)[0].any()
