from __future__ import annotations

import pytest

from mmssl.errors import CheckpointError, ConfigError
from mmssl.upstreams.speech_config import (
    PRESETS,
    from_fairseq,
    from_transformers,
    parse_conv_layers,
    preset_config,
    to_transformers,
)


@pytest.mark.parametrize("name", [name for name, sizes in PRESETS.items() if not sizes.mel_bins])
def test_sizes_survive_a_transformers_config(name: str) -> None:
    sizes = PRESETS[name]
    values = to_transformers(sizes)
    preprocessor = {"do_normalize": sizes.normalize, "normalize_eps": sizes.normalize_eps}
    assert from_transformers(values, preprocessor) == sizes


def test_log_mel_frames_have_no_transformers_config() -> None:
    with pytest.raises(ConfigError, match="export it natively"):
        to_transformers(PRESETS["mel_hubert_base"])


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("wav2vec2", "wav2vec2_base"),
        ("hubert", "hubert_base"),
        ("wavlm", "wavlm_base"),
        ("data2vec-audio", "data2vec_audio_base"),
        ("unispeech-sat", "unispeech_sat_base"),
    ],
)
def test_the_defaults_of_transformers_are_the_base_presets(model_type: str, name: str) -> None:
    from transformers import AutoConfig

    ours, theirs = PRESETS[name], from_transformers(AutoConfig.for_model(model_type).to_dict())
    skip = ("activation_dropout", "layer_drop", "normalize", "normalize_eps")
    for field in vars(ours):
        if field not in skip:
            assert getattr(theirs, field) == getattr(ours, field), field


def test_settings_that_are_not_computed_are_refused() -> None:
    values = to_transformers(PRESETS["hubert_base"])
    with pytest.raises(CheckpointError, match="conv_pos_batch_norm"):
        from_transformers(values | {"conv_pos_batch_norm": True})
    with pytest.raises(CheckpointError, match="hidden_act = 'relu'"):
        from_transformers(values | {"hidden_act": "relu"})
    with pytest.raises(CheckpointError, match="'hf' upstream"):
        from_transformers({"model_type": "whisper"})
    with pytest.raises(CheckpointError, match="relu"):
        from_fairseq({"activation_fn": "relu"}, None, "hubert")


def test_fairseq_options_of_data2vec_state_the_reach_of_all_position_convolutions() -> None:
    sizes = from_fairseq({"conv_pos": 95, "pos_conv_depth": 5, "extractor_mode": "layer_norm"}, None, "data2vec_audio")
    assert (sizes.position_kernel, sizes.position_depth, sizes.normalize) == (19, 5, True)


def test_conv_layers_are_read_and_not_evaluated() -> None:
    published = "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2"
    assert parse_conv_layers(published) == [(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2
    assert parse_conv_layers("[(8, 10, 5), (8, 3, 2)]") == [(8, 10, 5), (8, 3, 2)]
    for bad in ("__import__('os')", "[(8,3)]", "[(8,3,2)] * x", "[(8,3,2)", "", "[8,3,2]"):
        with pytest.raises(CheckpointError, match="Cannot read the conv layers"):
            parse_conv_layers(bad)


def test_an_unknown_preset_names_the_closest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'hubert_base'"):
        preset_config("hubert_bse")
