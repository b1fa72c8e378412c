from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from mmssl.augment.noise import AdditiveNoise
from mmssl.augment.spectrogram import SpecAugment
from mmssl.data.trials import read_trials
from mmssl.downstream.margin import MarginSoftmax, SupervisedContrastive
from mmssl.downstream.scoring import cosine_scores
from mmssl.downstream.speaker_model import SpeakerModel
from mmssl.errors import ConfigError, DataError
from mmssl.media.audio import load_audio
from mmssl.metrics.verification import eer
from mmssl.random import isolated_rng
from mmssl.training.speaker import (
    SpeakerStage,
    SpeakerTraining,
    describe,
    development_trials,
    large_margin_stage,
    num_classes,
    train_speaker,
)
from mmssl.training.speaker_data import hold_out_speakers, speaker_names
from mmssl.training.speaker_files import build_speaker_model
from mmssl.training.speaker_module import SpeakerModule
from mmssl.training.speaker_run import StageSaver
from mmssl.types import Clip, Padded

FIRST = SpeakerStage(6, crop_seconds=(0.2, 0.3))
LARGE = large_margin_stage(3, (0.4, 0.4))


def tones(folder: Path, counts: Mapping[str, int], seconds: float = 0.5) -> list[Clip]:
    """Speakers as tones: each has a pitch of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    clips = []
    for place, (name, count) in enumerate(counts.items()):
        for number in range(count):
            time = torch.arange(round(seconds * 16000)) / 16000
            pitch = 120 * 1.3**place * (1 + 0.01 * number)
            wave = torch.stack([torch.sin(2 * math.pi * pitch * k * time) / k for k in range(1, 6)]).sum(0)
            wave = 0.1 * wave + 0.01 * torch.randn(len(time), generator=generator)
            path = folder / f"{name}-{number}.wav"
            soundfile.write(path, wave.numpy(), 16000, subtype="FLOAT")
            clips.append(Clip(f"{name}-{number}", audio=str(path), speaker=name, duration=seconds))
    return clips


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Clip], list[Clip]]:
    return hold_out_speakers(tones(tmp_path_factory.mktemp("tones"), {f"s{k}": 4 for k in range(6)}), 2)


def system(train: list[Clip], speeds: tuple[float, ...] = (1.0, 0.9, 1.1), **kwargs: Any) -> tuple[SpeakerModel, Any]:
    model = build_speaker_model(
        "fbank",
        "ecapa_tdnn",
        upstream_kwargs={"num_mel_bins": 20},
        encoder_kwargs={"channels": 16, "joined_size": 24, "embedding_size": 8},
        **kwargs,
    )
    with isolated_rng(0):
        return model, MarginSoftmax(8, num_classes(train, speeds), top_k=2)


def run(parts: tuple[list[Clip], list[Clip]], folder: Path, **kwargs: Any) -> tuple[SpeakerModel, Any, SpeakerTraining]:
    train, dev = parts
    speeds = kwargs.get("speeds", (1.0, 0.9, 1.1))
    model, loss = kwargs.pop("system", None) or system(train, speeds)
    settings: dict[str, Any] = {
        "stages": [FIRST, LARGE],
        "batch_size": 4,
        "log_every": 1,
        "eval_every": 2,
        "save_every": 1,
    }
    return model, loss, train_speaker(model, loss, train, dev, folder, **{**settings, **kwargs})


def test_stages_follow_their_plan_and_selection_its_trials(
    parts: tuple[list[Clip], list[Clip]], tmp_path: Path
) -> None:
    before = torch.get_rng_state()
    model, loss, result = run(
        parts, tmp_path, spec_augment=SpecAugment(0, 4, 1, 5, 1.0, 1), augmentation=AdditiveNoise()
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert [(row["stage"], row["step"]) for row in result.history] == [(0, k) for k in range(1, 7)] + [
        (1, k) for k in range(1, 4)
    ]
    first, large = result.history[:6], result.history[6:]
    assert [row["margin"] for row in first] == [FIRST.margin_of(step) for step in range(6)]
    assert (first[0]["margin"], first[-1]["margin"]) == (0, 0.2)
    assert {row["margin"] for row in large} == {0.5}
    torch.testing.assert_close(first[0]["learning_rate"], 1e-3)
    torch.testing.assert_close(first[-1]["learning_rate"], 1e-5)
    torch.testing.assert_close([row["learning_rate"] for row in large], [1e-4, 5e-5, 2.5e-5])
    assert loss.top_k == 2  # back again
    evaluated = [row for row in result.history if "dev_eer" in row]
    assert [row["step"] for row in evaluated] == [2, 4, 6, 2, 3]
    assert result.best["dev_eer"] == min(row["dev_eer"] for row in evaluated)
    assert not model.training
    # the weights that are left are those of the best row, and trials are those on disk
    trials = read_trials(tmp_path / "dev_trials.txt")
    assert trials == result.trials
    dev_names = {clip.id for clip in parts[1]}
    assert {*trials.enrol, *trials.test} <= dev_names
    ids = sorted(dev_names)
    waves = {clip.id: load_audio(str(clip.audio))[0] for clip in parts[1]}
    rows = torch.cat([model.embed(Padded(waves[i][None], torch.tensor([len(waves[i])]))) for i in ids])
    assert eer(cosine_scores(rows.numpy(), *trials.rows(ids)), trials.is_target) == result.best["dev_eer"]


def weights(model: SpeakerModel, loss: torch.nn.Module) -> list[torch.Tensor]:
    return [*model.state_dict().values(), *loss.state_dict().values()]


@pytest.fixture(scope="module")
def straight(
    parts: tuple[list[Clip], list[Clip]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[torch.Tensor], SpeakerTraining]:
    """Weights and result of a run that nobody interrupts."""
    model, loss, result = run(parts, tmp_path_factory.mktemp("straight"))
    return weights(model, loss), result


@pytest.mark.parametrize(
    ("stage", "step", "save_every", "left"), [(0, 1, 1, 1), (0, 3, 100, 2), (1, 2, 100, 8), (1, 1, 100, 6)]
)
def test_a_run_that_is_killed_goes_on_as_it_would_have(
    parts: tuple[list[Clip], list[Clip]],
    straight: tuple[list[torch.Tensor], SpeakerTraining],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: int,
    step: int,
    save_every: int,
    left: int,
) -> None:
    step_of = SpeakerModule.training_step

    def step_or_die(self: SpeakerModule, batch: Any, index: int) -> Any:
        if self.stage == (FIRST, LARGE)[stage] and batch.number == step:
            raise KeyboardInterrupt
        return step_of(self, batch, index)

    monkeypatch.setattr(SpeakerModule, "training_step", step_or_die)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(parts, tmp_path, save_every=save_every)
    monkeypatch.undo()
    model, loss, result = run(parts, tmp_path, save_every=save_every)
    assert result.resumed_from == left
    assert (result.history, result.best) == (straight[1].history, straight[1].best)
    for ours, theirs in zip(weights(model, loss), straight[0], strict=True):
        assert torch.equal(ours, theirs)


def test_a_kill_between_best_weights_and_checkpoint_loses_nothing(
    parts: tuple[list[Clip], list[Clip]],
    straight: tuple[list[torch.Tensor], SpeakerTraining],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save = StageSaver._save

    def save_or_die(self: StageSaver, trainer: Any, module: SpeakerModule) -> None:
        if module.batches_done == 4:
            raise KeyboardInterrupt
        save(self, trainer, module)

    monkeypatch.setattr(StageSaver, "_save", save_or_die)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(parts, tmp_path, save_every=100)
    monkeypatch.undo()
    model, loss, result = run(parts, tmp_path, save_every=100)
    assert result.resumed_from == 2
    assert result.history == straight[1].history
    # and a run that has ended is read, not trained again
    model, loss, result = run(parts, tmp_path, save_every=100)
    assert result.resumed_from == FIRST.steps + LARGE.steps
    assert all(torch.equal(a, b) for a, b in zip(weights(model, loss), straight[0], strict=True))


def test_a_run_follows_its_seed_and_not_the_workers(parts: tuple[list[Clip], list[Clip]], tmp_path: Path) -> None:
    histories = [
        run(parts, tmp_path / str(k), stages=[replace(FIRST, steps=2)], **kwargs)[2].history
        for k, kwargs in enumerate(({}, {"num_workers": 1}, {"seed": 1}))
    ]
    assert histories[0] == histories[1]
    assert histories[0] != histories[2]


def test_files_name_what_was_kept(parts: tuple[list[Clip], list[Clip]], tmp_path: Path) -> None:
    _, _, result = run(parts, tmp_path, stages=[FIRST])
    assert sorted(path.name for path in (tmp_path / "stage0").iterdir()) == [
        f"best-{int(result.best['step']):08d}.safetensors",
        "history.jsonl",
        "last.ckpt",
    ]
    lines = (tmp_path / "stage0" / "history.jsonl").read_text().splitlines()
    assert [{"stage": 0.0, **json.loads(line)} for line in lines] == result.history


def test_another_run_in_the_same_folder_is_refused(parts: tuple[list[Clip], list[Clip]], tmp_path: Path) -> None:
    short = replace(FIRST, steps=2)
    run(parts, tmp_path, stages=[short])
    for other in ({"seed": 1}, {"stages": [replace(short, margin=0.3)]}, {"augmentation": AdditiveNoise()}):
        with pytest.raises(ConfigError, match="other clips or settings"):
            run(parts, tmp_path, **{"stages": [short], **other})
    with pytest.raises(ConfigError, match="other clips or settings"):
        run((parts[0][1:], parts[1]), tmp_path, stages=[short])


def test_a_frozen_upstream_stays_and_a_joint_one_has_its_own_rate(
    parts: tuple[list[Clip], list[Clip]], tmp_path: Path
) -> None:
    sizes = {"hidden_size": 16, "num_layers": 1}
    for joint in (False, True):
        model = build_speaker_model(
            "apc",
            "xvector",
            upstream_kwargs=sizes,
            encoder_kwargs={"channels": 8, "wide_size": 8, "embedding_size": 8},
            train_upstream=joint,
        )
        before = {k: v.clone() for k, v in model.upstream.state_dict().items()}
        rate = 1e-5 if joint else None
        stage = SpeakerStage(2, crop_seconds=(0.2, 0.2), upstream_learning_rate=rate, perturb_speed=False)
        with isolated_rng(0):
            loss = MarginSoftmax(8, 4)
        run(parts, tmp_path / str(joint), system=(model, loss), speeds=(1.0,), stages=[stage])
        # Adam's first steps are as long as the rate
        moved = max(float((v - before[k]).abs().max()) for k, v in model.upstream.state_dict().items())
        assert (0 < moved < 3e-5) if joint else moved == 0
    with pytest.raises(ConfigError, match="an upstream that is trained needs a learning rate of its own"):
        run(
            parts,
            tmp_path / "x",
            system=(model, loss),
            speeds=(1.0,),
            stages=[replace(stage, upstream_learning_rate=None)],
        )


def test_a_contrastive_loss_and_an_encoder_of_waveforms(parts: tuple[list[Clip], list[Clip]], tmp_path: Path) -> None:
    model = build_speaker_model(None, "rawnet3", encoder_kwargs={"channels": 8, "joined_size": 8, "embedding_size": 4})
    short = [replace(FIRST, steps=2)]
    _, _, result = run(parts, tmp_path, system=(model, SupervisedContrastive()), clips_per_speaker=2, stages=short)
    assert "accuracy" not in result.history[0]
    assert math.isfinite(result.history[0]["loss"])
    with pytest.raises(ConfigError, match="clips_per_speaker to 2 or more"):
        run(parts, tmp_path, system=(model, SupervisedContrastive()), stages=short)
    with pytest.raises(ConfigError, match="this encoder takes waveforms"):
        run(
            parts,
            tmp_path / "m",
            system=(model, SupervisedContrastive()),
            clips_per_speaker=2,
            stages=short,
            spec_augment=SpecAugment(),
        )


def test_half_precision_trains_and_evaluates_in_full(parts: tuple[list[Clip], list[Clip]], tmp_path: Path) -> None:
    model, _, result = run(
        parts, tmp_path, stages=[replace(FIRST, steps=1)], precision="bf16-mixed", spec_augment=SpecAugment(0, 4, 1, 5)
    )
    assert math.isfinite(result.history[0]["loss"])
    assert {tensor.dtype for tensor in model.trained_state().values()} == {torch.float32, torch.int64}


def test_test_trials_cannot_be_given() -> None:
    names = inspect.signature(train_speaker).parameters
    assert not [name for name in names if "trial" in name and name not in ("trials_per_speaker", "trials_within")]
    assert not [name for name in names if "test" in name]


def test_development_trials_stay_within_a_corpus() -> None:
    clips = [
        Clip(f"{speaker}-{k}", speaker=speaker, labels={"corpus": speaker[0]})
        for speaker in ("a1", "a2", "b1", "b2", "c1")
        for k in range(3)
    ]
    across, within = development_trials(clips, 3), development_trials(clips, 3, "corpus")
    assert any(e[0] != t[0] for e, t in zip(across.enrol, across.test, strict=True))
    assert all(e[0] == t[0] for e, t in zip(within.enrol, within.test, strict=True))
    # of one speaker alone no trials can be made
    assert {e[0] for e in within.enrol} == {"a", "b"}
    assert (len(within), sum(within.is_target)) == (24, 12)
    with pytest.raises(DataError, match="'a1-0' has no label 'room'"):
        development_trials(clips, 3, "room")
    with pytest.raises(DataError, match="two speakers"):
        development_trials(clips[-3:], 3, "corpus")


def test_mistakes_are_named_before_anything_is_trained(parts: tuple[list[Clip], list[Clip]], tmp_path: Path) -> None:
    train, dev = parts
    with pytest.raises(DataError, match=r"both in training and development"):
        run((train, [*dev, train[0]]), tmp_path)
    with pytest.raises(ConfigError, match=r"has 4 classes.*4 speakers at 3 speeds are 12"):
        run(parts, tmp_path, system=system(train, (1.0,)))
    with pytest.raises(DataError, match=r"too short.*lasts 0.100 s"):
        run(([*train, *tones(tmp_path / "short", {"z": 2}, 0.1)], dev), tmp_path)
    with pytest.raises(DataError, match="fewer than 2 usable clips: z"):
        run(([*train, *tones(tmp_path / "one", {"z": 1})], dev), tmp_path)
    with pytest.raises(DataError, match="two clips of one of them"):
        run((train, [dev[0], dev[-1]]), tmp_path)
    with pytest.raises(DataError, match="Ids of development clips must differ"):
        run((train, [*dev, dev[0]]), tmp_path)
    with pytest.raises(DataError, match="1 clips have no speaker"):
        run((train, [*dev, replace(dev[0], id="n", speaker=None)]), tmp_path)
    with pytest.raises(ConfigError, match="precision one of"):
        run(parts, tmp_path, precision="16")
    with pytest.raises(ConfigError, match="must be at least 1"):
        run(parts, tmp_path, stages=[])
    assert not (tmp_path / "stage0").exists()
    assert len(speaker_names(train)) == 4


def test_short_clips_are_left_out_where_asked(parts: tuple[list[Clip], list[Clip]], tmp_path: Path) -> None:
    train, dev = parts
    clips = [*train, *tones(tmp_path / "short", {"z": 2}, 0.1)]
    result = run((clips, dev), tmp_path, system=system(train), on_error="skip", stages=[replace(FIRST, steps=1)])[2]
    assert sorted(result.skipped) == ["z-0", "z-1"]
    assert result.num_speakers == 4


@pytest.mark.parametrize(("decay", "middle"), [("exp", 0.1), ("linear", 0.505), ("cosine", 0.505), ("constant", 1.0)])
def test_learning_rates_fall_from_the_highest_to_the_last(decay: str, middle: float) -> None:
    stage = SpeakerStage(103, 1e-2, 1e-4, warmup_steps=2, decay=decay)
    assert [stage.rate_factor(k) for k in (0, 1, 2)] == [0.5, 1.0, 1.0]
    assert stage.rate_factor(52) == pytest.approx(middle)
    assert stage.rate_factor(102) == pytest.approx(1.0 if decay == "constant" else 0.01)


def test_a_stage_out_of_range_is_named() -> None:
    wrong: list[dict[str, Any]] = [
        {"steps": 0},
        {"warmup_steps": 5},
        {"final_learning_rate": 1.0},
        {"decay": "step"},
        {"crop_seconds": (3.0, 2.0)},
        {"margin": 2.0},
        {"margin_ramp": (0.5, 0.2)},
        {"upstream_learning_rate": 0.0},
    ]
    for fields in wrong:
        with pytest.raises(ConfigError, match=next(iter(fields))):
            SpeakerStage(**{"steps": 5, **fields})


def test_equal_augmentations_are_described_alike() -> None:
    noise = torch.randn(5, generator=torch.Generator().manual_seed(0))
    assert describe(AdditiveNoise(noises=[noise])) == describe(AdditiveNoise(noises=[noise.clone()]))
    assert describe(AdditiveNoise(noises=[noise])) != describe(AdditiveNoise(noises=[noise + 1]))
    assert describe(AdditiveNoise((0, 5))) != describe(AdditiveNoise((0, 6)))
    assert describe(None) == "None"
