"""Several processes: together they do what one does with the joint batch, and one can go on where two stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from mmssl.errors import ConfigError, DataError
from mmssl.objectives.methods.data2vec import data2vec
from mmssl.objectives.objective import Objective
from mmssl.training.pretrain import PretrainResult, pretrain
from mmssl.training.pretrain_batches import PretrainBatches
from mmssl.training.pretrain_parallel import make_strategy, make_trainer
from mmssl.training.readers import AudioReader
from mmssl.types import Clip
from mmssl.upstreams.speech_transformer import SpeechTransformer


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    folder = tmp_path_factory.mktemp("wav")
    generator = torch.Generator().manual_seed(0)
    found = []
    for number in range(9):
        path = folder / f"{number}.wav"
        soundfile.write(path, (torch.randn(1600 + 517 * number, generator=generator) * 0.1).numpy(), 16000)
        found.append(Clip(f"c{number}", audio=str(path)))
    return found


def full(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).clone()


class Watch(Callback):
    """Keeps the gradients of each step, and the clips of each batch."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, Tensor]] = []
        self.ids: list[tuple[str, ...]] = []

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, index: int) -> None:
        self.ids.append(batch.examples.ids)

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        named = module.objective.named_parameters()
        self.gradients.append({name: full(p.grad) for name, p in named if p.grad is not None})


def build() -> Objective:
    torch.manual_seed(0)
    model = SpeechTransformer("wav2vec2_tiny", dropout=0.0, layer_drop=0.0, num_layers=2)
    for block in model.encoder.blocks:
        block.attention.dropout = 0.0  # each process draws its own dropout
    return data2vec(model, top_k=2, mask_span=3, decay=(0.9, 0.99), decay_steps=20, health_every=0)


def run(clips: list[Clip], folder: Path, max_steps: int, **changes: Any) -> tuple[PretrainResult, Watch, Objective]:
    objective, watch = build(), Watch()
    settings = {"learning_rate": 1e-3, "decay": "constant", "eps": 1e-3, "grad_clip": 0.5, "accumulate": 2}
    settings |= {"batch_seconds": 1.3, "max_seconds": 0.4, "log_every": 1, "seed": 5, "callbacks": [watch]}
    return pretrain(objective, clips, folder, max_steps=max_steps, **{**settings, **changes}), watch, objective


def worker(rank: int, strategy: str, clips: list[Clip], folder: Path) -> None:
    result, watch, objective = run(clips, folder / "two", 3, devices=2, strategy=strategy)
    weights = {name: full(value) for name, value in objective.state_dict().items()}
    found = {"history": result.history, "gradients": watch.gradients, "ids": watch.ids, "weights": weights}
    torch.save(found, folder / f"{rank}.pt")


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_processes_do_what_one_does_with_the_joint_batch(
    strategy: str, clips: list[Clip], tmp_path: Path, in_two_processes: Callable[..., None]
) -> None:
    in_two_processes(worker, strategy, clips, tmp_path)
    alone, watch, objective = run(clips, tmp_path / "one", 3)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    shares = [sorted(a + b) for a, b in zip(first["ids"], second["ids"], strict=True)]
    assert shares == [sorted(ids) for ids in watch.ids]
    # shares of unequal size, so that a mean of means would not do
    assert any(len(a) != len(b) for a, b in zip(first["ids"], second["ids"], strict=True))
    assert len(watch.gradients) == 3
    for ours, theirs in zip(first["gradients"], watch.gradients, strict=True):
        assert set(ours) == set(theirs)
        for name, gradient in theirs.items():
            torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-6)
    for name, value in objective.state_dict().items():
        torch.testing.assert_close(first["weights"][name], value, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(second["weights"][name], first["weights"][name], rtol=0, atol=0)
    assert first["history"] == second["history"]
    for ours, theirs in zip(first["history"], alone.history, strict=True):
        # logs that are no means over rows, such as a deviation, are means over processes
        for name in ("step", "loss", "regression/loss", "grad_norm", "learning_rate", "clips"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6)

    # one process goes on where two stopped
    resumed, watch_more, more = run(clips, tmp_path / "two", 4)
    _, watch_whole, whole = run(clips, tmp_path / "whole", 4)
    assert resumed.resumed_from == 3
    assert watch_more.ids == watch_whole.ids[6:]
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(more.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_shares_of_a_batch(clips: list[Clip]) -> None:
    reader = AudioReader(16000, 0.4, 400, 40)
    whole = PretrainBatches(clips, reader, batch_size=5, batch_seconds=4, seed=1)
    parts = [
        PretrainBatches(clips, reader, batch_size=5, batch_seconds=4, seed=1, rank=r, world_size=2) for r in range(2)
    ]
    for number in range(2 * len(whole.plan(0))):
        ids = whole[number].examples.ids
        shares = [part[number].examples for part in parts]
        assert shares[0].ids == ids[::2]
        assert shares[1].ids == ids[1::2]
        seeds = dict(zip(ids, whole[number].examples.seeds, strict=True))
        assert all(seeds[i] == s for share in shares for i, s in zip(share.ids, share.seeds, strict=True))
    # fewer clips than processes: taking one twice would give it more weight than in one process
    few = PretrainBatches(clips[:1], reader, batch_size=5, batch_seconds=4, world_size=3)
    with pytest.raises(DataError, match="1 clips for 3 processes"):
        few[0]


def test_settings_of_several_processes() -> None:
    settings = {"max_steps": 1, "accumulate": 1, "precision": "32-true", "device": "cpu", "devices": 1}
    settings |= {"num_nodes": 1, "strategy": "auto", "callbacks": []}
    for changes, message in (
        ({"strategy": "ddp2"}, "auto, ddp, fsdp"),
        ({"devices": 0}, "at least 1"),
        ({"device": "cuda:1", "devices": 2}, "names one device"),
        ({"strategy": "fsdp", "devices": 2, "precision": "16-mixed"}, "FSDP"),
        ({"precision": "64"}, "32-true, bf16-mixed, 16-mixed"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_trainer(**{**settings, **changes})
    assert make_strategy("auto", "cpu", 1) == "auto"
    assert type(make_strategy("auto", "cpu", 2)).__name__ == "DDPStrategy"
