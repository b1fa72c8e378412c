"""Layouts of masked autoencoders' files: what is read, what is refused, and what is said."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmssl import load_upstream
from mmssl.errors import CheckpointError, ConfigError
from mmssl.upstreams.mae_weights import PRESETS, VitSizes, joined, vit_sizes

SIZES: dict[str, Any] = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "feed_forward_size": 24}
UPSTREAMS: dict[str, dict[str, Any]] = {
    "mae": SIZES | {"image_size": 32},
    "audio_mae": SIZES,
    "video_mae": SIZES | {"image_size": 32},
    "cav_mae": SIZES | {"image_size": 32},
    "hicmae": SIZES | {"image_size": 32},
}
# what a file states; the rest has to be given again
SILENT: dict[str, dict[str, Any]] = {
    "mae": {"num_heads": 2, "image_size": 32},
    "audio_mae": {"num_heads": 2},
    "video_mae": {"num_heads": 2, "image_size": 32},
    "cav_mae": {"num_heads": 2, "image_size": 32},
    "hicmae": {"num_heads": 2, "image_size": 32},
}


def save(path: Path, state: dict[str, Tensor]) -> str:
    torch.save(state, path)
    return str(path)


def official_mae() -> dict[str, Tensor]:
    """A small pretrained MAE by the authors' names."""
    state = load_upstream("mae", **UPSTREAMS["mae"]).state_dict()
    return {name.removeprefix("encoder."): value for name, value in state.items()}


@pytest.mark.parametrize("name", UPSTREAMS)
def test_a_state_dict_of_ones_own_loads_again(name: str, tmp_path: Path) -> None:
    upstream = load_upstream(name, **UPSTREAMS[name], seed=3)
    path = save(tmp_path / "own.pt", upstream.state_dict())
    again = load_upstream(name, checkpoint=path, **SILENT[name])
    assert again.spec == upstream.spec
    for (key, a), (other, b) in zip(upstream.state_dict().items(), again.state_dict().items(), strict=True):
        assert key == other
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", UPSTREAMS)
def test_missing_and_left_over_weights_are_listed(name: str, tmp_path: Path) -> None:
    state = dict(load_upstream(name, **UPSTREAMS[name]).state_dict())
    removed = next(key for key in state if key.endswith("attn.proj.bias"))
    del state[removed]
    state["surprise.weight"] = torch.zeros(3)
    path = save(tmp_path / "broken.pt", state)
    with pytest.raises(CheckpointError) as error:
        load_upstream(name, checkpoint=path, **SILENT[name])
    assert removed in str(error.value)
    assert "surprise.weight" in str(error.value)


