"""Synchrony of media files: clips in which flashes and clicks come together, so that every shift is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mmssl.downstream.sync_distance import IN_SYNC, SHIFTED
from mmssl.errors import CheckpointError, ConfigError, DataError, InputError, MediaError
from mmssl.faces.write import write_video
from mmssl.stages.cli import main
from mmssl.training.sync_media import MediaReader, ShiftedPair, drawn_pairs, dubbed_pairs
from mmssl.training.sync_model import SyncModel, common_layers, load_sync_model
from mmssl.training.sync_train import confidence_threshold, score_pairs, train_synchrony
from mmssl.types import Clip, Inputs, Layers, Representation, StreamSpec, UpstreamSpec
from mmssl.upstreams.base import Upstream

RATE, FPS, SIZE = 16_000, 25, 8
HOP = RATE // FPS
Make = Callable[..., Clip]


class Flashes(Upstream):
    """Made by hand: how bright a picture and how loud 40 ms of sound are; frames (1, 0) for nothing, (0, 1) for much.

    With `mixed`, the video's frames are others, so that the two streams have no common space before training.
    """

    def __init__(self, mixed: bool = False) -> None:
        super().__init__()
        turn = torch.tensor([[0.5, -1.0, 0.0, 0.5], [-1.0, 1.0, 2.0, 0.0]]) if mixed else torch.eye(2)
        self.register_buffer("turn", turn)
        streams = {"audio": StreamSpec((2,), (HOP,)), "video": StreamSpec((turn.shape[1],), (1,))}
        self.spec = UpstreamSpec(("waveforms", "video"), streams, RATE, float(FPS), HOP, None, (SIZE, SIZE))

    def output_lengths(self, lengths: Tensor, stream: str = "audio", layer: int = -1) -> Tensor:
        return lengths if stream == "video" else lengths // HOP

    def extract(self, inputs: Inputs) -> Representation:
        assert inputs.waveforms is not None
        assert inputs.video is not None
        steps = inputs.waveforms.data.shape[1] // HOP
        loud = inputs.waveforms.data[:, : steps * HOP].unflatten(1, (steps, HOP)).abs().amax(-1) > 0.3
        bright = inputs.video.data.mean((2, 3, 4)) > 0.5
        sound, sight = (torch.stack([~on, on], -1).float() for on in (loud, bright))
        return {
            "audio": Layers((sound,), (inputs.waveforms.lengths // HOP,)),
            "video": Layers((sight @ self.turn,), (inputs.video.lengths,)),
        }


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """make(name, late=frames) writes a clip of irregular flashes, its clicks so many frames late."""

    def write(name: str, late: int = 0, frames: int = 60, sound: bool = True, speaker: str | None = None) -> Clip:
        rng = np.random.default_rng(sum(map(ord, name)))
        at = np.flatnonzero(rng.random(frames) < 0.25)
        pictures = np.full((frames, 12, 12, 3), 20, np.uint8)
        pictures[at] = 240
        waveform = (0.01 * np.sin(np.arange(frames * HOP) * 0.3)).astype(np.float32)
        for flash in at + late:
            if 0 <= flash < frames:
                waveform[flash * HOP : flash * HOP + HOP // 2] += 0.6
        path = tmp_path / f"{name}{late:+d}.mkv"
        write_video(path, pictures, FPS, waveform[None] if sound else None, RATE)
        return Clip(f"{name}{late:+d}", video=str(path), speaker=speaker)

    return write


@pytest.fixture
def hand_made() -> SyncModel:
    return SyncModel(Flashes(), projected=False, max_shift=6)


@pytest.mark.parametrize("late", [-5, -1, 0, 1, 2, 6])
def test_the_offset_of_a_file_is_found(make, hand_made, late):
    found = hand_made.judge(make("a", late))
    assert found.offset == late
    assert found.verdict == (SHIFTED if abs(late) > 1 else IN_SYNC)
    # all frames that meet agree at the true shift
    assert min(found.distances) == pytest.approx(0, abs=1e-6)
    assert found.confidence > 0.2


@pytest.mark.parametrize("shift", [-4, 0, 3])
def test_a_shifted_pair_is_as_late_as_it_says(make, hand_made, shift):
    clip = make("b")
    reader = MediaReader(hand_made.upstream.spec)
    inputs = reader.pair(ShiftedPair(clip, clip, shift), 6)
    whole, pictures = reader.whole(clip)
    assert (inputs.waveforms.data.shape, inputs.video.data.shape[1]) == ((1, 48 * HOP), 48)
    begin = (6 - shift) * HOP
    torch.testing.assert_close(inputs.waveforms.data[0], whole[begin : begin + 48 * HOP], rtol=0, atol=0)
    torch.testing.assert_close(inputs.video.data[0], pictures[6:54].float() / 255, rtol=0, atol=0)
    scores = score_pairs(hand_made, [ShiftedPair(clip, clip, shift)])
    assert scores.metrics["accuracy"] == 1.0
    # a clip recorded late and shifted back is in sync again
    other = make("b", 2)
    again = score_pairs(hand_made, [ShiftedPair(other, other, -2)])
    assert int(again.distances.argmin()) == 6


def test_pairs_are_drawn_by_the_generator_and_dubbed_within_the_speaker(make):
    clips = [Clip(str(k), video="v", speaker=s) for k, s in enumerate("aabc")]
    one, two = (drawn_pairs(clips, 3, 5, torch.Generator().manual_seed(1), least=2) for _ in range(2))
    assert one == two
    shifts = np.array([pair.shift for pair in one]).reshape(4, 3)
    assert (np.abs(shifts) >= 2).all()
    assert (np.abs(shifts) <= 5).all()
    assert all(len(set(row)) == 3 for row in shifts.tolist())
    assert [(p.sound.id, p.pictures.id) for p in dubbed_pairs(clips)] == [
        ("1", "0"),
        ("0", "1"),
        ("3", "2"),
        ("0", "3"),
    ]
    assert dubbed_pairs(clips[:1]) == []


@pytest.mark.slow
def test_training_finds_a_common_space_and_the_folder_keeps_it(make, tmp_path):
    clips = [make(f"clip{k}", speaker=str(k)) for k in range(10)]
    with pytest.raises(ConfigError, match="not one video frame"):
        train_synchrony(_slow(), clips[:2], clips[2:3], max_shift=4)
    settings = {"max_shift": 4, "per_clip": 5, "embedding_size": 8, "hidden_size": 16, "learning_rate": 3e-3}
    settings |= {"max_steps": 120, "eval_every": 40, "batch_size": 16}
    model, result = train_synchrony(Flashes(mixed=True), clips[:6], clips[6:8], **settings)
    assert result.monitor == "dev_accuracy_within_1"
    test = clips[8:]
    pairs = [ShiftedPair(clip, clip, shift) for clip in test for shift in range(-4, 5)]
    scores = score_pairs(model, pairs)
    assert scores.metrics["accuracy"] == 1.0
    assert scores.metrics["shifted_auc"] == 1.0
    assert scores.metrics["chance"] == pytest.approx(1 / 9)
    # the sound of another clip fits nowhere
    dubbed = score_pairs(model, [ShiftedPair(clip, clip) for clip in test] + dubbed_pairs(test))
    assert dubbed.metrics["dubbed_auc"] == 1.0
    assert model.threshold == confidence_threshold(score_pairs(model, [*_own(clips[6:8]), *dubbed_pairs(clips[6:8])]))
    # Flashes is no class that another process could build: the parts of the folder are read one by one
    model.save(tmp_path / "model", "mmssl.testing.dummies.DummyAudioVisual", {})
    assert (tmp_path / "model" / "synchrony.json").is_file()


def _own(clips: list[Clip]) -> list[ShiftedPair]:
    return [ShiftedPair(clip, clip) for clip in clips]


def _slow() -> Flashes:
    upstream = Flashes()
    streams = {"audio": StreamSpec((2,), (2 * HOP,)), "video": upstream.spec.streams["video"]}
    upstream.spec = replace(upstream.spec, streams=streams)
    return upstream


DUMMY = "mmssl.testing.dummies.DummyAudioVisual"


def test_a_saved_model_is_the_same(make, tmp_path):
    from mmssl.upstreams.base import load_upstream

    model = SyncModel(load_upstream(DUMMY, seed=3), max_shift=3, embedding_size=8, hidden_size=16, threshold=0.25)
    model.save(tmp_path / "model", DUMMY, {}, note="drawn weights")
    read = load_sync_model(tmp_path / "model")
    clip = make("a")
    assert read.judge(clip) == model.judge(clip)
    assert (read.threshold, read.max_shift, read.frame_shift) == (0.25, 3, 0.04)
    (tmp_path / "model" / "synchrony.safetensors").unlink()
    with pytest.raises(CheckpointError):
        load_sync_model(tmp_path / "model")
    # the streams of DummyAudioVisual have one width: they can be compared as they are
    assert load_sync_model(DUMMY).task is None


def test_what_cannot_be_used_is_said(make, hand_made):
    clip, silent, short = make("a"), make("s", sound=False), make("q", frames=14)
    with pytest.raises(MediaError, match="sound"):
        hand_made.judge(silent)
    with pytest.raises(DataError, match="'x' has no video"):
        hand_made.judge(Clip("x", audio=clip.video))
    with pytest.raises(DataError, match=r"'q.*' has 14 frames, too few for shifts of 8"):
        MediaReader(hand_made.upstream.spec).pair(ShiftedPair(short, short), 8)
    with pytest.raises(DataError, match="beyond the reach"):
        MediaReader(hand_made.upstream.spec).pair(ShiftedPair(clip, clip, 7), 6)
    with pytest.raises(InputError):
        SyncModel(Flashes(), projected=False, max_shift=6, least_frames=20).judge(short)
    scores = score_pairs(hand_made, [ShiftedPair(c, c) for c in (clip, silent, short)], skip=True)
    assert (len(scores.pairs), sorted(scores.skipped)) == (1, ["q+0", "s+0"])
    with pytest.raises(DataError, match="No pair could be used"):
        score_pairs(hand_made, [ShiftedPair(silent, silent)], skip=True)
    with pytest.raises(DataError, match=r"'a.*' is too short: .* least_frames is 50"):
        train_synchrony(Flashes(), [clip], [clip], max_shift=4, least_frames=50)
    with pytest.raises(DataError, match="got 0 and 1"):
        train_synchrony(Flashes(), [], [clip])


def test_layers_of_another_rate_are_left_out():
    audio, video = StreamSpec((4, 6, 6), (160, 640, 640)), StreamSpec((4, 4), (1, 1))
    spec = UpstreamSpec(("waveforms", "video"), {"audio": audio, "video": video}, RATE, 25.0)
    kept, reduced = common_layers(spec)
    assert kept == {"audio": [1, 2], "video": [0, 1]}
    assert reduced.streams["audio"] == StreamSpec((6, 6), (640, 640))
    assert common_layers(spec, only_last=True)[0] == {"audio": [2], "video": [1]}
    with pytest.raises(ConfigError, match="gives audio only"):
        common_layers(replace(spec, streams={"audio": audio}))


def test_command(make, tmp_path, capsys):
    from mmssl.upstreams.base import load_upstream

    folder, out = tmp_path / "model", tmp_path / "sync.json"
    SyncModel(load_upstream(DUMMY), max_shift=3, embedding_size=8, hidden_size=16).save(folder, DUMMY, {})
    clip, silent = make("a"), make("s", sound=False)
    assert main(["sync", str(folder), clip.video, "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert "a+0" in text
    assert "offset" in text
    assert '"offset_seconds"' in out.read_text()
    assert main(["sync", str(folder), clip.video, silent.video]) == 1
    captured = capsys.readouterr()
    assert "s+0" in captured.err
    assert "a+0" in captured.out
    assert main(["sync", str(tmp_path / "nowhere"), clip.video]) == 1
