"""Files of fairseq, WavLM, S3PRL and DistilHuBERT, made here from random transformers weights under their names."""

from __future__ import annotations

import argparse
import re
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel

from mmssl import load_upstream
from mmssl.errors import CheckpointError, ConfigError

SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "conv_dim": [8, 8, 16],
    "conv_kernel": [10, 3, 3],
    "conv_stride": [5, 2, 2],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embedding_groups": 4,
}
OPTIONS = {
    "extractor_mode": "default",
    "encoder_layers": 2,
    "encoder_embed_dim": 24,
    "encoder_ffn_embed_dim": 40,
    "encoder_attention_heads": 3,
    "activation_fn": "gelu",
    "conv_feature_layers": "[(8,10,5)] + [(8,3,2)] + [(16,3,2)]",
    "conv_bias": False,
    "conv_pos": 12,
    "conv_pos_groups": 4,
    "layer_norm_first": False,
    "dropout_input": 0.1,
}
LARGE = {"extractor_mode": "layer_norm", "layer_norm_first": True}
FAIRSEQ = [
    (r"^feature_extractor\.conv_layers\.(\d+)\.conv\.", r"feature_extractor.conv_layers.\1.0."),
    (r"^feature_projection\.projection\.", "post_extract_proj."),
    (r"^feature_projection\.layer_norm\.", "layer_norm."),
    (r"^masked_spec_embed$", "mask_emb"),
    (r"^encoder\.pos_conv_embed\.conv\.", "encoder.pos_conv.0."),
    (r"^encoder\.pos_conv_embed\.layers\.(\d+)\.conv\.", r"encoder.pos_conv.\1.0."),
    (r"parametrizations\.weight\.original0$", "weight_g"),
    (r"parametrizations\.weight\.original1$", "weight_v"),
    (r"\.attention\.gru_rel_pos_linear\.", ".self_attn.grep_linear."),
    (r"\.attention\.gru_rel_pos_const$", ".self_attn.grep_a"),
    (r"\.attention\.rel_attn_embed\.", ".self_attn.relative_attention_bias."),
    (r"(layers\.\d+)\.attention\.", r"\1.self_attn."),
    (r"(encoder\.layers\.\d+)\.layer_norm\.", r"\1.self_attn_layer_norm."),
    (r"\.feed_forward\.intermediate_dense\.", ".fc1."),
    (r"\.feed_forward\.output_dense\.", ".fc2."),
]


