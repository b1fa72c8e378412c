from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mmssl.downstream.heads import build_head
from mmssl.downstream.tasks import UtteranceClassification, UtteranceRegression
from mmssl.errors import ConfigError, InputError
from mmssl.interfaces.base import build_interface
from mmssl.metrics.classification import uar
from mmssl.random import isolated_rng
from mmssl.training.batches import StepStream, TensorBatches
from mmssl.training.fit import fit, predict
from mmssl.training.module import DivergedError
from mmssl.training.sweep import sweep
from mmssl.types import Layers, StreamSpec, TaskOutput

SPEC = StreamSpec((6, 6), (320, 320))
CENTRES = torch.tensor([[2.0, 0, 0, 0, 0, 0], [0, 2.0, 0, 0, 0, 0], [0, 0, 2.0, 0, 0, 0]])


def items(count: int, seed: int, frames: bool = False, target=int) -> list[tuple[Layers, float]]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for index in range(count):
        steps = int(torch.randint(2, 7, (1,), generator=generator)) if frames else 1
        states = tuple(CENTRES[index % 3] + torch.randn(steps, 6, generator=generator) for _ in range(2))
        made.append((Layers(states, (torch.tensor(steps),) * 2), target(index % 3)))
    return made


TRAIN, DEV = items(60, 0), items(30, 1)


def build(kind=UtteranceClassification, outputs: int = 3, head: str = "linear"):
    interface = build_interface("weighted_sum", SPEC)
    return kind(interface, build_head(head, interface.output_size, outputs))


def seeded(**kwargs):
    with isolated_rng(0):
        return build(**kwargs)


@pytest.mark.parametrize("head", ["linear", "mlp", "attentive_stats"])
def test_training_learns_a_separable_problem_from_frames(head: str) -> None:
    task = seeded(head=head)
    train, dev = items(60, 0, frames=True), items(30, 1, frames=True)
    result = fit(task, train, dev, learning_rate=1e-2, max_steps=40, eval_every=10)
    assert result.best_score > 0.8  # chance is 1/3
    probabilities, targets = predict(task, dev)
    assert probabilities.shape == (30, 3)
    assert uar(targets.numpy(), probabilities.argmax(-1).numpy()) == pytest.approx(result.best_score)
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]


def test_regression_learns() -> None:
    train, dev = items(60, 0, target=float), items(30, 1, target=float)
    result = fit(seeded(kind=UtteranceRegression, outputs=1), train, dev, learning_rate=1e-2, max_steps=60)
    assert result.monitor == "dev_ccc"
    assert result.best_score > 0.7


def test_the_history_is_complete_and_the_last_step_is_evaluated() -> None:
    result = fit(seeded(), TRAIN, DEV, learning_rate=1e-3, max_steps=25, eval_every=10, patience=None)
    assert [row["step"] for row in result.history] == [10, 20, 25]
    assert set(result.history[0]) == {"step", "train_loss", "dev_loss", "dev_uar", "dev_wa", "dev_macro_f1"}
    assert not result.stopped_early


