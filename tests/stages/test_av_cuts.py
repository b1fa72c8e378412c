"""Cuts for synchrony: they are as late as they say, and what only knows its own place in a clip stays at chance."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from mmssl.data.folds import Fold, read_folds
from mmssl.data.manifest import read_manifest
from mmssl.errors import ConfigError
from mmssl.faces.write import write_video
from mmssl.features.store import FeatureStore
from mmssl.stages.av_cuts import NEAR, CutFeatures, CutItems, Cutter, fold_cuts, sound_key, training_cuts
from mmssl.stages.av_extract import represent
from mmssl.stages.recipe import main
from mmssl.training.sync_media import MediaReader, ShiftedPair
from mmssl.types import Clip, Inputs, Layers, Padded, Representation, StreamSpec, UpstreamSpec
from mmssl.upstreams.base import Upstream, load_upstream

ROOT = Path(__file__).parents[2]
RATE, FPS, SIZE = 16_000, 25, 8
HOP = RATE // FPS
MOST, LEAST = 4, 4
ENCODERS = '''
import torch
from torch import Tensor
from mmssl.types import Inputs, Layers, Representation, StreamSpec, UpstreamSpec
from mmssl.upstreams.base import Upstream


class Numbers(Upstream):
    """Frames that hold their own number, and nothing of what is heard or seen."""

    def __init__(self) -> None:
        super().__init__()
        streams = {"audio": StreamSpec((16,), (160,)), "video": StreamSpec((16,), (1,))}
        self.spec = UpstreamSpec(("waveforms", "video"), streams, 16000, 25.0, 160, None, (8, 8))

    def output_lengths(self, lengths: Tensor, stream: str = "audio", layer: int = -1) -> Tensor:
        return lengths if stream == "video" else lengths // 160

    def extract(self, inputs: Inputs) -> Representation:
        found = {}
        for name, given, hop, shift in (("audio", inputs.waveforms, 160, 0.01), ("video", inputs.video, 1, 0.04)):
            if given is not None:
                angle = torch.arange(given.data.shape[1] // hop)[:, None] * shift * 2.0 ** torch.arange(8)
                waves = torch.cat([angle.sin(), angle.cos()], 1).expand(len(given.data), -1, -1)
                found[name] = Layers((waves.clone(),), (given.lengths // hop,))
        return found


class Levels(Numbers):
    """How loud a stretch of sound is and how bright a picture, each alone, in 16 steps."""

    def extract(self, inputs: Inputs) -> Representation:
        steps, found = torch.linspace(0, 1, 16), {}
        if inputs.waveforms is not None:
            loud = inputs.waveforms.data.unfold(1, 160, 160).square().mean(-1).sqrt()
            heard = (-(4 * loud[..., None] - 2 * steps).square()).exp()
            found["audio"] = Layers((heard,), (inputs.waveforms.lengths // 160,))
        if inputs.video is not None:
            bright = inputs.video.data.mean((2, 3, 4))
            found["video"] = Layers(((-(4 * bright[..., None] - 4 * steps).square()).exp(),), (inputs.video.lengths,))
        return found
'''


class Timed(Upstream):
    """Two rates and patches: what a frame holds is the mean of its input."""

    def __init__(self, rate: int = RATE, fps: float = FPS, hop: int = HOP // 4) -> None:
        super().__init__()
        streams = {"audio": StreamSpec((1, 1), (2 * hop, hop)), "video": StreamSpec((1,), (1,))}
        self.spec = UpstreamSpec(("waveforms", "video"), streams, rate, float(fps), hop, None, (SIZE, SIZE))
        self.hop = hop

    def output_lengths(self, lengths: Tensor, stream: str = "audio", layer: int = -1) -> Tensor:
        return lengths if stream == "video" else lengths // (self.hop if layer in (-1, 1) else 2 * self.hop)

    def extract(self, inputs: Inputs) -> Representation:
        found = {}
        if inputs.waveforms is not None:
            hops = (2 * self.hop, self.hop)
            means = tuple(inputs.waveforms.data.unfold(1, hop, hop).mean(-1, keepdim=True) for hop in hops)
            found["audio"] = Layers(means, tuple(inputs.waveforms.lengths // hop for hop in hops))
        if inputs.video is not None:
            found["video"] = Layers((inputs.video.data.mean((2, 3, 4))[..., None],), (inputs.video.lengths,))
        return found


def write(path: Path, frames: int = 30, seed: int = 0) -> Path:
    """Sound as loud as the pictures are bright, frame by frame."""
    rng = np.random.default_rng(seed)
    level = rng.random(frames)
    pictures = np.broadcast_to((255 * level).astype(np.uint8)[:, None, None, None], (frames, SIZE, SIZE, 3)).copy()
    envelope = np.repeat(level, HOP)
    noise = rng.choice([-0.5, 0.5], len(envelope))
    write_video(path, pictures, FPS, (envelope * noise).astype(np.float32)[None], RATE)
    return path


@pytest.fixture
def clip(tmp_path: Path) -> Clip:
    return Clip("a", audio=str(write(tmp_path / "a.mkv")), video=str(tmp_path / "a.mkv"), speaker="s")


@pytest.mark.parametrize("offset", [-MOST, 0, 3])
def test_cuts_are_those_of_shifted_pairs(clip: Clip, offset: int) -> None:
    cutter = Cutter(Timed(), MOST, LEAST)
    assert (cutter.frame_shift, cutter.margin, cutter.size(clip)) == (0.04, MOST, 30 - 2 * MOST)
    item = cutter.load(clip)
    pair = MediaReader(cutter.upstream.spec).pair(ShiftedPair(clip, clip, offset), MOST)
    assert pair.waveforms is not None
    assert pair.video is not None
    torch.testing.assert_close(cutter.sound(item, offset), pair.waveforms.data[0], rtol=0, atol=0)
    torch.testing.assert_close(cutter.pictures(item).float() / 255, pair.video.data[0])


@pytest.mark.parametrize("hop", [600, 1300])
def test_slower_sound_gives_the_clock(clip: Clip, hop: int) -> None:
    """The frame shift is no whole number of video frames: cuts are late by a time all the same."""
    cutter = Cutter(Timed(hop=hop), 3, 1)
    assert cutter.frame_shift == pytest.approx(max(hop / RATE, 1 / FPS))
    assert cutter.margin == math.ceil(3 * cutter.frame_shift * FPS)
    item = cutter.load(clip)
    whole = item.waveform
    assert whole is not None
    for offset in range(-3, 4):
        sound = cutter.sound(item, offset)
        begin = round(cutter.margin * HOP - offset * cutter.frame_shift * RATE)
        assert abs(len(sound) - HOP * len(cutter.pictures(item))) <= 1
        torch.testing.assert_close(sound, whole[begin : begin + len(sound)], rtol=0, atol=0)


def test_the_longest_cut_is_in_the_middle(clip: Clip) -> None:
    cutter = Cutter(Timed(), MOST, LEAST, seconds=0.4)
    assert cutter.size(clip) == 10
    short, whole = cutter.load(clip), MediaReader(cutter.upstream.spec).whole(clip)
    # 30 frames: 10 in the middle, 4 free on both sides
    torch.testing.assert_close(cutter.pictures(short), whole[1][10:20])
    torch.testing.assert_close(cutter.sound(short, 2), whole[0][8 * HOP : 18 * HOP])


def test_clips_need_room_for_every_shift(tmp_path: Path) -> None:
    cutter = Cutter(Timed(), MOST, LEAST)
    sizes = []
    for frames in (3 * MOST + LEAST - 1, 3 * MOST + LEAST):
        path = str(write(tmp_path / f"{frames}.mkv", frames))
        sizes.append(cutter.size(Clip("a", audio=path, video=path)))
    assert sizes == [0, MOST + LEAST]
    with pytest.raises(ConfigError, match="max_shift must be above"):
        Cutter(Timed(), NEAR, LEAST)


def test_what_a_fold_needs() -> None:
    assert [c[3] for c in training_cuts(["a"], 3)] == list(range(-3, 4))
    few = training_cuts(["a", "b"], 8, per_clip=5)
    assert few == training_cuts(["a"], 8, 5) + training_cuts(["b"], 8, 5)
    assert {len({c[3] for c in few if c[1] == name}) for name in "ab"} == {5}
    with pytest.raises(ConfigError, match="per_clip"):
        training_cuts(["a"], 3, 0)
    fold = Fold("f", train=("a", "gone"), dev=("b",), test=("c", "d"))
    facts = dict.fromkeys("abcd", ("s", "x"))
    cuts = fold_cuts(fold, set("abcd"), facts, {"max_shift": 3, "per_clip": None})
    assert (len(cuts["train"]), len(cuts["dev"]), len(cuts["test"])) == (7, 3, 10)
    assert {c[1] for c in cuts["train"]} == {"a"}


Run = Callable[..., tuple[int, str, Path]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """run("av_sync", ...) on 4 speakers of 2 clips -> exit code, what was printed, and the recipe's folder."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for s in range(4):
        for k in range(2):
            write(corpus / f"s{s}-{'ab'[k % 2]}-{k}.mkv", 24, 10 * s + k)
    (tmp_path / "encoders.py").write_text(ENCODERS)
    prepare = (
        "from mmssl.types import Clip\n\n\ndef prepare(root, folder):\n"
        "    names = [(p, *p.stem.split('-')) for p in sorted(root.glob('*.mkv'))]\n"
        "    return [Clip(p.stem, video=str(p), labels={'emotion': e}, speaker=s) for p, s, e, _ in names]\n"
    )

    def call(task: str, *words: str) -> tuple[int, str, Path]:
        folder = tmp_path / "egs" / "mini" / task
        if not folder.is_dir():
            shutil.copytree(ROOT / "egs" / "mini" / task / "conf", folder / "conf")
            (folder / "local").mkdir()
            (folder / "local" / "prepare.py").write_text(prepare)
            shutil.copytree(ROOT / "recipes", tmp_path / "recipes", dirs_exist_ok=True)
        monkeypatch.setenv("MMSSL_CALLER_DIR", str(folder))
        capsys.readouterr()
        written: Any = OmegaConf.load(folder / "conf" / "config.yaml")
        fixed = [f"~data.options.{name}" for name in written.data.options]
        fixed += [f"~upstream.{name}" for name in written.upstream]
        fixed += [f"data.root={corpus}", "protocol.k=2", "protocol.dev_groups=1", "pretraining=null"]
        fixed += ["untrained=false", "plain=false", "exp=x"]
        code = main(["--nj", "1", *fixed, *words], folder)
        captured = capsys.readouterr()
        return code, captured.out + captured.err, folder

    return call


