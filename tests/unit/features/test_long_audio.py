from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

from mmssl.errors import ConfigError, MediaError
from mmssl.features import long_audio
from mmssl.features.extract import ExtractOptions, extract
from mmssl.features.forward import forward_clips
from mmssl.features.long_audio import forward_chunks, make_chunks
from mmssl.features.store import FeatureStore
from mmssl.features.writer import encode_clip
from mmssl.media.audio import load_audio
from mmssl.types import Clip, StreamSpec
from mmssl.upstreams.base import load_upstream


def noise(seconds: float, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(0.1 * np.random.default_rng(seed).standard_normal(int(16000 * seconds)).astype(np.float32))


@pytest.mark.parametrize("deltas", [0, 2])
@pytest.mark.parametrize("samples", [16000, 47999, 48400, 80080])
def test_spectral_chunks_laid_end_to_end_are_the_whole(deltas, samples):
    upstream = load_upstream("fbank", deltas=deltas)
    waveform = noise(6)[:samples]
    chunks = make_chunks(upstream, 0.5, 9.0)
    assert chunks is not None
    assert chunks.exact
    assert chunks.overlap == 2 * deltas
    pieces = list(forward_chunks(upstream, waveform, chunks))
    assert len(pieces) > 1
    found = torch.cat([piece["audio"].hidden_states[0] for piece in pieces])
    whole = upstream(waveform[None])["audio"].hidden_states[0][0]
    assert found.shape == whole.shape
    assert float((found - whole).abs().max()) <= 1e-5 * float(whole.abs().mean())


@pytest.mark.parametrize("samples", [9 * 16000, 100_000, 77_777])
def test_chunks_of_a_convolutional_upstream_laid_end_to_end_are_the_whole(samples):
    upstream = load_upstream("byol_a", hidden_size=16)
    waveform = torch.randn(samples, generator=torch.Generator().manual_seed(0)) * 0.1
    chunks = make_chunks(upstream, 1.6, 0.0)
    assert chunks is not None
    assert chunks.exact
    pieces = list(forward_chunks(upstream, waveform, chunks))
    assert len(pieces) > 2
    for layer, whole in enumerate(forward_clips(upstream, [waveform])[0]["audio"].hidden_states):
        joined = torch.cat([piece["audio"].hidden_states[layer] for piece in pieces])
        assert joined.shape == whole.shape
        assert float((joined - whole).abs().max()) < 1e-5 * float(whole.abs().mean())


@pytest.mark.parametrize(("stride", "frames"), [(1, True), (3, True), (1, False)])
def test_a_long_file_in_the_store_is_what_the_whole_gives(tmp_path, monkeypatch, stride, frames):
    # the frames go through the nameless file
    monkeypatch.setattr(long_audio, "_IN_MEMORY", 1000)
    soundfile.write(tmp_path / "long.wav", noise(150.3).numpy(), 16000, subtype="FLOAT")
    clip = Clip("long", audio=str(tmp_path / "long.wav"))
    stats = ("mean", "std", "max")
    extract("fbank", [clip], tmp_path / "s", pooled=stats, stride=stride, frames=frames)
    store, upstream = FeatureStore(tmp_path / "s"), load_upstream("fbank")
    whole = forward_clips(upstream, [noise(150.3)])[0]
    arrays, lengths = encode_clip("long", whole, store.fingerprint.fields)
    assert store.entry("long").lengths == lengths
    for stat in stats:
        expected = torch.from_numpy(arrays[f"audio/{stat}"])
        torch.testing.assert_close(store.pooled("long", stat=stat).hidden_states[0], expected, rtol=1e-5, atol=1e-5)
    if frames:
        expected = torch.from_numpy(arrays["audio/frames"])[0]
        torch.testing.assert_close(store.read("long").hidden_states[0], expected, rtol=0, atol=1e-4)
    assert [p.name for p in (tmp_path / "s").iterdir() if p.name.startswith("tmp")] == []


def test_a_long_file_is_streamed_and_resampled_as_the_whole(tmp_path, monkeypatch):
    rate, path = 44100, tmp_path / "long.flac"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal((rate * 130, 2)), rate)
    clip = Clip("long", audio=str(path), start=1.5, duration=125.25)
    waveform, _ = load_audio(path, sample_rate=16000, start=1.5, duration=125.25)
    whole = forward_clips(load_upstream("fbank"), [waveform])[0]["audio"].hidden_states[0]

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the whole file was read")

    monkeypatch.setattr("mmssl.media.audio.load_audio", refuse)
    extract("fbank", [clip], tmp_path / "s", pooled=(), options=ExtractOptions(chunk_seconds=7.0))
    found = FeatureStore(tmp_path / "s").read("long").hidden_states[0]
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-4)


