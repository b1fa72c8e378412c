from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mmssl.errors import CheckpointError, ConfigError
from mmssl.training.speaker_files import (
    ENCODERS,
    build_speaker_model,
    is_speaker_model,
    load_speaker_model,
    save_speaker_model,
)
from mmssl.types import Padded
from mmssl.upstreams.base import load_upstream
from mmssl.upstreams.exported import export_upstream

TINY: dict[str, dict[str, Any]] = {
    "ecapa_tdnn": {"channels": 16, "joined_size": 24, "embedding_size": 6},
    "xvector": {"channels": 16, "wide_size": 24, "embedding_size": 6},
    "resnet": {"depth": 50, "width": 2, "embedding_size": 6},
    "rawnet3": {"channels": 16, "joined_size": 24, "embedding_size": 6},
    "ska_tdnn": {"channels": 16, "front_channels": 4, "joined_size": 24, "embedding_size": 6},
}
HUBERT = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "feed_forward_size": 32}


def batch() -> Padded:
    data = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0)) * 0.1
    return Padded(data, torch.tensor([4000, 2500]))


def build(encoder: str = "ecapa_tdnn", **kwargs: Any) -> Any:
    if encoder == "rawnet3":
        return build_speaker_model(None, encoder, encoder_kwargs=TINY[encoder], **kwargs)
    return build_speaker_model(
        "fbank", encoder, upstream_kwargs={"num_mel_bins": 20}, encoder_kwargs=TINY[encoder], **kwargs
    )


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_saved_model_gives_equal_embeddings(encoder: str, tmp_path: Path) -> None:
    model = build(encoder, seed=3)
    model.train()(Padded(batch().data, torch.tensor([4000, 4000])))  # moves the running statistics
    save_speaker_model(tmp_path / "m", model)
    moved = tmp_path / "elsewhere"
    shutil.move(tmp_path / "m", moved)
    state = torch.get_rng_state()
    loaded = load_speaker_model(moved)
    assert torch.equal(torch.get_rng_state(), state)
    assert is_speaker_model(moved)
    assert not loaded.training
    assert torch.equal(loaded.embed(batch()), model.embed(batch()))
    assert loaded.description == model.description


def test_weights_follow_the_seed_alone() -> None:
    first, again, other = build(seed=1), build(seed=1), build(seed=2)
    assert torch.equal(first.embed(batch()), again.embed(batch()))
    assert not torch.equal(first.embed(batch()), other.embed(batch()))


def test_an_upstream_in_the_layout_of_transformers_is_in_the_folder(tmp_path: Path) -> None:
    model = build_speaker_model("hubert", "xvector", upstream_kwargs=HUBERT, encoder_kwargs=TINY["xvector"])
    assert model.description["interface"] == "weighted_sum"
    with torch.no_grad():
        for parameter in model.upstream.parameters():
            parameter.add_(0.01)
    save_speaker_model(tmp_path / "m", model)
    assert (tmp_path / "m" / "upstream" / "config.json").is_file()
    torch.testing.assert_close(load_speaker_model(tmp_path / "m").embed(batch()), model.embed(batch()))


def test_an_encoder_that_was_pretrained_here_is_not_needed_afterwards(tmp_path: Path) -> None:
    arguments = {"hidden_size": 16, "num_layers": 1}
    source = load_upstream("apc", seed=4, **arguments)
    export_upstream(source, tmp_path / "pretrained", "apc", arguments)
    model = build_speaker_model(str(tmp_path / "pretrained"), "xvector", encoder_kwargs=TINY["xvector"])
    save_speaker_model(tmp_path / "m", model)
    shutil.rmtree(tmp_path / "pretrained")
    torch.testing.assert_close(load_speaker_model(tmp_path / "m").embed(batch()), model.embed(batch()))


def test_a_jointly_trained_upstream_is_saved_as_it_is(tmp_path: Path) -> None:
    arguments = {"hidden_size": 16, "num_layers": 1}
    model = build_speaker_model(
        "apc", "xvector", upstream_kwargs=arguments, encoder_kwargs=TINY["xvector"], train_upstream=True
    )
    with torch.no_grad():
        for parameter in model.upstream.parameters():
            parameter.mul_(1.5)
    save_speaker_model(tmp_path / "m", model)
    loaded = load_speaker_model(tmp_path / "m")
    assert loaded.train_upstream
    torch.testing.assert_close(loaded.embed(batch()), model.embed(batch()))


