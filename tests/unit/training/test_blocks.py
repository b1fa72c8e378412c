"""How deep the parameters of encoders lie."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mmssl.errors import ConfigError
from mmssl.training.blocks import attach_drop_path, block_depths, layer_factors, parameter_depths
from mmssl.upstreams.audio_mae import AudioMAE
from mmssl.upstreams.cav_mae import CAVMAE
from mmssl.upstreams.hicmae import HiCMAE
from mmssl.upstreams.speech_transformer import SpeechTransformer
from mmssl.upstreams.video_mae import VideoMAE

SMALL: dict[str, Any] = {"hidden_size": 16, "num_heads": 2, "feed_forward_size": 32}


def test_depths_of_the_families() -> None:
    with torch.device("meta"):
        for model in (AudioMAE(num_layers=3, **SMALL), VideoMAE(num_layers=3, image_size=32, **SMALL)):
            assert list(block_depths(model).values()) == [1, 2, 3]
            assert parameter_depths(model)[0]["encoder.norm.bias"] == 4
        many = SpeechTransformer("hubert_base", num_layers=12)
        depth, last = parameter_depths(many)
        assert depth["encoder.blocks.1.attention.qkv.bias"] == 2
        assert depth["encoder.blocks.11.attention.qkv.bias"] == last == 12
        av = HiCMAE(num_layers=2, num_fusion_layers=1, image_size=32, **SMALL)
        depth, last = parameter_depths(av)
        assert last == 3
        expected = {
            "audio.patch_embed.proj.weight": 0,
            "audio.blocks.0.norm1.weight": 1,
            "video.blocks.1.norm1.weight": 2,
            "video.norm.weight": 2,
            "fusion.blocks.0.norm1.weight": 3,
            "fusion.blocks_audio.0.norm1.weight": 3,
            "fusion.norm.weight": 4,
            "fusion.norm_audio.weight": 4,
        }
        assert {name: depth[name] for name in expected} == expected
        cav = CAVMAE(num_layers=2, num_shared_layers=1, image_size=32, **SMALL)
        depth, last = parameter_depths(cav)
        expected = {"modality_a": 0, "audio.blocks.1.norm1.weight": 2, "shared.0.norm1.weight": 3, "norm.weight": 4}
        assert (last, {name: depth[name] for name in expected}) == (3, expected)


def test_the_norm_of_a_speech_transformer_is_above_its_blocks_in_pre_norm_models() -> None:
    with torch.device("meta"):
        for preset, expected in (("hubert_large", 3), ("hubert_base", 0)):
            depth, last = parameter_depths(SpeechTransformer(preset, num_layers=2))
            assert (last, depth["encoder.layer_norm.weight"]) == (2, expected)
            assert {depth[name] for name in depth if name.startswith("feature_projection.")} == {0}
        factors = layer_factors(SpeechTransformer("hubert_large", num_layers=2), 0.5)
    assert factors["encoder.layer_norm.weight"] == 1
    assert factors["encoder.blocks.0.attention.qkv.bias"] == 0.25


def test_an_encoder_without_blocks() -> None:
    assert parameter_depths(nn.Linear(2, 2)) == ({"weight": 0, "bias": 0}, 0)
    assert block_depths(nn.Linear(2, 2)) == {}
    with pytest.raises(ConfigError, match="stack of blocks"):
        layer_factors(nn.Linear(2, 2), 0.5)
    with pytest.raises(ConfigError, match="stack of blocks"):
        attach_drop_path(nn.Linear(2, 2), 0.5)
