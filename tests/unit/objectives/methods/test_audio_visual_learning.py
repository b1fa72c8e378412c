"""Audio-visual methods learn from true pairs, and nothing where the pairs are shuffled or one modality is noise.

Scenes are drawn: a bar moves up and down, and the higher it is, the higher is the tone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from mmssl.objectives.methods.av_hubert import av_hubert
from mmssl.objectives.methods.correspondence import correspondence
from mmssl.objectives.methods.cross_modal import cross_modal
from mmssl.objectives.methods.synchrony import synchrony
from mmssl.objectives.objective import Objective
from mmssl.objectives.targets.units import write_units
from mmssl.objectives.types import Examples
from mmssl.types import Inputs, Padded
from mmssl.upstreams.av_hubert import AvHubert
from mmssl.upstreams.l3 import L3

FPS, RATE, SIZE = 25, 8000, 8
HELD_OUT = 10**6


def scenes(count: int, seconds: float, seed: int, moves: float) -> Examples:
    """Aligned sound and video of scenes; `moves` is how far the bar travels, a smoothed random walk within [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    frames = round(seconds * FPS)
    home = 2 * torch.rand(count, 1, generator=generator)
    steps = 0.35 * moves * torch.randn(count, frames, generator=generator)
    place = (home + F.avg_pool1d(steps.cumsum(1)[:, None], 5, 1, 2)[:, 0]).remainder(2)
    height = torch.where(place > 1, 2 - place, place)
    centre = (1 - height) * (SIZE - 1)
    bar = torch.exp(-((torch.arange(SIZE) - centre[..., None]) ** 2) / 2)
    colour = 0.3 + 0.7 * torch.rand(count, 1, 3, 1, 1, generator=generator)
    video = (colour * bar[:, :, None, :, None]).expand(-1, -1, 3, -1, SIZE).contiguous()
    # between pictures the pitch glides, so that nothing clicks
    fine = F.interpolate(height[:, None], size=frames * (RATE // FPS), mode="linear")[:, 0]
    phase = 6.2832 * torch.rand(count, 1, generator=generator)
    loudness = 0.1 + 0.3 * torch.rand(count, 1, generator=generator)
    sound = loudness * torch.sin(phase + (6.2832 * 300 * 2 ** (3 * fine) / RATE).cumsum(1))
    sound = sound + 0.01 * torch.randn(sound.shape, generator=generator)
    full = torch.ones(count, dtype=torch.int64)
    inputs = Inputs(Padded(sound, full * sound.shape[1]), Padded(video, full * frames))
    ids = tuple(f"{seed}-{index}" for index in range(count))
    return Examples(inputs, ids, seeds=tuple(seed * 1000 + index for index in range(count)))


def learn(objective: Objective, draw: Callable[[int], Examples], steps: int, tests: int = 6) -> dict[str, float]:
    """Mean logs on scenes that were not seen."""
    objective.train()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    for step in range(steps):
        loss = objective(draw(step), step).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        optimizer.step()
    objective.eval()
    with torch.no_grad():
        logs: Sequence[Any] = [objective(draw(HELD_OUT + k), k).logs for k in range(tests)]
    return {name: sum(float(log[name]) for log in logs) / tests for name in logs[0]}


def towers() -> L3:
    torch.manual_seed(0)
    return L3(width=4, sample_rate=RATE, image_size=SIZE)


CONTROLS = [("none", 0.75, 1.0), *((name, 0.4, 0.6) for name in ("shuffled", "audio_only", "video_only"))]


@pytest.mark.slow
@pytest.mark.parametrize(("control", "low", "high"), CONTROLS)
def test_correspondence(control: str, low: float, high: float) -> None:
    objective = correspondence(towers(), audio_seconds=0.2, size=32, control=control, health_every=0)
    found = learn(objective, lambda seed: scenes(32, 0.4, seed, 0.2), 150)
    assert low <= found["match/accuracy"] <= high


@pytest.mark.slow
@pytest.mark.parametrize(("control", "low", "high"), CONTROLS)
def test_synchrony(control: str, low: float, high: float) -> None:
    objective = synchrony(
        towers(), crop_seconds=0.6, min_shift=0.2, max_shift=0.8, size=32, control=control, health_every=0
    )
    found = learn(objective, lambda seed: scenes(16, 1.4, seed, 1.0), 250)
    assert low <= found["match/accuracy"] <= high


@pytest.mark.slow
@pytest.mark.parametrize("control", ["none", "shuffled", "audio_only", "video_only"])
def test_cross_modal(control: str) -> None:
    objective = cross_modal(towers(), size=16, hidden_size=64, control=control, health_every=0)
    found = learn(objective, lambda seed: scenes(32, 0.4, seed, 0.2), 120)
    if control == "none":
        assert found["contrast/accuracy"] > 5 / 32
        assert found["contrast/loss"] < math.log(32) - 0.8
    else:
        assert found["contrast/accuracy"] < 3 / 32
        assert found["contrast/loss"] > math.log(32) - 0.1


@pytest.mark.slow
@pytest.mark.parametrize("control", ["none", "shuffled", "audio_only", "video_only"])
def test_av_hubert(control: str, tmp_path: Path) -> None:
    # Four tones, one for each stretch of ten frames, are in the sound alone; pictures are noise. What is learnt comes
    # through the sound of the clip, and no other.
    tones = torch.tensor([300.0, 800.0, 1800.0, 3500.0])
    units = {}

    def draw(seed: int) -> Examples:
        generator = torch.Generator().manual_seed(seed)
        order = torch.randint(4, (8, 3), generator=generator).repeat_interleave(10, 1)
        sound = 0.3 * torch.sin(6.2832 * (tones[order].repeat_interleave(640, 1) / 16000).cumsum(1))
        sound = sound + 0.01 * torch.randn(sound.shape, generator=generator)
        video = torch.rand(8, 30, 1, 24, 24, generator=generator)
        ids = tuple(f"{seed}-{index}" for index in range(8))
        units.update(dict(zip(ids, order, strict=True)))
        inputs = Inputs(Padded(sound, torch.full((8,), 19200)), Padded(video, torch.full((8,), 30)))
        return Examples(inputs, ids, seeds=tuple(seed * 100 + index for index in range(8)))

    steps = 150
    for seed in (*range(steps), *(HELD_OUT + k for k in range(6))):
        draw(seed)
    write_units(tmp_path / "units", units)
    torch.manual_seed(0)
    upstream = AvHubert("tiny", image_size=24, dropout=0.0, layer_drop=0.0)
    objective = av_hubert(
        upstream,
        units=str(tmp_path / "units"),
        num_units=4,
        size=16,
        audio_mask=(0.4, 4),
        modality_dropout=0.2,
        control=control,
        health_every=0,
    )
    accuracy = learn(objective, draw, steps)["hidden/accuracy"]
    if control in ("none", "audio_only"):
        assert accuracy > 0.5
    else:
        assert accuracy < 0.36
