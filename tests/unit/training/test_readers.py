"""What pretraining reads of a clip, and the batches it comes in."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from mmssl.errors import ConfigError, DataError, MediaError
from mmssl.media.sync import load_audio_video
from mmssl.training.pretrain_batches import PretrainBatches, pretrain_loader
from mmssl.training.readers import (
    AudioImageReader,
    AudioReader,
    AudioVideoReader,
    ClipReader,
    ImageReader,
    VideoReader,
    reader_for,
)
from mmssl.types import Clip, StreamSpec, UpstreamSpec

FPS, RATE = 25, 16000


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    """Seven clips with a picture, and a video with sound of another length each."""
    folder = tmp_path_factory.mktemp("media")
    generator = np.random.default_rng(0)
    clips = []
    for number in range(7):
        frames = 20 + 5 * number
        picture, video, audio = (folder / f"{number}.{suffix}" for suffix in ("png", "mkv", "wav"))
        Image.fromarray(generator.integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(picture)
        sound = generator.uniform(-0.5, 0.5, frames * RATE // FPS).astype(np.float32)
        soundfile.write(audio, sound, RATE)
        write_video(video, generator.integers(0, 255, (frames, 24, 32, 3), dtype=np.uint8), sound)
        speaker = f"s{number % 3}" if number else None
        clips.append(Clip(f"c{number}", audio=str(audio), video=str(video), image=str(picture), speaker=speaker))
    return clips


def write_video(path: Path, pictures: np.ndarray, sound: np.ndarray) -> None:
    with av.open(str(path), "w") as container:
        video = container.add_stream("ffv1", rate=FPS)
        video.width, video.height, video.pix_fmt = pictures.shape[2], pictures.shape[1], "bgr0"
        audio = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for picture in pictures:
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode())
        frame = av.AudioFrame.from_ndarray((sound[None] * 32767).astype(np.int16), format="s16", layout="mono")
        frame.sample_rate = RATE
        container.mux(audio.encode(frame))
        container.mux(audio.encode())


READERS = {
    "audio": (lambda: AudioReader(RATE, 0.6, 400, 320), {"batch_seconds": 1.4}),
    "image": (lambda: ImageReader(16), {"batch_size": 3}),
    "video": (lambda: VideoReader(8, (12, 16), FPS), {"batch_size": 3}),
    "audio_video": (lambda: AudioVideoReader(RATE, FPS, 0.4, (12, 16)), {"batch_size": 3}),
    "audio_image": (lambda: AudioImageReader(RATE, 16, 0.6, 400, 320), {"batch_size": 2}),
}


@pytest.mark.parametrize("kind", READERS)
def test_a_clip_is_read_the_same_whatever_the_cache_the_workers_and_the_batch(kind: str, corpus: list[Clip]) -> None:
    build, size = READERS[kind]

    def rows(clips: list[Clip], workers: int = 0, **changes: int) -> dict[tuple[str, int], tuple[torch.Tensor, ...]]:
        batches = PretrainBatches(clips, build(), **{**size, "seed": 3, **changes})
        found = {}
        for batch in pretrain_loader(batches, 0, len(batches.plan(0)) + len(batches.plan(1)), workers):
            inputs = batch.examples.inputs
            for row, (clip, seed) in enumerate(zip(batch.examples.ids, batch.examples.seeds, strict=True)):
                parts = [torch.tensor(seed % 2**31)]
                if inputs.waveforms is not None:
                    parts.append(inputs.waveforms.unpad()[row])
                if inputs.video is not None:
                    parts.append(inputs.video.unpad()[row])
                if inputs.images is not None:
                    parts.append(inputs.images[row])
                found[clip, batch.epoch] = tuple(parts)
        return found

    expected = rows(corpus)
    assert set(expected) == {(clip.id, epoch) for clip in corpus for epoch in (0, 1)}
    for other in (
        rows(corpus, cache_bytes=2**30),
        rows(corpus, cache_bytes=150_000),
        rows(corpus, workers=2),
        rows(corpus[::-1], batch_size=2),
    ):
        assert set(other) == set(expected)
        for key, parts in expected.items():
            assert all(torch.equal(a, b) for a, b in zip(parts, other[key], strict=True))
    assert any(not torch.equal(expected["c6", 0][0], expected["c6", 1][0]) for _ in range(1))


def test_sound_and_video_are_of_the_same_time(corpus: list[Clip]) -> None:
    reader = AudioVideoReader(RATE, FPS, 0.4, (24, 32))
    whole = load_audio_video(str(corpus[6].video), fps=FPS, size=(24, 32), sample_rate=RATE, as_uint8=True)
    clip = Clip("v", video=corpus[6].video)
    assert reader.measure(clip) == 50
    item = reader.load(clip, 13, 10)
    assert torch.equal(item.video, whole.video[13:23])
    assert torch.equal(item.waveform, whole.waveform[13 * 640 : 23 * 640])
    later = reader.load(Clip("v", video=corpus[6].video, start=0.2, duration=1.0), 3, 10)
    assert torch.equal(later.video, whole.video[8:18])


@pytest.mark.parametrize("kind", ["audio", "audio_video"])
def test_a_batch_says_where_in_its_clips_the_sound_begins(kind: str, corpus: list[Clip]) -> None:
    build, size = READERS[kind]
    batches = PretrainBatches(corpus, build(), seed=1, **size)
    starts = set()
    for number in range(len(batches.plan(0))):
        examples = batches[number].examples
        sound = examples.inputs.waveforms
        assert sound is not None
        for row, name, start in zip(sound.unpad(), examples.ids, examples.starts, strict=True):
            whole = soundfile.read(str(corpus[int(name[1:])].audio), dtype="float32")[0]
            # the sound of the video file has 16 bits
            torch.testing.assert_close(row, torch.from_numpy(whole[start : start + len(row)]), rtol=0, atol=1e-4)
            assert start % (RATE // FPS if kind == "audio_video" else 320) == 0
            starts.add(start)
    assert len(starts) > 2


def test_the_shares_of_all_ranks_are_the_batch(corpus: list[Clip]) -> None:
    build, size = READERS["image"]
    whole = PretrainBatches(corpus, build(), **size, labels=["speaker"])
    assert whole.label_values == {"speaker": ["s0", "s1", "s2"]}
    shares = [PretrainBatches(corpus, build(), **size, rank=rank, world_size=2) for rank in (0, 1)]
    for number in range(6):
        joint = whole[number].examples
        parts = [share[number].examples for share in shares]
        assert joint.ids[0::2] == parts[0].ids
        assert joint.ids[1::2] == parts[1].ids
        assert torch.equal(joint.inputs.images[1::2], parts[1].inputs.images)
        speakers = [next(c.speaker for c in corpus if c.id == name) for name in joint.ids]
        assert joint.labels["speaker"].tolist() == [-1 if s is None else int(s[1]) for s in speakers]
    with pytest.raises(DataError, match="larger batches"):
        PretrainBatches(corpus, build(), batch_size=3, world_size=4)[0]


def test_no_batch_of_pictures_is_left_with_one_clip(corpus: list[Clip]) -> None:
    for size in (2, 3, 6):
        plan = PretrainBatches(corpus, ImageReader(8), batch_size=size).plan(0)
        assert sorted(k for batch in plan for k in batch) == list(range(7))
        counts = [len(batch) for batch in plan]
        assert max(counts) <= size
        assert max(counts) - min(counts) <= 1


def test_broken_clips_are_reported_and_never_replaced(corpus: list[Clip], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(Path(str(corpus[0].image)).read_bytes()[:300])
    clips = [*corpus[:4], Clip("broken", image=str(broken)), Clip("sound", audio=corpus[0].audio)]
    with pytest.raises(DataError, match="'sound' has no image; it has audio"):
        PretrainBatches(clips, ImageReader(8), batch_size=5)
    batches = PretrainBatches(clips, ImageReader(8), batch_size=5, on_error="skip")
    assert list(batches.skipped) == ["sound"]
    batch = batches[0]
    assert sorted(batch.examples.ids) == ["c0", "c1", "c2", "c3"]
    assert len(batch.examples.inputs.images) == 4
    assert "truncated or damaged" in batch.failed["broken"]
    with pytest.raises(MediaError, match="broken"):
        PretrainBatches(clips[:5], ImageReader(8), batch_size=5)[0]
    with pytest.raises(MediaError, match="No clip of batch 0"):
        PretrainBatches(clips[4:], ImageReader(8), batch_size=5, on_error="skip")[0]
    short = PretrainBatches(corpus, VideoReader(33, 8, FPS), batch_size=2)
    assert list(short.skipped) == ["c0", "c1", "c2"]
    assert short.skipped["c0"] == "It has 20 units of 1/25 s, the encoder needs 33."
    with pytest.raises(DataError, match="None of the 7 clips"):
        PretrainBatches(corpus, VideoReader(100, 8, FPS), batch_size=2)


def spec(*inputs: str, **changes: object) -> UpstreamSpec:
    streams = {"audio": StreamSpec((4,), (320,))} if "waveforms" in inputs else {"image": StreamSpec((4,), (0,))}
    return UpstreamSpec(inputs, streams, **changes)


def test_the_reader_follows_from_what_the_encoder_takes() -> None:
    audio = reader_for(spec("waveforms", sample_rate=RATE, min_length=500), max_seconds=2)
    assert (type(audio), audio.least, audio.most, audio.step) == (AudioReader, 500, 32000, 320)
    image = reader_for(spec("images", image_size=(8, 12)))
    assert isinstance(image, ImageReader)
    assert image.size == (8, 12)
    video = reader_for(spec("video", video_fps=FPS, image_size=(8, 8)), num_frames=16)
    assert (type(video), video.least, video.most) == (VideoReader, 16, 16)
    both = reader_for(spec("waveforms", "video", sample_rate=RATE, video_fps=FPS, image_size=(8, 8)), seconds=2.56)
    assert (type(both), both.most) == (AudioVideoReader, 64)
    with pytest.raises(ConfigError, match="num_frames"):
        reader_for(spec("video", video_fps=FPS, image_size=(8, 8)))
    with pytest.raises(ConfigError, match="image_size"):
        reader_for(spec("images"))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AudioReader(RATE, 0), "max_seconds"),
        (lambda: ImageReader(0), "at least one pixel"),
        (lambda: VideoReader(0, 8), "num_frames"),
        (lambda: AudioVideoReader(RATE, FPS, 0.01, 8), "no frame"),
    ],
)
def test_impossible_readers_are_refused(build: type[ClipReader], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()


def test_a_batch_needs_a_size_that_holds_its_clips(corpus: list[Clip]) -> None:
    with pytest.raises(ConfigError, match="how large a batch"):
        PretrainBatches(corpus, ImageReader(8), batch_seconds=3)
    with pytest.raises(ConfigError, match="cannot hold a clip"):
        PretrainBatches(corpus, AudioReader(RATE, 0.6), batch_seconds=0.5)
    with pytest.raises(ConfigError, match="batch_size must be at least 1"):
        PretrainBatches(corpus, AudioReader(RATE, 0.6), batch_size=0)
    with pytest.raises(ConfigError, match="on_error"):
        PretrainBatches(corpus, ImageReader(8), batch_size=2, on_error="ignore")