@pytest.mark.parametrize("wrapper", [None, "model", "module", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_wrappers_prefixes_and_decoders(wrapper: str | None, prefix: str, tmp_path: Path) -> None:
    state = official_mae()
    more = {"mask_token": torch.zeros(1, 1, 8), "decoder_blocks.0.norm1.weight": torch.ones(8)}
    more |= {"head.weight": torch.zeros(5, 16), "decoder_pos_embed": torch.zeros(1, 5, 8)}
    named = {f"{prefix}{name}": value for name, value in (state | more).items()}
    path = tmp_path / "mae.pth"
    torch.save({wrapper: named, "epoch": 1} if wrapper else named, path)
    upstream = load_upstream("mae", checkpoint=str(path), num_heads=2, image_size=32)
    assert torch.equal(upstream.encoder.blocks[1].mlp.fc1.weight, state["blocks.1.mlp.fc1.weight"])


def test_separate_queries_keys_and_values(tmp_path: Path) -> None:
    state = official_mae()
    split = {}
    for name, value in state.items():
        if ".attn.qkv." in name:
            for part, chunk in zip("qkv", value.chunk(3), strict=True):
                split[name.replace("qkv", f"{part}_proj")] = chunk
        else:
            split[name] = value
    upstream = load_upstream("mae", checkpoint=save(tmp_path / "a.pth", split), num_heads=2, image_size=32)
    assert torch.equal(upstream.encoder.blocks[0].attn.qkv.bias, state["blocks.0.attn.qkv.bias"])


def test_biases_that_stand_apart() -> None:
    state = {"a.attn.qkv.weight": torch.zeros(6, 2), "a.attn.q_bias": torch.ones(2), "a.attn.v_bias": 2 * torch.ones(2)}
    assert joined(state)["a.attn.qkv.bias"].tolist() == [1, 1, 0, 0, 2, 2]
    cross = {"b.cross_attn.q.weight": torch.zeros(2, 2), "b.cross_attn.q_bias": torch.ones(2)}
    found = joined(cross | {"b.cross_attn.v_bias": 2 * torch.ones(2)})
    assert found["b.cross_attn.q.bias"].tolist() == [1, 1]
    assert found["b.cross_attn.kv.bias"].tolist() == [0, 0, 2, 2]
    with pytest.raises(CheckpointError, match="no v_bias"):
        joined({"a.attn.q_bias": torch.ones(2)})


def test_a_norm_after_the_mean_of_fine_tuned_models(tmp_path: Path) -> None:
    state = official_mae()
    for part in ("weight", "bias"):
        state[f"fc_norm.{part}"] = state.pop(f"norm.{part}") + 0.5
    upstream = load_upstream("mae", checkpoint=save(tmp_path / "a.pth", state), num_heads=2, image_size=32)
    assert torch.equal(upstream.encoder.norm.bias, torch.full((16,), 0.5))


def test_a_position_of_the_class_token_goes_into_the_token(tmp_path: Path) -> None:
    state = official_mae()
    upstream = load_upstream("mae", **UPSTREAMS["mae"])
    fixed = upstream.encoder.positions(2, torch.zeros(1))
    state["pos_embed"] = torch.cat([torch.full((1, 16), 0.25), fixed])[None]
    loaded = load_upstream("mae", checkpoint=save(tmp_path / "a.pth", state), num_heads=2)
    assert loaded.spec.image_size == (32, 32)
    assert torch.allclose(loaded.encoder.cls_token, state["cls_token"] + 0.25)
    assert loaded.encoder.positions.table is None


def test_trained_positions_are_kept_and_limit_the_length(tmp_path: Path) -> None:
    upstream = load_upstream("audio_mae", **SIZES)
    state = {name.removeprefix("encoder."): value for name, value in upstream.state_dict().items()}
    trained = torch.randn(1, 1 + 4 * 8, 16)
    state["pos_embed"] = trained
    loaded = load_upstream("audio_mae", checkpoint=save(tmp_path / "a.pth", state), num_heads=2)
    assert torch.equal(loaded.encoder.positions.table, trained[0, 1:])
    longest = loaded.spec.max_length
    assert loaded.output_lengths(torch.tensor([longest, longest + 1])).tolist() == [4 * 8, 5 * 8]
    # and once more through its own state dict
    again = load_upstream("audio_mae", checkpoint=save(tmp_path / "b.pth", loaded.state_dict()), num_heads=2)
    waveforms = 0.1 * torch.randn(1, longest)
    a, b = (up(waveforms)["audio"].hidden_states[-1] for up in (loaded, again))
    assert torch.equal(a, b)


def test_positions_of_another_grid_are_refused(tmp_path: Path) -> None:
    upstream = load_upstream("audio_mae", **SIZES)
    state = {name.removeprefix("encoder."): value for name, value in upstream.state_dict().items()}
    state["pos_embed"] = torch.randn(1, 1 + 4 * 8 + 3, 16)
    with pytest.raises(CheckpointError, match="multiple of 8"):
        load_upstream("audio_mae", checkpoint=save(tmp_path / "a.pth", state), num_heads=2)


def test_half_precision_files_load_as_float32(tmp_path: Path) -> None:
    state = {name: value.half() for name, value in official_mae().items()}
    upstream = load_upstream("mae", checkpoint=save(tmp_path / "a.pth", state), num_heads=2, image_size=32)
    assert upstream.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "licensed"), [("mae", True), ("audio_mae", True), ("video_mae", True), ("hicmae", False)]
)
def test_licences_are_said(name: str, licensed: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save(tmp_path / "own.pt", load_upstream(name, **UPSTREAMS[name]).state_dict())
    with caplog.at_level(logging.WARNING):
        load_upstream(name, checkpoint=path, **SILENT[name])
    assert any("no commercial use" in record.message for record in caplog.records) == licensed


def test_a_file_of_something_else(tmp_path: Path) -> None:
    path = save(tmp_path / "other.pt", {"conv1.weight": torch.zeros(3, 3)})
    with pytest.raises(CheckpointError, match=r"patch_embed\.proj\.weight"):
        load_upstream("video_mae", checkpoint=path)


def test_sizes_settle() -> None:
    assert vit_sizes("base", {}, None) == PRESETS["base"]
    assert vit_sizes("base", {}, None, hidden_size=96, num_heads=3) == VitSizes(96, 12, 3, 384, 16)
    state = {"patch_embed.proj.weight": torch.empty(1280, 3, 14, 14, device="meta")}
    state |= {f"blocks.{i}.mlp.fc1.weight": torch.empty(5120, 1280, device="meta") for i in range(32)}
    assert vit_sizes("base", state, "file") == PRESETS["huge"]
    with pytest.raises(CheckpointError, match="num_layers = 32, 12 was asked for"):
        vit_sizes("base", state, "file", num_layers=12)
    with pytest.raises(ConfigError, match="Did you mean 'base'"):
        vit_sizes("bsae", {}, None)