def peer(model_type: str, **values: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    positions = {} if model_type == "data2vec-audio" else {"num_conv_pos_embeddings": 12}
    return AutoModel.from_config(AutoConfig.for_model(model_type, **(SIZES | positions | values))).eval()


def fairseq_names(model: PreTrainedModel) -> OrderedDict[str, Tensor]:
    norm = ".2.1." if getattr(model.config, "feat_extract_norm", "layer") == "layer" else ".2."
    named: OrderedDict[str, Tensor] = OrderedDict()
    for name, tensor in model.state_dict().items():
        name = re.sub(r"^(feature_extractor\.conv_layers\.\d+)\.layer_norm\.", rf"\1{norm}", name)
        for pattern, replacement in FAIRSEQ:
            name = re.sub(pattern, replacement, name)
        named[name] = tensor
    return named


def assert_same(path: Path, theirs: PreTrainedModel, name: str, **kwargs: Any) -> Any:
    ours = load_upstream(name, checkpoint=str(path), **({"normalize": False} | kwargs))
    clip = torch.randn(3000) * 0.1
    with torch.no_grad():
        states = theirs(clip[None], output_hidden_states=True).hidden_states
    for a, b in zip(ours.extract_packed([clip])[0]["audio"].hidden_states, states, strict=True):
        assert (a - b[0]).abs().max() <= 1e-5 * b.abs().max()
    return ours


@pytest.fixture
def dictionary(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An instance of a class of fairseq, which is not installed when the file is read."""
    module = types.ModuleType("fairseq.data.dictionary")
    kind = type("Dictionary", (), {"__module__": "fairseq.data.dictionary"})
    module.Dictionary = kind  # type: ignore[attr-defined]
    for name in ("fairseq", "fairseq.data"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "fairseq.data.dictionary", module)
    return kind()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("large", [False, True])
def test_fairseq_hubert_with_its_dictionary(tmp_path: Path, zipped: bool, large: bool, dictionary: Any) -> None:
    stable = {"feat_extract_norm": "layer", "do_stable_layer_norm": True} if large else {}
    theirs = peer("hubert", **stable)
    model = fairseq_names(theirs)
    model |= {
        "label_embs_concat": torch.ones(5, 4),
        "final_proj.weight": torch.ones(4, 24),
        "final_proj.bias": torch.ones(4),
    }
    content = {
        "args": None,
        "cfg": {"model": OPTIONS | (LARGE if large else {}), "task": {"normalize": large}, "common": {"seed": 1}},
        "model": model,
        "task_state": {"dictionaries": [dictionary]},
        "optimizer_history": [{"num_updates": 3}],
    }
    torch.save(content, tmp_path / "hubert.pt", _use_new_zipfile_serialization=zipped)
    ours = assert_same(tmp_path / "hubert.pt", theirs, "hubert", preset="hubert_base")
    assert ours.config.family == "hubert"
    assert load_upstream("hubert", checkpoint=str(tmp_path / "hubert.pt")).config.normalize is large


def test_fairseq_wav2vec2_with_the_old_namespace(tmp_path: Path) -> None:
    theirs = peer("wav2vec2")
    model = fairseq_names(theirs) | {"quantizer.vars": torch.ones(1, 4, 2), "project_q.weight": torch.ones(2, 2)}
    torch.save({"args": argparse.Namespace(**OPTIONS, normalize=False), "cfg": None, "model": model}, tmp_path / "w.pt")
    assert_same(tmp_path / "w.pt", theirs, "wav2vec2")


def test_fairseq_fine_tuned(tmp_path: Path) -> None:
    theirs = peer("wav2vec2")
    model = {f"w2v_encoder.w2v_model.{n}": t for n, t in fairseq_names(theirs).items()}
    model |= {"w2v_encoder.proj.weight": torch.ones(3, 24), "w2v_encoder.proj.bias": torch.ones(3)}
    inner = {"model": OPTIONS, "task": {"normalize": True}}
    content = {
        "args": None,
        "cfg": {"model": {"w2v_args": inner, "normalize": True}, "task": {"normalize": True}},
        "model": model,
    }
    torch.save(content, tmp_path / "w.pt")
    ours = assert_same(tmp_path / "w.pt", theirs, "wav2vec2")
    assert load_upstream("wav2vec2", checkpoint=str(tmp_path / "w.pt")).config.normalize
    assert ours.config.feature_dropout == 0.1


@pytest.mark.parametrize("large", [False, True])
def test_wavlm_with_its_flat_options(tmp_path: Path, large: bool) -> None:
    stable = {"feat_extract_norm": "layer", "do_stable_layer_norm": True} if large else {}
    theirs = peer("wavlm", num_buckets=32, max_bucket_distance=40, **stable)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "rel" in name:
                parameter.normal_()
    options = OPTIONS | {
        "relative_position_embedding": True,
        "num_buckets": 32,
        "max_distance": 40,
        "gru_rel_pos": True,
    }
    options |= (LARGE if large else {}) | {"normalize": large}
    torch.save({"cfg": options, "model": fairseq_names(theirs)}, tmp_path / "wavlm.pt")
    assert_same(tmp_path / "wavlm.pt", theirs, "wavlm")


def test_data2vec_with_its_teacher(tmp_path: Path) -> None:
    theirs = peer("data2vec-audio", conv_pos_kernel_size=5, num_conv_pos_embeddings=4)
    model = fairseq_names(theirs)
    options = OPTIONS | {"extractor_mode": "layer_norm", "conv_pos": 20, "pos_conv_depth": 4}
    content = {"cfg": {"model": options, "task": {"normalize": True}}, "model": model | {"_ema": dict(model)}}
    torch.save(content, tmp_path / "d.pt")
    ours = assert_same(tmp_path / "d.pt", theirs, "data2vec_audio")
    assert (ours.config.position_depth, ours.config.position_kernel) == (4, 5)


def test_converted_by_s3prl(tmp_path: Path) -> None:
    theirs = peer("hubert")
    content = {"task_cfg": {"normalize": True}, "model_cfg": OPTIONS, "model_weight": fairseq_names(theirs)}
    torch.save(content, tmp_path / "h.pt")
    assert_same(tmp_path / "h.pt", theirs, "hubert")
    assert load_upstream("hubert", checkpoint=str(tmp_path / "h.pt")).config.normalize


def test_distilhubert_of_s3prl(tmp_path: Path) -> None:
    theirs = peer("hubert", feat_proj_layer_norm=False)
    options = {k: v for k, v in OPTIONS.items() if k != "conv_feature_layers"}
    options["extractor_conv_feature_layers"] = OPTIONS["conv_feature_layers"]
    weights = fairseq_names(theirs) | {"output_layer.0.weight": torch.ones(2, 2)}
    torch.save({"Distiller": weights, "Config": {"distiller": options}}, tmp_path / "d.ckpt")
    ours = assert_same(tmp_path / "d.ckpt", theirs, "distilhubert")
    assert ours.feature_norm is None


@pytest.mark.parametrize("count", [1, 3])
def test_the_heads_of_distilhubert(tmp_path: Path, count: int, caplog: pytest.LogCaptureFixture) -> None:
    theirs = peer("hubert", feat_proj_layer_norm=False)
    size, inner, outer = theirs.config.hidden_size, 5, 7
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    heads = {"output_layer.0.weight": draw(count * inner, size), "output_layer.0.bias": draw(count * inner)}
    if count == 1:
        heads |= {"output_layer.2.layer.weight": draw(outer, inner), "output_layer.2.layer.bias": draw(outer)}
    else:
        heads |= {"output_layer.2.weight": draw(count, inner, outer), "output_layer.2.bias": draw(1, 1, count, outer)}
    options = {k: v for k, v in OPTIONS.items() if k != "conv_feature_layers"}
    options["extractor_conv_feature_layers"] = OPTIONS["conv_feature_layers"]
    path = tmp_path / "d.ckpt"
    torch.save({"Distiller": fairseq_names(theirs) | heads, "Config": {"distiller": options}}, path)
    with caplog.at_level("INFO"):
        plain = load_upstream("distilhubert", checkpoint=str(path))
    assert "weights left out, 5, no part of the encoder: mask_emb, output_layer.0.weight" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO"):
        full = load_upstream("distilhubert", checkpoint=str(path), prediction_heads=True)
    assert "weights left out, 1, no part of the encoder: mask_emb\n" in caplog.text
    waveform = draw(1, 3000)
    default, found = plain(waveform)["audio"].hidden_states, full(waveform)["audio"].hidden_states
    assert full.spec.streams["audio"].hidden_sizes == (size,) * len(default) + (outer,) * count
    assert all(torch.equal(a, b) for a, b in zip(default, found, strict=False))
    # frame by frame, as S3PRL's `SplitLinear` says
    for head, prediction in enumerate(found[len(default) :]):
        part = slice(head * inner, (head + 1) * inner)
        for t, frame in enumerate(default[-1][0]):
            x = heads["output_layer.0.weight"][part] @ frame + heads["output_layer.0.bias"][part]
            x = 0.5 * x * (1 + torch.erf(x / 2**0.5))
            if count == 1:
                y = heads["output_layer.2.layer.weight"] @ x + heads["output_layer.2.layer.bias"]
            else:
                y = x @ heads["output_layer.2.weight"][head] + heads["output_layer.2.bias"][0, 0, head]
            torch.testing.assert_close(prediction[0, t], y, rtol=1e-4, atol=1e-5)


def test_heads_are_asked_for_where_there_are_none(tmp_path: Path) -> None:
    full = load_upstream("distilhubert", preset="distilhubert_tiny")
    full.save_transformers(tmp_path / "folder")
    with pytest.raises(CheckpointError, match=r"lacks output_layer\.0\.weight"):
        load_upstream("distilhubert", checkpoint=str(tmp_path / "folder"), prediction_heads=True)
    with pytest.raises(ConfigError, match="a hubert model has none"):
        load_upstream("hubert", preset="hubert_tiny", prediction_heads=True)


def test_no_projection_between_equal_widths(tmp_path: Path) -> None:
    theirs = peer("hubert", conv_dim=[8, 8, 24])
    with torch.no_grad():
        theirs.feature_projection.projection.weight.copy_(torch.eye(24))
        theirs.feature_projection.projection.bias.zero_()
    weights = {n: t for n, t in fairseq_names(theirs).items() if not n.startswith("post_extract_proj")}
    options = OPTIONS | {"conv_feature_layers": "[(8,10,5), (8,3,2), (24,3,2)]"}
    torch.save({"cfg": {"model": options}, "model": weights}, tmp_path / "h.pt")
    assert_same(tmp_path / "h.pt", theirs, "hubert")


def test_missing_and_unused_weights_are_all_listed(tmp_path: Path) -> None:
    weights = fairseq_names(peer("hubert"))
    del weights["encoder.layers.1.fc1.bias"], weights["layer_norm.weight"]
    weights["encoder.layers.0.self_attn.surprise"] = torch.ones(1)
    torch.save({"cfg": {"model": OPTIONS}, "model": weights}, tmp_path / "h.pt")
    with pytest.raises(CheckpointError) as raised:
        load_upstream("hubert", checkpoint=str(tmp_path / "h.pt"))
    message = str(raised.value)
    assert "Missing (2)" in message
    assert "Unused (1): encoder.layers.0.self_attn.surprise" in message
    assert "encoder.layers.1.fc1.bias" in message
    assert "layer_norm.weight" in message


def test_weights_of_other_sizes_than_stated(tmp_path: Path) -> None:
    options = OPTIONS | {"encoder_ffn_embed_dim": 48}
    torch.save({"cfg": {"model": options}, "model": fairseq_names(peer("hubert"))}, tmp_path / "h.pt")
    with pytest.raises(CheckpointError, match=r"other sizes than it states(.|\n)*expand\.weight"):
        load_upstream("hubert", checkpoint=str(tmp_path / "h.pt"))


@pytest.mark.parametrize("content", [{"a": torch.ones(2)}, {"epoch": 3}, {}, {"a": {"b": 1}}])
def test_files_of_something_else(tmp_path: Path, content: dict[str, Any]) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"x\.pt"):
        load_upstream("hubert", checkpoint=str(tmp_path / "x.pt"))


def test_a_hub_name_says_what_to_download() -> None:
    with pytest.raises(CheckpointError, match=r"download it first.*config\.json"):
        load_upstream("hubert", checkpoint="some-team/some-model")
