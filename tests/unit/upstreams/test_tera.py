from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmssl import load_upstream
from mmssl.errors import CheckpointError, ConfigError

TINY = {"hidden_size": 12, "num_layers": 2, "num_heads": 2, "feed_forward_size": 16, "num_mel_bins": 10}


def noise(samples: int) -> torch.Tensor:
    return torch.randn(1, samples, generator=torch.Generator().manual_seed(0)) * 0.1


def test_pieces_of_a_long_clip_do_not_see_each_other() -> None:
    whole, cut = (load_upstream("tera", **TINY, max_frames=frames) for frames in (0, 30))
    wave = noise(160 * 49)
    assert int(cut.output_lengths(torch.tensor([wave.shape[1]]))) == 50
    mel = cut.features(wave)
    changed = mel.clone()
    changed[:, 25:] += 1
    outputs = []
    for features in (mel, changed):
        cut.features = lambda _, features=features: features  # type: ignore[method-assign]
        outputs.append(cut.encode(wave)[-1])
    # 50 frames in pieces of at most 30 are two of 25
    assert torch.equal(outputs[0][:, :25], outputs[1][:, :25])
    assert not torch.allclose(whole.encode(wave)[-1][:, :25], outputs[0][:, :25], atol=1e-3)


def test_loudness_does_not_matter_and_silence_is_finite() -> None:
    upstream = load_upstream("tera", **TINY)
    a, b = (upstream(noise(4000) * gain)["audio"].hidden_states[-1] for gain in (1.0, 3.0))
    torch.testing.assert_close(a, b, atol=1e-4, rtol=0)
    assert upstream(torch.zeros(1, 4000))["audio"].hidden_states[-1].isfinite().all()


def test_mockingjay_is_deeper_and_takes_shorter_pieces() -> None:
    from mmssl.upstreams.tera import Mockingjay

    with torch.device("meta"):
        upstream = Mockingjay()
    assert len(upstream.encoder.blocks) == 12
    assert upstream.max_frames == 500
    assert upstream.encoder.layer_norm.eps == 1e-12


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(ConfigError, match="deltas must be 0 or 1"):
        load_upstream("tera", **TINY, deltas=2)
    with pytest.raises(ConfigError, match="num_heads must divide"):
        load_upstream("tera", **{**TINY, "num_heads": 5})


@pytest.mark.parametrize(
    ("transformer", "audio", "message"),
    [
        ({"share_layer": True}, {}, "layers of its own"),
        ({"pre_layer_norm": True}, {}, "layers of its own"),
        ({}, {"n_freq": 257}, "257"),
        ({}, {"input": {"feat_type": "linear", "log": True}}, "'linear'"),
        ({"hidden_act": "relu"}, {}, "'relu'"),
    ],
)
def test_variants_are_refused_by_name(
    tmp_path: Path, transformer: dict[str, Any], audio: dict[str, Any], message: str
) -> None:
    config = {
        "transformer": {"num_attention_heads": 2, "hidden_act": "gelu"} | transformer,
        "task": {"sequence_length": 0},
        "audio": {"win_ms": 25, "hop_ms": 10, "n_freq": 201, "n_mels": 10, "input": {"feat_type": "mel", "log": True}}
        | audio,
    }
    state = {
        "input_representations.spec_transform.weight": torch.ones(4, 10),
        "encoder.layer.0.intermediate.dense.weight": torch.ones(8, 4),
    }
    torch.save({"Config": config, "Transformer": state}, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=message):
        load_upstream("tera", checkpoint=str(tmp_path / "x.ckpt"))
