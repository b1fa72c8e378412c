"""Killed in the middle of an epoch, with every kind of reader and with a loss scale: what goes on is the same run."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image

from mmssl.objectives.losses.info_nce import InfoNCE
from mmssl.objectives.methods.correspondence import correspondence
from mmssl.objectives.methods.dino import dino
from mmssl.objectives.methods.mae import mae
from mmssl.objectives.objective import Objective
from mmssl.training.pretrain import PretrainResult, pretrain
from mmssl.training.pretrain_module import PretrainModule
from mmssl.training.readers import AudioVideoReader, ImageReader
from mmssl.types import Clip
from mmssl.upstreams.small_towers import SmallTowers
from mmssl.upstreams.vit_mae import MAE

FPS, RATE = 25, 8000


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    folder = tmp_path_factory.mktemp("media")
    draw = np.random.default_rng(0)
    found = []
    for number in range(7):
        picture, video = folder / f"{number}.png", folder / f"{number}.mkv"
        Image.fromarray(draw.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(picture)
        frames = 14 + number
        sound = draw.uniform(-0.5, 0.5, frames * RATE // FPS).astype(np.float32)
        write_video(video, draw.integers(0, 255, (frames, 16, 16, 3), dtype=np.uint8), sound)
        found.append(Clip(f"c{number}", audio=str(video), video=str(video), image=str(picture)))
    return found


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


def pictures() -> Objective:
    torch.manual_seed(0)
    model = MAE("tiny", hidden_size=16, num_layers=2, num_heads=2, feed_forward_size=32, patch_size=4, image_size=16)
    return dino(model, **DINO)


DINO: dict[str, Any] = {"num_outputs": 8, "hidden_size": 16, "bottleneck_size": 8, "num_local": 1, "local_size": 8}
DINO |= {"frozen_epochs": 0, "decay": (0.9, 0.99), "decay_steps": 20, "health_every": 0}


def autoencoder() -> Objective:
    torch.manual_seed(0)
    model = MAE("tiny", hidden_size=16, num_layers=2, num_heads=2, feed_forward_size=32, patch_size=4, image_size=16)
    return mae(model, decoder_size=16, decoder_layers=1, decoder_heads=2, health_every=0)


def towers() -> Objective:
    torch.manual_seed(0)
    return correspondence(SmallTowers(8, image_size=16), audio_seconds=0.2, num_frames=1, size=8, health_every=2)


KINDS: dict[str, tuple[Callable[[], Objective], Callable[[], Any], dict[str, Any]]] = {
    "image": (pictures, lambda: ImageReader(16), {"layer_decay": 0.8, "decay": "cosine"}),
    "image in half precision": (autoencoder, lambda: ImageReader(16), {"precision": "16-mixed"}),
    "audio-visual": (towers, lambda: AudioVideoReader(RATE, FPS, 0.4, (16, 16)), {"decay": "tri_stage"}),
}


def run(kind: str, objective: Objective, clips: list[Clip], folder: Path, **changes: Any) -> PretrainResult:
    settings = {"learning_rate": 1e-3, "max_steps": 5, "warmup_steps": 2, "batch_size": 4, "accumulate": 3, "seed": 5}
    settings |= {"grad_clip": 1.0, "save_every": 1, "log_every": 2, **KINDS[kind][2], **changes}
    return pretrain(objective, clips, folder, reader=KINDS[kind][1](), **settings)


class Overflow(Callback):
    """Infinite gradients at one step, and what the steps before and after it left behind."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.states: list[dict[str, torch.Tensor]] = []

    def on_after_backward(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.global_step == self.step:
            next(p for p in module.parameters() if p.grad is not None).grad.fill_(float("inf"))

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        if trainer.global_step == len(self.states) + 1:
            self.states.append({name: value.clone() for name, value in module.objective.state_dict().items()})


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_goes_on_exactly(kind: str, clips: list[Clip], tmp_path: Path) -> None:
    def watch() -> list[Callback]:
        return [Overflow(1)] if "half" in kind else []

    whole = KINDS[kind][0]()
    undisturbed = run(kind, whole, clips, tmp_path / "a", callbacks=watch())
    killed = KINDS[kind][0]()
    calls, forward = [], killed.forward

    def dies(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 11:  # the second batch of step 3, of epochs of two batches
            raise RuntimeError("killed")
        return forward(*args, **kwargs)

    killed.forward = dies
    with pytest.raises(RuntimeError, match="killed"):
        run(kind, killed, clips, tmp_path / "b", callbacks=watch())
    again = KINDS[kind][0]()
    resumed = run(kind, again, clips, tmp_path / "b", callbacks=watch())
    assert resumed.resumed_from == 3
    assert resumed.history == undisturbed.history
    theirs = whole.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in again.state_dict().items())
    a, b = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in "ab")
    assert a["lr_schedulers"] == b["lr_schedulers"]
    assert a.get("MixedPrecision") == b.get("MixedPrecision")
    assert ("MixedPrecision" in a) == ("half" in kind)
    if "half" in kind:
        assert [row["skipped_steps"] for row in resumed.history] == [1, 1, 1]


def test_a_step_that_the_loss_scale_leaves_out_moves_nothing(clips: list[Clip], tmp_path: Path) -> None:
    """DINO's first gradients overflow by themselves until the scale has come down; step 15 is made to."""
    objective, watch = pictures(), Overflow(15)
    settings = {"accumulate": 1, "log_every": 1, "warmup_steps": 0, "max_steps": 18, "save_every": 100}
    result = run("image", objective, clips, tmp_path, callbacks=[watch], precision="16-mixed", **settings)
    states, rows = watch.states, result.history  # after each step
    changed = [{name for name in b if not torch.equal(a[name], b[name])} for a, b in pairwise(states)]
    skipped = [b["skipped_steps"] - a["skipped_steps"] for a, b in pairwise(rows)]
    scales = [row["loss_scale"] for row in rows]
    assert skipped[0] == 1
    assert skipped[12:] == [0, 0, 1, 0, 0]
    for step, moved in enumerate(changed, 1):
        if skipped[step - 1]:
            assert moved == set()
            assert "grad_norm" not in rows[step]
            assert scales[step + 1] == scales[step] / 2
        else:
            assert any("teacher" in name for name in moved)
            assert any("center" in name for name in moved)
            assert any(name.startswith("encoder.") for name in moved)
            assert rows[step]["grad_norm"] > 0


def test_the_queue_forgets_a_step_that_was_left_out() -> None:
    loss = InfoNCE(symmetric=False, queue_size=8)
    rows = torch.eye(4)
    loss(rows, rows)
    loss.after_step()
    before = loss.queue.clone()
    loss(rows.flip(0), rows.flip(0))
    loss.after_skipped_step()
    loss.after_step()
    assert torch.equal(loss.queue, before)


def test_notes_of_callbacks_are_in_the_history_and_in_the_checkpoint(clips: list[Clip], tmp_path: Path) -> None:
    class Notes(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: PretrainModule, *args: Any) -> None:
            if trainer.global_step in (1, 2, 3):
                module.note("step_seen", trainer.global_step)

    first = run("image", pictures(), clips, tmp_path, callbacks=[Notes()], accumulate=1, max_steps=3, log_every=2)
    # step 1 is between rows, and step 2 has a row of its own
    assert [row["step_seen"] for row in first.history] == [2, 3]
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["pretrain"]
    assert saved["history"] == first.history
    assert saved["notes"] == {}