SMALL = ("sync.max_shift=4", "sync.least_frames=4", "sync.hidden_size=32", "sync.embedding_size=16")


def scores_of(run: Run, upstream: str, steps: int) -> tuple[dict[str, Any], list[bool]]:
    """Scores of a run, and which offsets of a clip sound like the first one to the encoder."""
    code, printed, folder = run("av_sync", f"upstream={upstream}", *SMALL, f"train.max_steps={steps}")
    assert code == 0, printed
    (scores,) = json.loads((folder / "exp" / "x" / "scores.json").read_text())["scores"]
    (record,) = json.loads((folder / "exp" / "x" / "av_features.json").read_text()).values()
    features = CutFeatures(folder, record)
    stored = set(features.stores.stores["audio"].ids)
    every = [training_cuts([clip], 4) for clip in sorted(features.clips)]
    trained = [cuts for cuts in every if all(sound_key(cut[1], cut[3]) in stored for cut in cuts)]
    items = CutItems(features, trained[0])
    heard = [items[k][0]["audio"].hidden_states[0] for k in range(len(items))]
    return scores, [torch.equal(one, heard[0]) for one in heard]


def test_frame_numbers_say_nothing_about_the_offset(run: Run, tmp_path: Path) -> None:
    found, same = scores_of(run, f"{tmp_path}/encoders.py:Numbers", 4)
    # every cut looks the same, so that every answer is the same
    assert all(same)
    for measure in ("choice", "auc_match", "auc_shifted", "auc_dubbed"):
        assert found[measure]["value"] == 0.5, measure
    assert found["within_1"]["value"] == found["control"]["value"] <= 0.5


