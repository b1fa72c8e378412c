"""Methods learn: on clips of tones, whose hidden frames can be told from those around them, losses fall far."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmssl.objectives.targets.units import write_units
from mmssl.objectives.types import Examples
from mmssl.registry import OBJECTIVES
from mmssl.types import Inputs, Padded
from mmssl.upstreams.speech_transformer import SpeechTransformer
from mmssl.upstreams.tera import Tera

STEPS = 150
TONES = torch.tensor([300.0, 700.0, 1500.0, 2600.0, 4000.0])
SAMPLES = 4000
SEGMENT = 800


def batch(seed: int) -> tuple[Examples, torch.Tensor]:
    """Eight clips of five tones each, and which tone each frame of 40 samples has."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randint(len(TONES), (8, SAMPLES // SEGMENT), generator=generator).repeat_interleave(SEGMENT, 1)
    time = torch.arange(SAMPLES) / 16000
    phase = torch.rand(8, 1, generator=generator) * 6.28
    data = 0.3 * torch.sin(6.2832 * TONES[order] * time + phase)
    data = data + 0.01 * torch.randn(data.shape, generator=generator)
    ids = tuple(f"{seed}-{n}" for n in range(8))
    return Examples(Inputs(waveforms=Padded(data, torch.full((8,), SAMPLES))), ids), order[:, 20::40]


OPTIONS: dict[str, dict[str, Any]] = {
    "wav2vec2": {"num_negatives": 10, "num_entries": 8, "size": 16, "mask_span": 6, "gumbel": (2.0, 0.5, 0.99)},
    "hubert": {"num_units": len(TONES), "size": 16, "mask_span": 6},
    "data2vec": {"top_k": 2, "mask_span": 6, "decay": (0.99, 0.999), "decay_steps": 100},
    "best_rq": {"num_entries": 16, "code_size": 4, "mel_hop": 40},
    "tera": {"max_bins": 4},
}


def train(name: str, folder: Path) -> list[dict[str, float]]:
    torch.manual_seed(0)
    upstream: SpeechTransformer | Tera
    options = dict(OPTIONS[name])
    if name == "tera":
        upstream = Tera(hidden_size=32, num_layers=2, num_heads=4, feed_forward_size=48, num_mel_bins=20)
    else:
        upstream = SpeechTransformer("wav2vec2_lv60_tiny", dropout=0.0, layer_drop=0.0)
    if name == "hubert":
        units = {}
        for step in range(STEPS):
            examples, tones = batch(step)
            units |= dict(zip(examples.ids, tones, strict=True))
        write_units(folder / "units", units)
        options["units"] = str(folder / "units")
    objective = OBJECTIVES.build(name, upstream, health_every=1, **options).train()
    trained = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-3)
    rows = []
    for step in range(STEPS):
        output = objective(batch(step)[0], step)
        optimizer.zero_grad()
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        objective.after_step(step)
        rows.append({key: float(value) for key, value in output.logs.items()})
    return rows


def mean(rows: list[dict[str, float]], key: str) -> float:
    return sum(row[key] for row in rows) / len(rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "key", "share", "accuracy"),
    # chance is 1/11 among a target and ten negatives, 1/5 among tones, 1/16 among codes of noisy log-mel frames
    [("wav2vec2", "contrast", 0.7, 0.4), ("hubert", "hidden", 0.6, 0.6), ("best_rq", "codes", 0.92, 0.15)],
)
def test_hidden_frames_are_told_far_above_chance(
    name: str, key: str, share: float, accuracy: float, tmp_path: Path
) -> None:
    rows = train(name, tmp_path)
    last = rows[-20:]
    assert mean(last, f"{key}/loss") < share * last[-1][f"{key}/ln_n"]
    assert mean(last, f"{key}/accuracy") > accuracy
    assert mean(last, f"{key}/code_usage_entropy") > 0.5


@pytest.mark.slow
@pytest.mark.parametrize(("name", "key"), [("data2vec", "regression"), ("tera", "restoration")])
def test_regressions_fall_below_the_best_constant(name: str, key: str, tmp_path: Path) -> None:
    rows = train(name, tmp_path)
    last = rows[-20:]
    assert mean(last, f"{key}/loss") < 0.8 * mean(last, f"{key}/baseline")
    assert mean(last, f"{key}/target_spread") > 0.2  # not because the targets have collapsed
