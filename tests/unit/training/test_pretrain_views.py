"""Methods that compare whole views, end to end on drawn pictures and tones: a killed run goes on exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from mmssl.media.mini_images import make_mini_images
from mmssl.objectives.methods.byol_a import byol_a
from mmssl.objectives.methods.dino import dino
from mmssl.objectives.methods.simclr import simclr
from mmssl.objectives.objective import Objective
from mmssl.training.pretrain import PretrainResult, pretrain
from mmssl.types import Clip
from mmssl.upstreams.byol_a import ByolA
from mmssl.upstreams.vit_mae import MAE

METHODS = ("simclr", "dino", "byol_a")


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Clip]]:
    """Ten drawn pictures, and tones of unequal length."""
    folder = tmp_path_factory.mktemp("views")
    tones = []
    for number in range(10):
        time = torch.arange(3000 + 400 * number) / 16000
        wave = 0.3 * torch.sin(6.283 * (200 + 90 * number) * time) + 0.01 * torch.sin(4000 * time)
        soundfile.write(folder / f"{number}.wav", wave.numpy(), 16000)
        tones.append(Clip(f"t{number}", audio=str(folder / f"{number}.wav")))
    return {"images": make_mini_images(folder / "images", images_per_class=1), "audio": tones}


def build(method: str) -> Objective:
    torch.manual_seed(0)
    if method == "byol_a":
        return byol_a(ByolA(hidden_size=16, num_mel_bins=16), frames=16, hidden_size=16, size=8, health_every=1)
    network = MAE("tiny", hidden_size=24, num_layers=1, num_heads=2, feed_forward_size=32, patch_size=8, image_size=32)
    if method == "simclr":
        return simclr(network, hidden_size=16, size=8, health_every=1)
    return dino(
        network,
        num_outputs=12,
        hidden_size=16,
        bottleneck_size=8,
        batch_norm=True,
        num_local=1,
        decay=(0.9, 1.0),
        decay_steps=3,
        warmup_steps=2,
        teacher_temperature=0.07,
        health_every=1,
    )


def run(objective: Objective, clips: list[Clip], folder: Path, **changes: Any) -> PretrainResult:
    settings: dict[str, Any] = {"learning_rate": 1e-3, "max_steps": 3, "batch_size": 4, "max_seconds": 0.4}
    return pretrain(objective, clips, folder, **settings, save_every=1, log_every=1, grad_clip=3.0, **changes)


@pytest.mark.parametrize("method", METHODS)
def test_three_steps_and_a_killed_run_goes_on_exactly(
    method: str, corpora: dict[str, list[Clip]], tmp_path: Path
) -> None:
    clips = corpora["audio" if method == "byol_a" else "images"]
    whole = build(method)
    start = {n: p.clone() for n, p in whole.encoder.named_parameters()}
    undisturbed = run(whole, clips, tmp_path / "a")
    assert [row["step"] for row in undisturbed.history] == [1, 2, 3]
    assert all(row["grad_norm"] > 0 for row in undisturbed.history)
    moved = [n for n, p in whole.encoder.named_parameters() if p.requires_grad and not torch.equal(start[n], p)]
    assert len(moved) == sum(p.requires_grad for p in whole.encoder.parameters())

    killed, calls = build(method), []
    forward = killed.forward

    def dies(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("killed")
        return forward(*args, **kwargs)

    killed.forward = dies  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="killed"):
        run(killed, clips, tmp_path / "b")
    again = build(method)
    resumed = run(again, clips, tmp_path / "b", num_workers=0)
    assert resumed.resumed_from == 2
    assert resumed.history == undisturbed.history
    ours, theirs = again.state_dict(), whole.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
