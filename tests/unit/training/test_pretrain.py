"""Pretraining over Lightning: batches, accumulation, the teacher, and exact resume in the middle of an epoch."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from mmssl.errors import ConfigError, DataError
from mmssl.objectives.methods.data2vec import data2vec
from mmssl.objectives.methods.wav2vec2 import wav2vec2
from mmssl.objectives.objective import Objective
from mmssl.training.pretrain import PretrainResult, pretrain
from mmssl.training.pretrain_batches import PretrainBatches, pretrain_loader
from mmssl.training.pretrain_optim import learning_rate_factor
from mmssl.training.readers import AudioReader
from mmssl.types import Clip
from mmssl.upstreams.speech_transformer import SpeechTransformer


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    folder = tmp_path_factory.mktemp("wav")
    generator = torch.Generator().manual_seed(0)
    found = []
    for number in range(13):
        size = 1600 + 517 * number
        path = folder / f"{number}.wav"
        soundfile.write(path, (torch.randn(size, generator=generator) * 0.1).numpy(), 16000)
        found.append(Clip(f"c{number}", audio=str(path), duration=size / 16000 if number % 2 else None))
    return found


def build(method: str) -> Objective:
    torch.manual_seed(0)
    model = SpeechTransformer("wav2vec2_tiny", dropout=0.1, layer_drop=0.2)
    if method == "data2vec":
        return data2vec(model, top_k=2, mask_span=3, decay=(0.9, 0.99), decay_steps=20, health_every=2)
    return wav2vec2(model, num_negatives=5, num_entries=5, size=8, mask_span=3, health_every=2)


def run(objective: Objective, clips: list[Clip], folder: Path, **changes: Any) -> PretrainResult:
    settings = {"learning_rate": 1e-3, "max_steps": 8, "warmup_steps": 3, "batch_seconds": 0.9, "max_seconds": 0.4}
    settings |= {"accumulate": 2, "grad_clip": 1.0, "save_every": 1, "log_every": 2, "seed": 5}
    return pretrain(objective, clips, folder, **{**settings, **changes})


@pytest.mark.parametrize("method", ["wav2vec2", "data2vec"])
def test_a_killed_run_goes_on_exactly(method: str, clips: list[Clip], tmp_path: Path) -> None:
    whole = build(method)
    undisturbed = run(whole, clips, tmp_path / "a")
    assert undisturbed.resumed_from == 0

    killed = build(method)
    calls, forward = [], killed.forward

    def dies(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 10:  # the second batch of step 4: five steps would be ten batches
            raise RuntimeError("killed")
        return forward(*args, **kwargs)

    killed.forward = dies
    with pytest.raises(RuntimeError, match="killed"):
        run(killed, clips, tmp_path / "b")
    torch.manual_seed(99)  # the state of the process that goes on has nothing to do with the one that died
    resumed_objective = build(method)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    resumed = run(resumed_objective, clips, tmp_path / "b")
    assert torch.equal(state, torch.get_rng_state())
    assert resumed.resumed_from == 4
    # in the middle of an epoch: 8 batches were done, and an epoch has another number
    per_epoch = len(PretrainBatches(clips, AudioReader(16000, 0.4, 60, 40), batch_seconds=0.9, seed=5).plan(0))
    assert 8 % per_epoch
    assert resumed.history == undisturbed.history
    assert [row["step"] for row in resumed.history] == [2, 4, 6, 8]
    ours, theirs = resumed_objective.state_dict(), whole.state_dict()
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    rows = [json.loads(line) for line in (tmp_path / "b" / "history.jsonl").read_text().splitlines()]
    assert rows == resumed.history
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["history.jsonl", "last.ckpt", "metrics.csv"]


def test_workers_and_repeats_do_not_change_a_run_and_the_seed_does(clips: list[Clip], tmp_path: Path) -> None:
    first = run(build("data2vec"), clips, tmp_path / "a", max_steps=3, log_every=1).history
    workers = run(build("data2vec"), clips, tmp_path / "b", max_steps=3, log_every=1, num_workers=2).history
    other = run(build("data2vec"), clips, tmp_path / "c", max_steps=3, log_every=1, seed=6).history
    assert first == workers
    assert [row["loss"] for row in first] != [row["loss"] for row in other]
    assert all(row["grad_norm"] > 0 for row in first)
    assert [row["learning_rate"] for row in first] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3])


def test_bfloat16_is_close_to_float32(clips: list[Clip], tmp_path: Path) -> None:
    half = run(build("wav2vec2"), clips, tmp_path / "a", max_steps=3, precision="bf16-mixed", log_every=1).history
    full = run(build("wav2vec2"), clips, tmp_path / "b", max_steps=3, log_every=1).history
    assert [row["loss"] for row in half] == pytest.approx([row["loss"] for row in full], rel=0.05)
    assert half != full


def test_the_teacher_moves_once_a_step(clips: list[Clip], tmp_path: Path) -> None:
    objective = build("data2vec")
    steps, after = [], objective.after_step
    objective.after_step = lambda step: (steps.append(step), after(step))[1]
    run(objective, clips, tmp_path, max_steps=3, accumulate=3)
    assert steps == [0, 1, 2]
    assert objective.terms[0].target.teacher.distance(objective.encoder) > 0


def test_a_run_with_another_seed_or_accumulation_is_not_resumed(clips: list[Clip], tmp_path: Path) -> None:
    run(build("data2vec"), clips, tmp_path, max_steps=1, warmup_steps=0)
    with pytest.raises(ConfigError, match="seed = 5, now it is 6"):
        run(build("data2vec"), clips, tmp_path, max_steps=2, warmup_steps=0, seed=6)
    with pytest.raises(ConfigError, match="accumulate = 2, now it is 1"):
        run(build("data2vec"), clips, tmp_path, max_steps=2, warmup_steps=0, accumulate=1)
    done = run(build("data2vec"), clips, tmp_path, max_steps=1, warmup_steps=0)
    assert done.resumed_from == 1  # nothing left to do


@pytest.mark.parametrize("group_size", [2, 3, 5])
def test_batches_of_groups(clips: list[Clip], group_size: int) -> None:
    """Every clip comes once; whoever has another clip of the same speaker in the corpus has one in the batch."""
    speakers = [f"s{number % 3}" for number in range(len(clips))]
    grouped = [replace(clip, speaker=name) for clip, name in zip(clips, speakers, strict=True)]
    reader = AudioReader(16000, 0.4, 2000, 40)
    batches = PretrainBatches(grouped, reader, batch_size=6, seed=1, group_by="speaker", group_size=group_size)
    orders = [batches.plan(epoch) for epoch in range(3)]
    assert orders[0] != orders[1]
    for plan in orders:
        assert sorted(k for batch in plan for k in batch) == list(range(len(batches.clips)))
        for batch in plan:
            counts = Counter(batches.clips[k].speaker for k in batch)
            assert len(batch) <= 6
            assert min(counts.values()) >= 2
    again = PretrainBatches(grouped, reader, batch_size=6, seed=1, group_by="speaker", group_size=group_size)
    assert again.plan(2) == orders[2]
    with pytest.raises(ConfigError, match="group_size"):
        PretrainBatches(grouped, reader, batch_size=6, group_by="speaker", group_size=1)
    with pytest.raises(ConfigError, match=r"No clip has 'speeker'.*speaker"):
        PretrainBatches(grouped, reader, batch_size=6, group_by="speeker")
    with pytest.raises(ConfigError, match="No clip has 'accent'"):
        PretrainBatches(grouped, reader, batch_size=6, labels=["accent"])


def test_an_epoch_holds_every_clip_once_in_batches_of_bounded_duration(clips: list[Clip]) -> None:
    batches = PretrainBatches(clips, AudioReader(16000, 0.4, 2000, 40), batch_seconds=0.9, seed=1)
    assert list(batches.skipped) == ["c0"]
    first, second = batches.plan(0), batches.plan(1)
    for plan in (first, second):
        assert sorted(k for batch in plan for k in batch) == list(range(12))
    assert first != second
    loader = pretrain_loader(batches, 0, len(first) + len(second))
    starts = set()
    for number, batch in enumerate(loader):
        assert batch.number == number
        assert batch.epoch == (number >= len(first))
        waveforms = batch.examples.inputs.waveforms
        assert int(waveforms.lengths.sum()) <= 0.9 * 16000
        assert int(waveforms.lengths.max()) <= 6400
        for clip, row, start in zip(batch.examples.ids, waveforms.unpad(), batch.examples.starts, strict=True):
            path = next(c.audio for c in clips if c.id == clip)
            whole = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
            assert start % 40 == 0
            assert torch.equal(row, whole[start : start + len(row)])
            starts.add(start)
    assert len(starts) > 1
    onwards = pretrain_loader(batches, 3, 5)
    assert [batch.number for batch in onwards] == [3, 4]


def test_bad_settings_and_corpora_are_refused(clips: list[Clip], tmp_path: Path) -> None:
    for changes in (
        {"max_steps": 0},
        {"learning_rate": 0.0},
        {"decay": "step"},
        {"warmup_steps": 9},
        {"precision": "8-mixed"},
    ):
        with pytest.raises(ConfigError):
            run(build("data2vec"), clips, tmp_path, **changes)
    with pytest.raises(ConfigError, match="cannot hold a clip"):
        run(build("data2vec"), clips, tmp_path, batch_seconds=0.1)
    with pytest.raises(DataError, match="has no audio"):
        run(build("data2vec"), [Clip("v", video="v.mp4")], tmp_path)
    with pytest.raises(DataError, match="None of the 1 clips"):
        run(build("data2vec"), [Clip("s", audio=clips[0].audio, duration=0.001)], tmp_path)


def test_learning_rates() -> None:
    linear = [learning_rate_factor(step, 2, 6, "linear") for step in range(7)]
    assert linear == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0])
    assert learning_rate_factor(4, 2, 6, "cosine") == pytest.approx(0.5)
    assert learning_rate_factor(100, 2, 6, "constant") == 1.0


class Flattened(Callback):
    """Makes an encoder give the same vector for all frames from step 4 on."""

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        if trainer.global_step == 4:
            with torch.no_grad():
                for parameter in module.objective.encoder.upstream.encoder.blocks[-1].parameters():
                    parameter.zero_()


def test_every_run_is_watched(clips: list[Clip], tmp_path: Path) -> None:
    settings = {"accumulate": 1, "log_every": 1, "learning_rate": 1e-5, "max_steps": 12, "callbacks": [Flattened()]}
    objective = build("data2vec")
    objective.health_every = 1
    result = run(objective, clips, tmp_path, **settings)
    written = [json.loads(line) for line in (tmp_path / "warnings.jsonl").read_text().splitlines()]
    assert "representation_collapse" in {row["kind"] for row in written}
    assert len(result.warnings) == len(written)
    assert any("step" in warning and "learning rate" in warning for warning in result.warnings)
    assert run(build("data2vec"), clips, tmp_path / "sound", max_steps=4).warnings == ()
