from __future__ import annotations

import copy
import json
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch

from mmssl import load_upstream
from mmssl.errors import CheckpointError, ConfigError, InputError
from mmssl.upstreams.catalog import CATALOG, MODALITIES
from mmssl.upstreams.hf import FAMILIES

TINY = {
    "model_type": "hubert",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": [8, 8],
    "conv_kernel": [10, 4],
    "conv_stride": [8, 4],
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    load_upstream("hf", config=TINY).model.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("kwargs", "part"),
    [
        ({}, "neither"),
        ({"path": "x", "config": TINY}, "both"),
        ({"config": {"hidden_size": 16}}, "no model type None"),
        ({"config": TINY | {"model_type": "huber"}}, "Did you mean 'hubert'"),
        ({"config": TINY | {"hiden_size": 16}}, "Did you mean 'hidden_size'"),
        ({"config": TINY | {"conv_kernel": [10]}}, "refused"),
        ({"config": TINY, "dtype": "int8"}, "float16"),
        ({"config": TINY, "attn_implementation": "fast"}, "sdpa, eager"),
        ({"config": {"model_type": "wav2vec2-bert", "feature_projection_input_dim": 161}}, "even"),
        ({"config": {"model_type": "whisper"}, "do_normalize": True}, "do_normalize"),
    ],
)
def test_wrong_arguments_are_named(kwargs: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        load_upstream("hf", **kwargs)


def test_weights_follow_the_seed_and_nothing_else() -> None:
    waveform = torch.randn(1, 2000, generator=torch.Generator().manual_seed(0))

    def last(seed: int) -> torch.Tensor:
        torch.rand(3)  # the global generator moves on between two loads
        return load_upstream("hf", seed=seed, config=MappingProxyType(TINY))(waveform)["audio"].hidden_states[-1]

    assert torch.equal(last(1), last(1))
    assert not torch.equal(last(1), last(2))


def test_training_mode_drops_no_layer_and_masks_nothing() -> None:
    config = TINY | {"layerdrop": 1.0, "mask_time_prob": 0.9, "hidden_dropout": 0.0, "attention_dropout": 0.0}
    config |= {"activation_dropout": 0.0, "feat_proj_dropout": 0.0}
    upstream = load_upstream("hf", config=config)
    waveform = 0.1 * torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
    expected = upstream(waveform)["audio"]
    upstream.train()
    found = upstream(waveform)["audio"]
    assert len(found) == 3
    assert all(torch.equal(a, b) for a, b in zip(expected.hidden_states, found.hidden_states, strict=True))


def test_a_copy_computes_the_same() -> None:
    upstream = load_upstream("hf", config=TINY)
    waveforms, lengths = torch.randn(2, 2000), torch.tensor([2000, 700])
    a, b = upstream(waveforms, lengths)["audio"], copy.deepcopy(upstream)(waveforms, lengths)["audio"]
    assert torch.equal(a.hidden_states[-1], b.hidden_states[-1])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_implementations_agree(attention: str) -> None:
    waveforms, lengths = 0.1 * torch.randn(2, 4000), torch.tensor([4000, 1500])
    default = load_upstream("hf", config=TINY)(waveforms, lengths)["audio"].hidden_states[-1]
    other = load_upstream("hf", config=TINY, attn_implementation=attention)(waveforms, lengths)["audio"].hidden_states[
        -1
    ]
    assert torch.allclose(default, other, atol=1e-5)


def test_normalisation_makes_features_independent_of_gain_and_offset(folder: Path) -> None:
    waveform = 0.1 * torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
    changed = 0.3 * waveform + 0.2

    def difference(**kwargs: Any) -> float:
        upstream = load_upstream("hf", path=str(folder), **kwargs)
        a, b = (upstream(x)["audio"].hidden_states[-1] for x in (waveform, changed))
        return float((a - b).abs().max())

    assert difference() > 1e-2  # feat_extract_norm is "group" and there is no preprocessor_config.json
    assert difference(do_normalize=True) < 1e-3
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True, "sampling_rate": 8000}))
    assert difference() < 1e-3
    assert difference(do_normalize=False) > 1e-2
    assert load_upstream("hf", path=str(folder)).spec.sample_rate == 8000


def test_half_precision_checkpoints_are_loaded_as_float32(folder: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    load_upstream("hf", path=str(folder), dtype="float16").model.save_pretrained(half)
    assert load_upstream("hf", path=str(half)).dtype == torch.float32
    assert load_upstream("hf", path=str(half), dtype="bfloat16").dtype == torch.bfloat16


def test_folders_that_do_not_serve_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_upstream("hf", path=str(tmp_path / "absent"))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_upstream("hf", path=str(empty))
    config = json.loads((folder / "config.json").read_text())
    (empty / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_upstream("hf", path=str(empty))
    (empty / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_upstream("hf", path=str(empty))
    (empty / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with pytest.raises(ConfigError, match="no model type 'bert'"):
        load_upstream("hf", path=str(empty))


def test_incomplete_truncated_and_misfit_weights_are_refused(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = folder / "model.safetensors"
    whole, state = weights.read_bytes(), load_file(weights)
    save_file({k: v for k, v in state.items() if "layers.1." not in k}, weights, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lack \d+ tensors"):
        load_upstream("hf", path=str(folder))
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_upstream("hf", path=str(folder))
    weights.write_bytes(whole)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 32}))
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_upstream("hf", path=str(folder))


def test_a_pickle_that_runs_code_is_refused(folder: Path, tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "owned",))

    (folder / "model.safetensors").unlink()
    torch.save({"x": Malicious()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError):
        load_upstream("hf", path=str(folder))
    assert not (tmp_path / "owned").exists()


def test_an_unreachable_hub_name_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*args: Any, **kwargs: Any) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        CheckpointError, match=r"hf download facebook/hubert-base-ls960 .*--local-dir hubert-base-ls960"
    ):
        load_upstream("hf", path="facebook/hubert-base-ls960")


def test_a_hub_name_in_the_cache_is_used(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    import huggingface_hub

    def cached(name: str, *, local_files_only: bool = False, **kwargs: Any) -> str:
        assert (name, local_files_only) == ("someone/model", True)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    assert load_upstream("hf", path="someone/model").spec.streams["audio"].num_layers == 3


def test_whisper_refuses_more_than_its_window() -> None:
    config = {"model_type": "whisper", "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2}
    config |= {"encoder_ffn_dim": 8, "decoder_layers": 1, "decoder_ffn_dim": 8, "decoder_attention_heads": 2}
    config |= {"max_source_positions": 50, "vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config |= {"decoder_start_token_id": 3}
    upstream = load_upstream("hf", config=config)
    assert upstream(torch.zeros(1, 16000))["audio"].lengths[0].tolist() == [50]
    with pytest.raises(InputError, match="at most 16000"):
        upstream(torch.zeros(1, 16001))


def test_the_catalogue_is_complete_and_true() -> None:
    from mmssl.registry import UPSTREAMS

    assert set(CATALOG) == set(UPSTREAMS.builtins), (
        "add a row to mmssl/upstreams/catalog.py for every built-in upstream"
    )
    assert set(CATALOG["hf"].families) == set(FAMILIES)
    for name in ("fbank", "mfcc", "mel", "spectrogram"):
        (size,) = load_upstream(name).spec.streams["audio"].hidden_sizes
        assert CATALOG[name].sizes == f"1 layer of {size}"
    assert all(set(entry.modalities) <= set(MODALITIES) for entry in CATALOG.values())
    assert all(family.invariance for family in FAMILIES.values())