@pytest.mark.slow
def test_levels_tell_the_offset(run: Run, tmp_path: Path) -> None:
    """The same recipe on an encoder of what is heard and seen."""
    found, same = scores_of(run, f"{tmp_path}/encoders.py:Levels", 40)
    assert not any(same[1:])
    assert found["within_1"]["value"] > 0.6
    assert found["auc_shifted"]["value"] > 0.7


def needed(folder: Path, per_clip: int | None = None) -> set[str]:
    """Sounds that the folds of a recipe's folder need."""
    facts = {clip.id: (clip.speaker, clip.labels["emotion"]) for clip in read_manifest(folder / "data/manifest.jsonl")}
    settings = {"max_shift": 3, "per_clip": per_clip}
    parts = [fold_cuts(f, set(facts), facts, settings) for f in read_folds(folder / "data/folds.json")]
    return {sound_key(cut[1], cut[3]) for part in parts for cuts in part.values() for cut in cuts}


@pytest.mark.slow
def test_cuts_are_encoded_once(run: Run, tmp_path: Path) -> None:
    upstream = load_upstream(f"{tmp_path}/encoders.py:Levels")
    words = (f"upstream={tmp_path}/encoders.py:Levels", "sync.max_shift=3", "sync.least_frames=4", "--stop_stage", "3")
    code, printed, folder = run("av_sync", *words, "sync.per_clip=2")
    assert code == 0, printed
    (record,) = json.loads((folder / "exp" / "x" / "av_features.json").read_text()).values()
    stores = {name: FeatureStore(folder / path) for name, path in record["cuts"]["stores"].items()}
    assert (len(record["cuts"]["clips"]), stores["video"].ids) == (8, record["cuts"]["clips"])
    assert set(stores["audio"].ids) == needed(folder, per_clip=2)
    # what is stored is what the encoder makes of the cut media, alone
    cutter = Cutter(upstream, 3, 4)
    for clip in ("s0-a-0", "s3-b-1"):
        path = str(tmp_path / "corpus" / f"{clip}.mkv")
        item = cutter.load(Clip(clip, audio=path, video=path))
        sound = cutter.sound(item, 0)[None]
        wanted = represent(upstream, Inputs(Padded(sound, torch.tensor([sound.shape[1]]))))["audio"]
        found = stores["audio"].read(sound_key(clip, 0))
        torch.testing.assert_close(found.hidden_states[0], wanted.hidden_states[0][0])
    # more offsets are added to what is there
    added = len(needed(folder) - set(stores["audio"].ids))
    code, printed, _ = run("av_sync", *words, "--overwrite")
    assert code == 0, printed
    again = {name: FeatureStore(folder / path) for name, path in record["cuts"]["stores"].items()}
    assert f"{added} cuts of 8 clips computed" in printed
    assert (set(again["audio"].ids), len(again["video"])) == (needed(folder) | needed(folder, per_clip=2), 8)


def test_mistakes(run: Run, tmp_path: Path) -> None:
    upstream = f"upstream={tmp_path}/encoders.py:Levels"
    code, printed, _ = run("av_sync", upstream, "sync.max_shift=8", "sync.least_frames=10")
    assert (code, "3 max_shift + least_frames: lower them" in printed) == (1, True), printed
    code, printed, _ = run("av_sync", upstream, "sync.max_shift=2")
    assert (code, "max_shift must be above 2 frames" in printed) == (1, True), printed
    code, printed, _ = run("av_sync", "upstream=mel")
    assert (code, "takes audio only" in printed) == (1, True), printed
