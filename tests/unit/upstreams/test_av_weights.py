from __future__ import annotations

import re

import pytest
import torch

from mmssl.errors import CheckpointError, ConfigError
from mmssl.nn.r2plus1d import avid_r2plus1d_18
from mmssl.upstreams.av_weights import settle_modalities, split_towers, stage_rules, turned


def test_towers_are_told_apart_by_prefix_or_by_their_kernels() -> None:
    flat, cube = torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3, 3, 3)
    for audio, video in (("audio_model", "video_model"), ("audio_backbone", "video_backbone")):
        found = split_towers({f"{audio}.a": flat, f"{video}.b": flat, "video_proj.c": flat})
        assert {m: list(part) for m, part in found.items()} == {"audio": ["a"], "video": ["b"]}
    assert list(split_towers({"a": flat, "b": cube})) == ["video"]
    assert list(split_towers({"a": flat})) == ["audio"]


def test_rules_reach_every_name_of_the_video_tower_once() -> None:
    rules = stage_rules("video")
    parts = ("spt_conv1", "spt_bn1", "tmp_conv1", "tmp_bn1", "spt_conv2", "spt_bn2", "tmp_conv2", "out_bn", "res_conv")
    theirs = ["conv1.0.weight", *(f"conv{s}x.{b}.{p}.weight" for s in range(2, 6) for b in (0, 1) for p in parts)]
    renamed = set()
    for name in theirs:
        matching = [(a, b) for a, b in rules if re.fullmatch(a, name)]
        assert len(matching) == 1
        renamed.add(re.sub(*matching[0], name))
    assert len(renamed) == len(theirs)
    assert {n for n in avid_r2plus1d_18(1).state_dict() if n.endswith("weight")} <= renamed | {"stem.1.weight"}


def test_kernels_are_turned_and_nothing_else() -> None:
    state = {"conv": torch.randn(2, 3, 3, 5), "norm": torch.randn(4)}
    found = turned(state)
    assert torch.equal(found["conv"], state["conv"].transpose(2, 3))
    assert torch.equal(found["norm"], state["norm"])


def test_which_towers_are_built() -> None:
    assert settle_modalities(None, {}, None) == ("audio", "video")
    assert settle_modalities(None, {"video": 0}, "a.pt") == ("video",)
    assert settle_modalities("audio", {}, None) == ("audio",)
    assert settle_modalities(["video", "audio"], {}, None) == ("audio", "video")
    with pytest.raises(CheckpointError, match=r"a\.pt holds no audio tower"):
        settle_modalities(["audio"], {"video": 0}, "a.pt")
    with pytest.raises(ConfigError, match="must be among"):
        settle_modalities(["image"], {}, None)