def edited(folder: Path, **changes: Any) -> Path:
    path = folder / "speaker.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_foreign_and_damaged_folders_are_refused(tmp_path: Path) -> None:
    def fresh() -> Path:
        save_speaker_model(tmp_path / "m", build())
        return tmp_path / "m"

    with pytest.raises(CheckpointError, match=r"speaker.json does not exist: this is no \(complete\) folder"):
        load_speaker_model(tmp_path)
    with pytest.raises(CheckpointError, match="does not describe a speaker model"):
        load_speaker_model(edited(fresh(), kind="something else"))
    with pytest.raises(CheckpointError, match="has schema 99"):
        load_speaker_model(edited(fresh(), schema=99))
    with pytest.raises(CheckpointError, match="wrong or missing are centre"):
        load_speaker_model(edited(fresh(), centre=1.5))
    with pytest.raises(CheckpointError, match="cannot be built: centre must be true, false or 'level'"):
        load_speaker_model(edited(fresh(), centre="yes"))
    with pytest.raises(CheckpointError, match=r"upstream 'evil.module.Code'.*trust=True"):
        load_speaker_model(edited(fresh(), upstream="evil.module.Code"))
    with pytest.raises(CheckpointError, match=r"interface 'evil.module.Code'"):
        load_speaker_model(edited(fresh(), interface="evil.module.Code"))
    with pytest.raises(CheckpointError, match=r"'evil.py'"):
        load_speaker_model(edited(fresh(), interface_kwargs={"inner": [{"interface": "evil.py"}]}))
    with pytest.raises(CheckpointError, match=r"files of its own \(checkpoint\)"):
        load_speaker_model(edited(fresh(), upstream_kwargs={"checkpoint": "/etc/passwd"}))
    with pytest.raises(CheckpointError, match="cannot be built: There is no speaker encoder 'ecapa'"):
        load_speaker_model(edited(fresh(), encoder="ecapa"))
    with pytest.raises(CheckpointError, match="does not fit its description"):
        load_speaker_model(edited(fresh(), encoder_kwargs={**TINY["ecapa_tdnn"], "channels": 24}))
    weights = fresh() / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="sha256 differs"):
        load_speaker_model(tmp_path / "m")
    weights.unlink()
    with pytest.raises(CheckpointError, match="are missing: copy the whole folder"):
        load_speaker_model(tmp_path / "m")
    (tmp_path / "m" / "speaker.json").write_text("[")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_speaker_model(tmp_path / "m")


def test_what_cannot_stand_alone_is_not_saved(tmp_path: Path) -> None:
    model = build()
    model.description = None
    with pytest.raises(CheckpointError, match="build_speaker_model"):
        save_speaker_model(tmp_path, model)
    dotted = build_speaker_model("mmssl.upstreams.spectral.Fbank", "xvector", encoder_kwargs=TINY["xvector"])
    with pytest.raises(CheckpointError, match="no registered name"):
        save_speaker_model(tmp_path, dotted)


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match=r"no speaker encoder 'ecapa'.*Did you mean 'ecapa_tdnn'"):
        build_speaker_model("fbank", "ecapa")
    with pytest.raises(ConfigError, match="takes waveforms: give upstream=None"):
        build_speaker_model("fbank", "rawnet3")
    with pytest.raises(ConfigError, match="takes frames: give an upstream"):
        build_speaker_model(None, "ecapa_tdnn")
    with pytest.raises(ConfigError, match="need an upstream; there is none"):
        build_speaker_model(None, "rawnet3", "last_layer")
    with pytest.raises(ConfigError, match="does not take these arguments"):
        build_speaker_model("fbank", "resnet", encoder_kwargs={"layers": 3})
    with pytest.raises(ConfigError, match="no stream 'video'; it has audio"):
        build_speaker_model("fbank", "ecapa_tdnn", "last_layer", stream="video")
