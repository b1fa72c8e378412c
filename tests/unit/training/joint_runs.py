"""Runs on pictures that two processes share, or that one does alone: `torchrun joint_runs.py METHOD FOLDER STRATEGY N`.

The first process writes the gradients of each step, the weights at the end and the history to FOLDER/out.pt.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor, nn

from mmssl.objectives.losses.info_nce import InfoNCE
from mmssl.objectives.methods.mae import mae
from mmssl.objectives.methods.simclr import simclr
from mmssl.objectives.objective import Objective
from mmssl.training.pretrain import PretrainResult, pretrain
from mmssl.types import Clip
from mmssl.upstreams.vit_mae import MAE


class Gradients(Callback):
    """Keeps the gradients of each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        named = module.objective.named_parameters()
        self.steps.append({name: full(p.grad) for name, p in named if p.grad is not None})


def build(method: str) -> Objective:
    torch.manual_seed(0)
    model = MAE(image_size=16, patch_size=4, hidden_size=16, num_layers=2, num_heads=2, feed_forward_size=32)
    if method == "mae":
        return mae(model, decoder_size=16, decoder_layers=1, decoder_heads=2, health_every=2)
    objective = simclr(model, hidden_size=16, size=8, gather=True, health_every=2)
    # batch norm would see the share of its process, on the CPU
    objective.terms[0].head = nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 8))
    objective.terms[0].target._head = (objective.terms[0].head,)
    if method == "info_nce":
        objective.terms[0].loss = InfoNCE(0.2, gather=True)
    return objective


def corpus(folder: Path, count: int) -> list[Clip]:
    """Pictures of noise."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    clips = []
    for number in range(count):
        path = folder / f"{number}.png"
        pixels = draw.integers(0, 256, (16, 16, 3), np.uint8)
        if not path.exists():
            Image.fromarray(pixels).save(path)
        clips.append(Clip(f"c{number}", image=str(path)))
    return clips


def train(
    method: str, folder: Path, clips: list[Clip], **changes: Any
) -> tuple[PretrainResult, list[dict[str, Tensor]], dict[str, Tensor]]:
    """A run of three steps, its gradients before clipping, and its last weights."""
    objective, gradients = build(method), Gradients()
    settings = {"learning_rate": 1e-3, "decay": "constant", "max_steps": 3, "eps": 1e-3, "grad_clip": 0.5}
    settings |= {"log_every": 1, "accumulate": 2, "batch_size": 6, "seed": 5, "callbacks": [gradients]}
    settings |= {"on_error": "skip"}
    result = pretrain(objective, clips, folder, **{**settings, **changes})
    return result, gradients.steps, {name: full(value) for name, value in objective.state_dict().items()}


def full(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).clone()


if __name__ == "__main__":
    method, folder, strategy, count = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    # the pictures are there already
    found, steps, weights = train(method, folder / "run", corpus(folder / "data", count), devices=2, strategy=strategy)
    if os.environ["RANK"] == "0":
        torch.save({"history": found.history, "gradients": steps, "weights": weights}, folder / "out.pt")
