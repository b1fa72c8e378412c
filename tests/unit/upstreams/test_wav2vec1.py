from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmssl import load_upstream
from mmssl.errors import CheckpointError, ConfigError
from mmssl.upstreams.wav2vec1 import Wav2Vec1


def test_presets_have_the_papers_layers() -> None:
    with torch.device("meta"):
        large, base = Wav2Vec1(), Wav2Vec1("wav2vec_base")
    assert large.spec.streams["audio"].hidden_sizes == (512,) * 13
    assert base.spec.streams["audio"].hidden_sizes == (512,) * 10
    assert large.spec.min_length == base.spec.min_length == 465
    # 30 ms and 210 ms, then 810 ms of context in all (section 4.2)
    reach = sum(context.reach for context in large.aggregator)
    assert (reach * 160 + 465) / 16000 == pytest.approx(0.809, abs=1e-3)


def test_the_context_looks_back_only() -> None:
    upstream = load_upstream("wav2vec1", channels=6, aggregator_kernels=[2, 4])
    x = torch.randn(1, 6, 20, generator=torch.Generator().manual_seed(0))
    y = x.clone()
    y[..., 12:] += 1.0
    conv = upstream.aggregator[1]
    padded = [torch.nn.functional.pad(v, (conv.reach, 0), mode=conv.mode) for v in (x, y)]
    before, after = (conv.block.conv(v) for v in padded)
    assert torch.equal(before[..., :12], after[..., :12])
    assert not torch.equal(before[..., 12:], after[..., 12:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vq_type": "gumbel"}, "vq_type = 'gumbel'"),
        ({"aggregator": "gru"}, "aggregator = 'gru'"),
        ({"skip_connections_feat": True}, "skip_connections_feat"),
        ({"conv_aggregator_layers": "[(8, 3, 2)]"}, "strides of 1"),
        ({"conv_feature_layers": "__import__('os')"}, "conv layers"),
    ],
)
def test_variants_are_refused_by_name(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    path = tmp_path / "x.pt"
    torch.save({"args": options, "model": {"a": torch.ones(1)}}, path)
    with pytest.raises(CheckpointError, match=message):
        load_upstream("wav2vec1", checkpoint=str(path))


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'wav2vec_large'"):
        load_upstream("wav2vec1", preset="wav2vec_larg")
    with pytest.raises(ConfigError, match="sizes come from the checkpoint"):
        load_upstream("wav2vec1", checkpoint="x.pt", channels=4)
    with pytest.raises(ConfigError, match="at least 1"):
        load_upstream("wav2vec1", channels=4, aggregator_kernels=[])
