from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmssl import load_upstream
from mmssl.errors import CheckpointError, ConfigError

TINY = {"channels": [3, 3, 4, 4, 5, 5, 6, 6], "recurrent_size": 7, "embedding_size": 4}


def test_the_shortest_clip_is_the_shortest_that_can_be_reflected() -> None:
    upstream = load_upstream("pase_plus", **TINY)
    shortest = upstream.spec.min_length
    assert upstream(torch.ones(1, shortest))["audio"].lengths[0].tolist() == [3]
    with pytest.raises(RuntimeError, match=r"[Pp]adding"):
        upstream.encode(torch.ones(1, shortest - 1))


def test_layers_are_the_convolutions_the_recurrent_layer_and_the_embedding() -> None:
    upstream = load_upstream("pase_plus", **TINY)
    stream = upstream.spec.streams["audio"]
    assert stream.hidden_sizes == (6, 7, 4)
    assert stream.hop_lengths == (160,) * 3
    assert upstream.output_lengths(torch.tensor([16000, 32000])).tolist() == [100, 200]


def test_seven_blocks_and_the_gru_variant_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="8 blocks"):
        load_upstream("pase_plus", channels=[4] * 7)
    torch.save({"rnn.weight_ih_l0": torch.ones(4, 4), "W.weight": torch.ones(4, 4, 1)}, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match="with a QRNN"):
        load_upstream("pase_plus", checkpoint=str(tmp_path / "x.ckpt"))