def test_faults_within_a_streamed_file_concern_that_clip_alone(make_clips, tmp_path):
    good = make_clips(2)
    samples = noise(90).numpy()
    samples[80 * 16000] = np.nan
    soundfile.write(tmp_path / "bad.wav", samples, 16000, subtype="FLOAT")
    soundfile.write(tmp_path / "silent.wav", 0 * noise(90).numpy(), 16000, subtype="FLOAT")
    soundfile.write(tmp_path / "cut.flac", noise(90).numpy(), 16000)
    whole = (tmp_path / "cut.flac").read_bytes()
    # the end is there, and the middle is not
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) // 2] + bytes(20_000) + whole[len(whole) // 2 + 20_000 :])
    names = ("bad.wav", "silent.wav", "cut.flac")
    clips = [*good, *(Clip(name, audio=str(tmp_path / name)) for name in names)]
    options = ExtractOptions(chunk_seconds=2.0)
    summary = extract("fbank", clips, tmp_path / "s", on_error="skip", options=options)
    reasons = {s.id: s.reason for s in summary.skipped}
    assert set(reasons) == set(names)
    assert "NaN" in reasons["bad.wav"]
    assert "silent" in reasons["silent.wav"]
    assert FeatureStore(tmp_path / "s").ids == sorted(c.id for c in good)
    for name in names:
        with pytest.raises(MediaError, match=name):
            extract("fbank", [*good, Clip(name, audio=str(tmp_path / name))], tmp_path / f"s-{name}", options=options)


PEAK = """
import resource, sys
from mmssl.features.extract import ExtractOptions, extract
from mmssl.types import Clip
extract("fbank", [Clip("long", audio=sys.argv[1])], sys.argv[2], frames=False, options=ExtractOptions(progress=False))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_recording(tmp_path):
    peaks = {}
    for minutes in (5, 60):
        path = tmp_path / f"{minutes}.wav"
        with soundfile.SoundFile(path, "w", 44100, 1, subtype="PCM_16") as file:
            for second in range(60 * minutes):
                file.write(0.1 * np.random.default_rng(second).standard_normal(44100))
        command = [sys.executable, "-c", PEAK, str(path), str(tmp_path / f"s{minutes}")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[minutes] = float(done.stdout.split()[-1])
        path.unlink()
    # the samples of the longer one alone are 230 MB at 16 kHz
    assert peaks[60] - peaks[5] < 50, peaks


def test_chunks_of_layers_of_other_rates_hold_every_frame_once(conv_upstream):
    upstream = load_upstream(conv_upstream, uneven=True)
    for samples in (32000, 32160, 33333, 40000):
        waveform = noise(3)[:samples]
        chunks = make_chunks(upstream, 0.4, 0.1)
        assert chunks is not None
        assert not chunks.exact
        pieces = list(forward_chunks(upstream, waveform, chunks))
        whole = upstream(waveform[None])["audio"]
        for k in range(3):
            assert sum(len(p["audio"].hidden_states[k]) for p in pieces) == int(whole.lengths[k])
        # the first layer is a convolution, so that its chunks are exact
        first = torch.cat([p["audio"].hidden_states[0] for p in pieces])
        torch.testing.assert_close(first, whole.hidden_states[0][0], rtol=0, atol=1e-6)


def test_declared_chunks_are_part_of_the_fingerprint_and_exact_ones_are_not(conv_upstream, make_clips, tmp_path):
    clips = make_clips(3)
    one = extract(conv_upstream, clips, tmp_path / "one")
    two = extract(conv_upstream, clips, tmp_path / "two", options=ExtractOptions(chunk_seconds=0.2, chunk_overlap=0.05))
    assert one.fingerprint != two.fingerprint
    assert FeatureStore(tmp_path / "two").fingerprint.fields["chunk_seconds"] == 0.2
    for clip in clips:
        a, b = (FeatureStore(tmp_path / name).read(clip.id) for name in ("one", "two"))
        assert [int(n) for n in a.lengths] == [int(n) for n in b.lengths]
    digests = {
        extract("fbank", clips, tmp_path / str(s), options=ExtractOptions(chunk_seconds=s)).fingerprint
        for s in (None, 0.2)
    }
    assert len(digests) == 1


def test_chunks_that_cannot_be(conv_upstream):
    upstream = load_upstream(conv_upstream)
    assert make_chunks(upstream, None, 2.0) is None
    assert make_chunks(load_upstream("fbank", normalize=True), None, 2.0) is None
    for seconds, overlap in ((0.0, 1.0), (1.0, -1.0)):
        with pytest.raises(ConfigError, match="chunk_seconds"):
            make_chunks(upstream, seconds, overlap)
    upstream.spec = type(upstream.spec)(("waveforms",), {"audio": StreamSpec((4,), (0,))}, sample_rate=16000)
    with pytest.raises(ConfigError, match="time axis"):
        make_chunks(upstream, 1.0, 0.0)