class Scripted(nn.Module):
    """A task whose development scores follow a script, one per evaluation, and whose weight counts the steps."""

    monitor = "dev_score"

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.scores = list(scores)

    def forward(self, layers: Layers, targets: torch.Tensor) -> TaskOutput:
        return TaskOutput(-self.weight.sum(), len(targets), torch.zeros(len(targets), 1))

    def metrics(self, scores: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
        assert not self.training
        assert len(scores) == len(targets) == len(DEV)
        return {"score": self.scores.pop(0)}


def test_early_stopping_keeps_the_weights_of_the_best_development_step() -> None:
    task = Scripted([0.1, 0.6, 0.3, 0.5, 0.9])
    result = fit(task, TRAIN, DEV, learning_rate=1.0, max_steps=50, eval_every=10, patience=2)
    assert [row["dev_score"] for row in result.history] == [0.1, 0.6, 0.3, 0.5]  # the 0.9 is never seen
    assert (result.best_step, result.best_score, result.stopped_early) == (20, 0.6, True)
    # Adam with a constant gradient moves by the learning rate in each step
    assert float(task.weight.detach()) == pytest.approx(20, rel=1e-3)
    assert torch.equal(result.state_dict["weight"], task.weight.detach())
    assert result.best["dev_score"] == 0.6


def test_a_tie_goes_to_the_lower_development_loss() -> None:
    falling = Scripted([0.5, 0.5, 0.5])  # its loss falls with every step
    assert fit(falling, TRAIN, DEV, learning_rate=1.0, max_steps=30, eval_every=10, patience=None).best_step == 30


def test_a_loss_is_better_when_lower() -> None:
    result = fit(Scripted([0.9] * 3), TRAIN, DEV, learning_rate=1.0, max_steps=30, eval_every=10, monitor="dev_loss")
    assert result.best_step == 30


def global_states() -> list[object]:
    return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]


