"""The encoder that comes with mmssl: there, small, as its card says, and the same in transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

import mmssl
from mmssl.errors import CheckpointError
from mmssl.upstreams import hubert_nano
from mmssl.upstreams.base import Upstream
from mmssl.upstreams.hubert_nano import FOLDER


@pytest.fixture(scope="module")
def upstream() -> Upstream:
    return mmssl.load_upstream("hubert_nano")


def test_the_folder_is_small_and_has_a_card() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 20e6
    card = (FOLDER / "README.md").read_text(encoding="utf-8").lower()
    for word in ("licence", "debian_speech", "steps", "emodb", "ravdess", "fsdd", "float16"):
        assert word in card


def test_weights_are_stored_in_sixteen_bits_and_computed_with_in_32(upstream: Upstream) -> None:
    stored = load_file(FOLDER / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    assert {p.dtype for p in upstream.parameters()} == {torch.float32}
    assert sum(p.numel() for p in upstream.parameters()) == 5_098_656


def test_transformers_computes_the_same(upstream: Upstream) -> None:
    model = transformers.HubertModel.from_pretrained(FOLDER).eval()
    assert model.dtype == torch.float32
    waveform = 0.1 * torch.randn(1, 12000, generator=torch.Generator().manual_seed(0))
    prepared = (waveform - waveform.mean()) / (waveform.var(correction=0) + 1e-7).sqrt()
    with torch.no_grad():
        expected = model(prepared, output_hidden_states=True).hidden_states
        found = upstream(waveform)["audio"].hidden_states
    assert len(found) == len(expected) == 7
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_the_untrained_one_has_the_same_sizes_and_other_weights(upstream: Upstream) -> None:
    config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    untrained = mmssl.load_upstream("hubert", preset="hubert_nano", seed=0)
    assert config["num_hidden_layers"] == 6
    assert untrained.spec.streams == upstream.spec.streams
    drawn, learnt = untrained.state_dict(), upstream.state_dict()
    assert drawn.keys() == learnt.keys()
    assert not any(torch.equal(drawn[name], learnt[name]) for name in drawn if drawn[name].dim() > 1)


def test_missing_weights_are_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hubert_nano, "FOLDER", tmp_path / "gone")
    with pytest.raises(CheckpointError, match="gone"):
        mmssl.load_upstream("hubert_nano")
