"""Objectives of speech on encoders with log-mel frames in the place of convolutions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmssl.objectives.objective import Objective
from mmssl.objectives.targets.units import write_units
from mmssl.objectives.types import Examples
from mmssl.registry import OBJECTIVES
from mmssl.types import Inputs, Padded
from mmssl.upstreams.speech_transformer import SpeechTransformer

LENGTHS = (16000, 9000, 12340)
OPTIONS: dict[str, dict[str, Any]] = {
    "wav2vec2": {"num_negatives": 8, "num_entries": 6, "size": 16, "mask_span": 4},
    "hubert": {"num_units": 7, "size": 12, "mask_span": 4, "visible_weight": 1.0},
    "data2vec": {"top_k": 2, "mask_span": 4, "decay_steps": 10},
    "best_rq": {"num_entries": 16, "code_size": 4},
}


def batch() -> Examples:
    generator = torch.Generator().manual_seed(0)
    data = torch.zeros(len(LENGTHS), max(LENGTHS))
    for row, size in zip(data, LENGTHS, strict=True):
        row[:size] = torch.randn(size, generator=generator) * 0.1
    return Examples(Inputs(waveforms=Padded(data, torch.tensor(LENGTHS))), ids=("a", "b", "c"))


def build(name: str, folder: Path) -> Objective:
    torch.manual_seed(0)
    model = SpeechTransformer("wav2vec2_tiny", mel_bins=8, dropout=0.0, layer_drop=0.0)
    options = dict(OPTIONS[name])
    if name == "hubert":
        frames = model.output_lengths(torch.tensor(LENGTHS)).tolist()
        units = {key: torch.arange(size) % 7 for key, size in zip("abc", frames, strict=True)}
        write_units(folder / "units.tsv", units)
        options["units"] = str(folder / "units.tsv")
    return OBJECTIVES.build(name, model, **options)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_parameter_is_trained_and_nothing_is_asked_of_frames_without_weights(name: str, tmp_path: Path) -> None:
    objective = build(name, tmp_path).train()
    trained = {n: p for n, p in objective.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=2e-3, weight_decay=0.0)
    losses = []
    for step in range(3):
        output = objective(batch(), step, torch.Generator().manual_seed(0))
        optimizer.zero_grad()
        output.loss.backward()
        assert all(p.grad is not None for p in trained.values())
        optimizer.step()
        objective.after_step(step)
        losses.append(float(output.logs["loss"]))
    assert losses[0] > losses[1] > losses[2], losses
    # the mean square of log-mel frames is a number of the clip: no gradient would come of its penalty
    assert not any(key.startswith("feature_penalty") for key in output.logs)
