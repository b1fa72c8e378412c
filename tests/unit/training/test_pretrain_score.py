"""Scores of an objective's own task on clips that it was not trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmssl.errors import ConfigError
from mmssl.media.mini import make_mini
from mmssl.objectives.methods.correspondence import correspondence
from mmssl.objectives.objective import Objective
from mmssl.random import isolated_rng
from mmssl.training.pretrain_score import score_objective
from mmssl.training.readers import ClipReader, reader_for
from mmssl.types import Clip
from mmssl.upstreams.l3 import L3


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    folder = tmp_path_factory.mktemp("mini")
    return make_mini(folder, num_speakers=2, num_sentences=3, sentences_per_speaker=3, video=True)[:10]


@pytest.fixture(scope="module")
def objective() -> Objective:
    with isolated_rng(0):
        upstream = L3(width=4, sample_rate=16000, image_size=32)
        return correspondence(upstream.requires_grad_(True), audio_seconds=0.4, size=16, health_every=0)


def reader(objective: Objective) -> ClipReader:
    return reader_for(objective.encoder.upstream.spec, seconds=0.6)


def test_nothing_moves_and_nothing_else_is_drawn(objective: Objective, clips: list[Clip]) -> None:
    objective.train()
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    state = torch.get_rng_state()
    found = score_objective(objective, clips, reader(objective), draws=2, batch_size=4)
    assert objective.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())
    assert found == score_objective(objective.eval(), clips, reader(objective), draws=2, batch_size=4)
    assert set(found) == {"loss", "match/loss", "match/accuracy"}
    # two passes of three batches
    assert found["loss"]["batches"] == 6
    assert found["loss"]["clips"] == 20
    assert found["loss"] == found["match/loss"]


def test_the_mean_is_that_over_clips(objective: Objective, clips: list[Clip]) -> None:
    """One batch of all clips, computed by hand, is the score of one draw."""
    from mmssl.random import mix
    from mmssl.training.pretrain_batches import PretrainBatches

    found = score_objective(objective, clips, reader(objective), draws=1, batch_size=len(clips), seed=3)
    batch = PretrainBatches(clips, reader(objective), batch_size=len(clips), seed=mix(3, 1))[0]
    generator = torch.Generator().manual_seed(mix(3, 0) % 2**31)
    with torch.no_grad(), isolated_rng(0):
        logs = objective.eval()(batch.examples, 0, generator).logs
    for name, score in found.items():
        assert score["mean"] == pytest.approx(float(logs[name]), rel=1e-6)
        assert score["low"] == score["high"] == pytest.approx(score["mean"])


def test_other_draws_give_other_numbers(objective: Objective, clips: list[Clip]) -> None:
    one, two = (score_objective(objective, clips, reader(objective), draws=1, batch_size=5, seed=s) for s in (0, 1))
    assert one["loss"]["mean"] != two["loss"]["mean"]
    assert one["loss"]["low"] <= one["loss"]["mean"] <= one["loss"]["high"]


def test_draws_below_one_are_refused(objective: Objective, clips: list[Clip], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="draws"):
        score_objective(objective, clips, reader(objective), draws=0, batch_size=4)
