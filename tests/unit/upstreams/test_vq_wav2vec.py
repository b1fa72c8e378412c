from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmssl import load_upstream
from mmssl.errors import CheckpointError, ConfigError
from mmssl.upstreams.vq_wav2vec import VqWav2Vec

TINY: dict[str, Any] = {"channels": 8, "aggregator_kernels": [2, 3], "num_entries": 5}


def clip(samples: int = 4000) -> torch.Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("preset", ["vq_wav2vec_kmeans", "vq_wav2vec_gumbel"])
def test_presets_have_the_papers_sizes(preset: str) -> None:
    with torch.device("meta"):
        upstream = VqWav2Vec(preset)
    assert upstream.spec.streams["audio"].hidden_sizes == (512,) * 14
    assert upstream.spec.min_length == 465
    state = upstream.tokenizer.quantizer.state_dict()
    entries = state["entries"].shape
    assert entries == ((320, 1, 256) if "kmeans" in preset else (320, 256))
    shapes = [tuple(state[name].shape) for name in state if name.startswith("logits") and "weight" in name]
    assert shapes == ([] if "kmeans" in preset else [(1024, 512), (640, 1024)])


@pytest.mark.parametrize("preset", ["vq_wav2vec_kmeans", "vq_wav2vec_gumbel"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_codes_do_not_depend_on_the_type(preset: str, dtype: torch.dtype) -> None:
    upstream = load_upstream("vq_wav2vec", preset=preset, **TINY)
    assert isinstance(upstream, VqWav2Vec)
    before = upstream.codes([clip()])[0]
    upstream.to(dtype)
    assert upstream.dtype == dtype
    assert upstream.tokenizer.encoder[0].conv.weight.dtype == torch.float32
    assert torch.equal(upstream.codes([clip()])[0], before)
    assert len(before.unique()) > 1


@pytest.mark.parametrize("preset", ["vq_wav2vec_kmeans", "vq_wav2vec_gumbel"])
def test_a_gradient_changes_no_value(preset: str) -> None:
    upstream = load_upstream("vq_wav2vec", preset=preset, **TINY)
    assert isinstance(upstream, VqWav2Vec)
    plain = upstream.tokenizer(clip())
    waveform = clip().requires_grad_()
    asked = upstream.tokenizer(waveform)
    assert torch.equal(plain.values, asked.values)
    asked.values.square().sum().backward()
    assert waveform.grad is not None
    assert bool(waveform.grad.any())


def test_a_quantized_frame_is_a_pair_of_entries() -> None:
    upstream = load_upstream("vq_wav2vec", **TINY)
    assert isinstance(upstream, VqWav2Vec)
    coded = upstream.tokenizer(clip())
    book = upstream.tokenizer.quantizer.entries[:, 0]
    assert torch.equal(coded.values.unflatten(1, (2, 4)), book[coded.codes])
    assert torch.equal(coded.scores.argmax(-1), coded.codes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vq_type": "none"}, "load it as wav2vec1"),
        ({"vq_type": "other"}, "vq_type = 'other'"),
        ({"vq_type": "kmeans", "vq_dim": 8}, "not 8"),
        ({"vq_type": "gumbel", "vq_groups": 3}, "groups divide"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    path = tmp_path / "x.pt"
    torch.save({"args": options, "model": {"a": torch.ones(1)}}, path)
    with pytest.raises((CheckpointError, ConfigError), match=message):
        load_upstream("vq_wav2vec", checkpoint=str(path))


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ConfigError, match="Known: vq_wav2vec_kmeans, vq_wav2vec_gumbel"):
        load_upstream("vq_wav2vec", preset="wav2vec_large")
    with pytest.raises(ConfigError, match="sizes come from the vq-wav2vec checkpoint"):
        load_upstream("vq_wav2vec", checkpoint="x.pt", num_entries=4)
