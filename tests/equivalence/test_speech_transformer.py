"""Every hidden state of the native speech transformer against transformers and torchaudio, from the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchaudio
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, PreTrainedModel

from mmssl.upstreams.speech_config import PRESETS, to_transformers
from mmssl.upstreams.speech_transformer import SpeechTransformer

TINY = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "conv_dim": [8, 12, 16],
    "conv_kernel": [10, 3, 2],
    "conv_stride": [5, 4, 2],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embedding_groups": 4,
}
POSITIONS = {"num_conv_pos_embeddings": 12}
STABLE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "wav2vec2 base": ("wav2vec2", POSITIONS),
    "wav2vec2 lv60": ("wav2vec2", POSITIONS | STABLE | {"conv_bias": True}),
    "hubert base": ("hubert", POSITIONS | {"num_conv_pos_embeddings": 7}),
    "hubert large": ("hubert", POSITIONS | STABLE),
    "distilhubert": ("hubert", POSITIONS | {"num_hidden_layers": 2, "feat_proj_layer_norm": False}),
    "wavlm base": ("wavlm", POSITIONS | {"num_buckets": 32, "max_bucket_distance": 40}),
    "wavlm large": ("wavlm", POSITIONS | STABLE | {"num_buckets": 32, "max_bucket_distance": 40}),
    "data2vec": ("data2vec-audio", {"conv_pos_kernel_size": 5, "num_conv_pos_embeddings": 4}),
    "unispeech-sat base": ("unispeech-sat", POSITIONS),
    "unispeech-sat large": ("unispeech-sat", POSITIONS | STABLE),
}
LEFT_OUT = ("hubert_xlarge", "wavlm_base_plus")
SHAPES = [n for n, sizes in PRESETS.items() if not (n.endswith("tiny") or n in LEFT_OUT or sizes.mel_bins)]


def peer(model_type: str, **values: Any) -> PreTrainedModel:
    """A transformers model with random weights whose norms, biases and gates are not at their neutral start."""
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(model_type, **values)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 or "gru_rel_pos" in name or "original0" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3 * parameter.abs().mean().clamp(min=0.3))
            if "rel_attn_embed" in name:
                parameter.normal_()
    return model


def peer_states(model: PreTrainedModel, clip: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return [h[0] for h in model(clip[None], output_hidden_states=True).hidden_states]


def assert_same(ours: SpeechTransformer, clip: torch.Tensor, theirs: list[torch.Tensor]) -> None:
    with torch.no_grad():
        fast = ours.extract_packed([clip, clip[: len(clip) // 2]])[0]["audio"].hidden_states
    plain = ours.extract_packed([clip.clone().requires_grad_()])[0]["audio"].hidden_states
    for states in (fast, plain):
        assert len(states) == len(theirs)
        for k, (a, b) in enumerate(zip(states, theirs, strict=True)):
            assert (a - b).abs().max() <= 1e-5 * b.abs().max(), f"layer {k}"


@pytest.mark.parametrize("case", FAMILIES)
def test_tiny_models_of_every_family(case: str, tmp_path: Path) -> None:
    model_type, values = FAMILIES[case]
    theirs = peer(model_type, **(TINY | values))
    theirs.save_pretrained(tmp_path)
    ours = SpeechTransformer(checkpoint=str(tmp_path), normalize=False).eval()
    clip = torch.randn(4321) * 0.1
    assert_same(ours, clip, peer_states(theirs, clip))
    if ours.config.layer_norm_first:
        with torch.no_grad():
            last = theirs(clip[None]).last_hidden_state[0]
            finished = ours.encoder.finish(ours.extract_packed([clip])[0]["audio"].hidden_states[-1])
        assert torch.allclose(finished, last, atol=1e-5 * float(last.abs().max()))


@pytest.mark.parametrize("case", FAMILIES)
def test_what_is_written_loads_in_transformers_with_equal_outputs(case: str, tmp_path: Path) -> None:
    model_type, values = FAMILIES[case]
    peer(model_type, **(TINY | values)).save_pretrained(tmp_path / "a")
    ours = SpeechTransformer(checkpoint=str(tmp_path / "a"), normalize=True).eval().requires_grad_(False)
    ours.save_transformers(tmp_path / "b")
    theirs, info = AutoModel.from_pretrained(tmp_path / "b", output_loading_info=True)
    assert not any(info.values()), info
    clip = torch.randn(3000) * 0.1 + 0.02
    prepare = AutoFeatureExtractor.from_pretrained(tmp_path / "b")
    prepared = prepare(clip.numpy(), sampling_rate=16000, return_tensors="pt").input_values
    with torch.no_grad():
        states = theirs.eval()(prepared, output_hidden_states=True).hidden_states
    for a, b in zip(ours.extract_packed([clip])[0]["audio"].hidden_states, states, strict=True):
        assert (a - b[0]).abs().max() <= 1e-5 * b.abs().max()


def test_bin_files_and_shards(tmp_path: Path) -> None:
    theirs = peer("hubert", **(TINY | POSITIONS))
    clip = torch.randn(3000)
    state = theirs.state_dict()
    names = list(state)
    theirs.config.save_pretrained(tmp_path)
    shards = {"pytorch_model-1.bin": names[::2], "pytorch_model-2.bin": names[1::2]}
    for shard, part in shards.items():
        # old files spell weight norm the old way, and models with a head carry a prefix
        old = {n.replace("parametrizations.weight.original0", "weight_g"): state[n] for n in part}
        old = {n.replace("parametrizations.weight.original1", "weight_v"): t for n, t in old.items()}
        torch.save({f"hubert.{n}": t for n, t in old.items()} | {"lm_head.weight": torch.ones(2)}, tmp_path / shard)
    index = {"weight_map": {n: shard for shard, part in shards.items() for n in part}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    ours = SpeechTransformer(checkpoint=str(tmp_path), normalize=False).eval()
    assert_same(ours, clip, peer_states(theirs, clip))


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("wavlm", [False, True])
def test_torchaudio_state_dicts(large: bool, wavlm: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shared: dict[str, Any] = {
        "extractor_mode": "layer_norm" if large else "group_norm",
        "extractor_conv_layer_config": [(8, 10, 5)] + [(8, 3, 2)] * 4 + [(8, 2, 2)] * 2,
        "extractor_conv_bias": False,
        "encoder_embed_dim": 128,
        "encoder_projection_dropout": 0.0,
        "encoder_pos_conv_kernel": 8,
        "encoder_pos_conv_groups": 4,
        "encoder_num_layers": 2,
        "encoder_num_heads": 2,
        "encoder_attention_dropout": 0.0,
        "encoder_ff_interm_features": 32,
        "encoder_ff_interm_dropout": 0.0,
        "encoder_dropout": 0.0,
        "encoder_layer_norm_first": large,
        "encoder_layer_drop": 0.0,
        "aux_num_out": 5,
    }
    if wavlm:
        peer_model = torchaudio.models.wavlm_model(**shared, encoder_num_buckets=320, encoder_max_distance=800)
    else:
        peer_model = torchaudio.models.wav2vec2_model(**shared)
    peer_model.eval()
    torch.save(peer_model.state_dict(), tmp_path / "model.pt")
    preset = ("wavlm_" if wavlm else "hubert_") + ("large" if large else "base")
    ours = (
        SpeechTransformer(preset, checkpoint=str(tmp_path / "model.pt"), normalize=False).eval().requires_grad_(False)
    )
    clip = torch.randn(4000) * 0.1
    with torch.no_grad():
        theirs = peer_model.extract_features(clip[None])[0]
    states = ours.extract_packed([clip])[0]["audio"].hidden_states[1:]
    for a, b in zip(states, theirs, strict=True):
        assert (a - b[0]).abs().max() <= 1e-5 * b.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_published_shapes(name: str, tmp_path: Path) -> None:
    values = to_transformers(PRESETS[name])
    theirs = peer(**values)
    theirs.save_pretrained(tmp_path)
    ours = SpeechTransformer(checkpoint=str(tmp_path), normalize=False).eval().requires_grad_(False)
    clip = torch.randn(20000) * 0.1
    assert_same(ours, clip, peer_states(theirs, clip))
