"""Learning rates over steps and over the depth of an encoder, against the formulas of the papers."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mmssl.errors import ConfigError
from mmssl.objectives.methods.byol_a import byol_a
from mmssl.objectives.methods.data2vec import data2vec
from mmssl.objectives.methods.mae import mae
from mmssl.objectives.objective import Objective
from mmssl.training.pretrain_optim import Optimization, learning_rate_factor, parameter_groups
from mmssl.upstreams.byol_a import ByolA
from mmssl.upstreams.speech_transformer import SpeechTransformer
from mmssl.upstreams.vit_mae import MAE

SMALL = {"hidden_size": 16, "num_heads": 2, "feed_forward_size": 32}


@pytest.mark.parametrize("step", range(12))
def test_learning_rates_of_the_papers(step: int) -> None:
    def ours(decay: str, hold: int = 0, final: float = 0.0) -> float:
        return learning_rate_factor(step, 2, 10, decay, hold, final)

    if step < 2:
        expected = {"linear": (step + 1) / 2, "cosine": (step + 1) / 2, "tri": (step + 1) / 2, "hold": (step + 1) / 2}
    else:
        done, after_hold = min((step - 2) / 8, 1), min(max((step - 5) / 5, 0), 1)
        expected = {
            "linear": 1.0 + (0.1 - 1.0) * done,
            "cosine": 0.1 + 0.45 * (1 + math.cos(math.pi * done)),
            # fairseq: exp(-decay_factor * steps of decay), decay_factor = -ln(final) / steps of decay in all
            "tri": math.exp(math.log(0.05) / 5 * (5 * after_hold)),
            "hold": 1.0 - after_hold,
        }
    assert ours("linear", final=0.1) == pytest.approx(expected["linear"])
    assert ours("cosine", final=0.1) == pytest.approx(expected["cosine"])
    assert ours("constant") == (1.0 if step >= 2 else (step + 1) / 2)
    assert ours("tri_stage", 3, 0.05) == pytest.approx(expected["tri"])
    assert ours("linear", 3) == pytest.approx(expected["hold"])


def test_settings() -> None:
    tri = Optimization(1e-3, 10, 1, 4, "tri_stage")
    assert tri.last_factor == 0.05
    assert tri.factor(10) == pytest.approx(0.05)
    assert tri.factor(4) == 1.0
    assert Optimization(1e-3, 10).factor(10) == 0.0
    wrong: list[dict[str, Any]] = [
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"max_steps": 0},
        {"accumulate": 0},
        {"warmup_steps": -1},
        {"warmup_steps": 6, "hold_steps": 5},
        {"decay": "step"},
        {"final_factor": 1.5},
        {"final_factor": 0.0, "decay": "tri_stage"},
        {"betas": (0.9, 1.0)},
        {"eps": 0.0},
        {"weight_decay": -1.0},
        {"layer_decay": 0.0},
        {"layer_decay": 1.1},
        {"grad_clip": 0.0},
    ]
    for change in wrong:
        with pytest.raises(ConfigError, match=next(iter(change))):
            Optimization(**{"learning_rate": 1e-3, "max_steps": 10, **change})


def rates(objective: Objective, layer_decay: float) -> dict[str, tuple[float, float]]:
    """Parameter -> (learning rate, weight decay)."""
    names = {id(p): name for name, p in objective.named_parameters()}
    groups = parameter_groups(objective, Optimization(2e-3, 10, layer_decay=layer_decay, weight_decay=0.05))
    found = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert set(found) == {name for name, p in objective.named_parameters() if p.requires_grad}
    assert sum(len(g["params"]) for g in groups) == len(found)
    return found


def test_the_rate_falls_from_block_to_block() -> None:
    speech = data2vec(SpeechTransformer("wav2vec2_tiny", num_layers=3), top_k=2)
    found = rates(speech, 0.5)
    base, up = 2e-3, "encoder.upstream."
    assert found[up + "front_end.convs.0.weight"] == (base * 0.5**4, 0.05)
    assert found[up + "feature_projection.bias"] == (base * 0.5**4, 0.0)
    assert found[up + "encoder.positions.weight_v"] == (base * 0.5**4, 0.05)
    # a post-norm transformer has this norm before its first block
    assert found[up + "encoder.layer_norm.weight"] == (base * 0.5**4, 0.0)
    for block in range(3):
        name = f"{up}encoder.blocks.{block}.attention.qkv.weight"
        assert found[name][0] == pytest.approx(base * 0.5 ** (3 + 1 - (block + 1)))
    outside = [rate for name, (rate, _) in found.items() if not name.startswith(up)]
    assert outside
    assert set(outside) == {base}
    assert {rate for rate, _ in rates(speech, 1.0).values()} == {base}

    picture = mae(MAE(image_size=16, patch_size=4, num_layers=2, **SMALL), decoder_size=16, decoder_layers=1)
    found = rates(picture, 0.75)
    for part, depth in (("cls_token", 0), ("patch_embed.proj.weight", 0), ("blocks.1.mlp.fc1.weight", 2)):
        if f"{up}encoder.{part}" in found:
            assert found[f"{up}encoder.{part}"][0] == pytest.approx(base * 0.75 ** (3 - depth))
    assert found[up + "encoder.norm.weight"][0] == base
    assert found[up + "encoder.blocks.0.norm1.weight"][0] == pytest.approx(base * 0.75**2)


def test_an_encoder_without_blocks_is_one_step_below_the_heads() -> None:
    found = rates(byol_a(ByolA(hidden_size=16, num_mel_bins=16), frames=16, hidden_size=16, size=8), 0.5)
    inside = [name.startswith("encoder.upstream.") for name in found]
    assert set(inside) == {True, False}
    assert {rate for (rate, _), own in zip(found.values(), inside, strict=True) if own} == {1e-3}
    assert {rate for (rate, _), own in zip(found.values(), inside, strict=True) if not own} == {2e-3}
