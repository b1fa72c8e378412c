"""Experiments with three tones, for the tests of what is made of trained models."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import soundfile
import torch
import yaml

from mmssl.stages.exporting import build_task, save_model
from mmssl.upstreams.base import load_upstream

RATE = 16000
CLASSES = ("low", "mid", "high")
FREQUENCIES = (200.0, 900.0, 3000.0)


def tone(frequency: float, seconds: float = 0.4, seed: int = 0, rate: int = RATE) -> torch.Tensor:
    time = torch.arange(int(seconds * rate)) / rate
    noise = 0.01 * torch.randn(len(time), generator=torch.Generator().manual_seed(seed))
    return 0.3 * torch.sin(2 * math.pi * frequency * time) + noise


def describe(**changes: Any) -> dict[str, Any]:
    spec = load_upstream("fbank").spec
    return {
        "upstream": {"_target_": "fbank"},
        "upstream_seed": 0,
        "stream": "audio",
        "sample_rate": RATE,
        "interface": {"name": "weighted_sum", "kwargs": {}},
        "hidden_sizes": list(spec.streams["audio"].hidden_sizes),
        "hop_lengths": list(spec.streams["audio"].hop_lengths),
        "head": {"name": "linear", "kwargs": {}},
        "task": "classification",
        "classes": list(CLASSES),
        "label": "pitch",
        **changes,
    }


def train(description: dict[str, Any], seed: int) -> torch.nn.Module:
    """A few steps on the three tones, each fold with its own start and noise."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        task = build_task(description)
    upstream = load_upstream("fbank")
    waveforms = torch.stack([tone(f * d, seed=seed + k) for k, d in enumerate((0.9, 1.0, 1.1)) for f in FREQUENCIES])
    layers = upstream(waveforms)["audio"]
    classes = torch.arange(3).repeat(3)
    targets = classes if description["task"] == "classification" else classes.float()[:, None]
    optimizer = torch.optim.Adam(task.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        task(layers, targets).loss.backward()
        optimizer.step()
    return task


def make_experiment(
    folder: Path, systems: Sequence[str] = ("fbank",), folds: int = 2, **changes: Any
) -> dict[tuple[str, str], torch.nn.Module]:
    made = {}
    for s, system in enumerate(systems):
        for k in range(folds):
            task = train(describe(**changes), seed=10 * s + k)
            save_model(folder / "systems" / system / "folds" / f"fold{k}", task, describe(**changes))
            made[system, f"fold{k}"] = task.eval()
    return made


def write_scores(folder: Path, scores: dict[str, float]) -> None:
    systems = [
        {"name": name, "metrics": {"uar": {"mean": uar, "std": 0.01, "pooled": uar}}, "folds": [{}, {}]}
        for name, uar in scores.items()
    ]
    protocol = {"name": "leave one tone out", "speaker_overlap": False}
    results = {"schema": 1, "corpus": "tones", "primary_metric": "uar", "systems": systems, "protocol": protocol}
    (folder / "results.json").write_text(json.dumps(results | {"chance": 1 / 3, "fingerprint": "f00d"}))


def write_tones(folder: Path) -> list[Path]:
    """A file for each class."""
    paths = [folder / f"{name}.wav" for name in CLASSES]
    for path, frequency in zip(paths, FREQUENCIES, strict=True):
        soundfile.write(path, tone(frequency, seed=5).numpy(), RATE, subtype="FLOAT")
    return paths


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "model.yaml"
    fields = yaml.safe_load(path.read_text()) | changes
    path.write_text(yaml.safe_dump({k: v for k, v in fields.items() if v is not None}))