@pytest.mark.parametrize("frames", [False, True])
def test_the_seed_alone_decides_and_nothing_outside_notices(
    frames: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    train, dev = items(60, 0, frames), items(30, 1, frames)
    before = global_states()
    runs = [fit(seeded(), train, dev, learning_rate=1e-3, max_steps=12, eval_every=4, seed=seed) for seed in (0, 0, 1)]
    assert global_states() == before
    assert runs[0].history == runs[1].history
    assert all(torch.equal(runs[0].state_dict[k], v) for k, v in runs[1].state_dict.items())
    assert runs[0].history != runs[2].history
    assert list(tmp_path.iterdir()) == []
    assert "".join(capfd.readouterr()) == ""


def test_dropout_draws_from_the_runs_own_generator() -> None:
    def run(seed: int):
        task = seeded()
        task.head.projector = nn.Sequential(nn.Dropout(0.5), task.head.projector)
        return fit(task, TRAIN, DEV, learning_rate=1e-3, max_steps=6, eval_every=3, seed=seed)

    before = global_states()
    first = run(0)
    assert global_states() == before
    torch.rand(3)  # the caller's generator moves on; the run does not care
    assert run(0).history == first.history


def test_pooled_batches_in_memory_equal_collated_ones() -> None:
    in_memory = fit(seeded(), TRAIN, DEV, learning_rate=1e-3, max_steps=10, eval_every=5)
    stream = StepStream(TRAIN, 32, 5, seed=3)
    for (layers, targets), (fast, fast_targets) in zip(
        stream, StepStream(TensorBatches.of(TRAIN), 32, 5, 3), strict=True
    ):
        assert torch.equal(targets, fast_targets)
        for a, b in zip(layers.hidden_states, fast.hidden_states, strict=True):
            assert torch.equal(a, b)
    shared = fit(
        seeded(), TensorBatches.of(TRAIN), TensorBatches.of(DEV), learning_rate=1e-3, max_steps=10, eval_every=5
    )
    assert shared.history == in_memory.history


def test_each_pass_shows_each_clip_once() -> None:
    numbered = [(layers, index) for index, (layers, _) in enumerate(TRAIN)]
    batches = [targets for _, targets in StepStream(numbered, 32, 4, seed=0)]
    assert [len(b) for b in batches] == [32, 28, 32, 28]
    assert sorted(torch.cat(batches[:2]).tolist()) == sorted(torch.cat(batches[2:]).tolist()) == list(range(60))
    assert not torch.equal(batches[0], batches[2])


def test_clips_of_several_frames_are_not_taken_for_pooled_ones() -> None:
    assert TensorBatches.of(items(3, 0, frames=True)) is None
    assert len(TensorBatches.of(TRAIN)) == 60


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_optimizers_take_their_settings(optimizer: str) -> None:
    plain, decayed = (
        fit(seeded(), TRAIN, DEV, learning_rate=1e-2, max_steps=5, optimizer=optimizer, weight_decay=decay)
        for decay in (0.0, 0.5)
    )
    assert plain.history[-1] != decayed.history[-1]


def test_a_diverged_run_says_what_to_do() -> None:
    broken = [(Layers((torch.full((1, 6), float("nan")),) * 2, (torch.tensor(1),) * 2), 0)] * 4
    with pytest.raises(DivergedError, match=r"became nan at step 0 with learning rate 0\.1.*Lower the learning rate"):
        fit(seeded(), broken, DEV, learning_rate=0.1, max_steps=5)


def test_sweep_chooses_by_the_development_split_and_notes_what_diverged() -> None:
    result = sweep(build, TRAIN, DEV, learning_rates=(1e-5, 1e-2, 1e36), max_steps=20, eval_every=5)
    assert result.learning_rate == 1e-2
    assert [row["learning_rate"] for row in result.table] == [1e-5, 1e-2, 1e36]
    assert [row["diverged"] for row in result.table] == [False, False, True]
    chosen = result.table[1]
    assert chosen["dev_uar"] == result.best.best_score == max(row["dev_uar"] for row in result.table[:2])
    assert (chosen["best_step"], chosen["dev_loss"]) == (result.best.best_step, result.best.best["dev_loss"])
    probabilities, targets = predict(result.task, DEV)
    assert uar(targets.numpy(), probabilities.argmax(-1).numpy()) == pytest.approx(result.best.best_score)


def test_sweep_equals_single_runs_from_the_same_weights() -> None:
    before = global_states()
    result = sweep(build, TRAIN, DEV, learning_rates=(1e-4, 1e-3), max_steps=10, eval_every=5, seed=0)
    assert global_states() == before
    single = fit(seeded(), TRAIN, DEV, learning_rate=1e-4, max_steps=10, eval_every=5, seed=0)
    assert result.table[0]["dev_loss"] == single.best["dev_loss"]


def test_a_sweep_in_which_all_diverge_is_an_error() -> None:
    with pytest.raises(InputError, match=r"every learning rate \(1e\+36, 1e\+37\)"):
        sweep(build, TRAIN, DEV, learning_rates=(1e36, 1e37), max_steps=5, eval_every=1)


def test_progress_in_a_log_is_a_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    fit(
        seeded(),
        TRAIN,
        DEV,
        learning_rate=1e-3,
        max_steps=40,
        eval_every=1,
        patience=None,
        progress=True,
        description="fold 1",
    )
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[-1].startswith("fold 1: step 40/40  train_loss ")
    sweep(build, TRAIN, DEV, learning_rates=(1e-3, 1e-2), max_steps=4, progress=True)
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == ["lr 0.001", "lr 0.01"]


def test_a_logger_folder_holds_the_history(tmp_path: Path) -> None:
    result = fit(seeded(), TRAIN, DEV, learning_rate=1e-3, max_steps=4, eval_every=2, logger_folder=tmp_path)
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert len(lines) == 1 + len(result.history)
    assert "dev_uar" in lines[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"optimizer": "sgd"}, "'adam' or 'adamw'"),
        ({"monitor": "dev_wer"}, "dev_loss, dev_uar, dev_wa, dev_macro_f1; got 'dev_wer'"),
        ({"max_steps": 0}, "max_steps must be above 0"),
        ({"patience": 0}, "patience"),
        ({"grad_clip": -1.0}, "grad_clip"),
    ],
)
def test_wrong_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fit(seeded(), TRAIN, DEV, **{"learning_rate": 1e-3, "max_steps": 4} | settings)


def test_an_empty_split_is_named() -> None:
    with pytest.raises(InputError, match="split without clips"):
        fit(seeded(), TRAIN, [], learning_rate=1e-3, max_steps=4)
    with pytest.raises(ConfigError, match="one or more different learning rates"):
        sweep(build, TRAIN, DEV, learning_rates=())
