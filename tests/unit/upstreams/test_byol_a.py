from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmssl import load_upstream
from mmssl.errors import CheckpointError, ConfigError
from mmssl.types import Padded
from mmssl.upstreams.byol_a import ByolA, max_plus_mean


def test_the_default_is_the_published_encoder() -> None:
    with torch.device("meta"):
        upstream = ByolA()
    # three convolutions with their norms, 512 x 2048 and 2048 x 2048
    assert round(sum(p.numel() for p in upstream.parameters()) / 1e6, 1) == 5.3
    assert upstream.spec.streams["audio"].hidden_sizes == (512, 2048, 2048)
    assert upstream.spec.frame_shift("audio") == 0.08


def test_pooling_takes_valid_frames_only() -> None:
    data = torch.tensor([[[1.0], [5.0], [100.0]], [[-3.0], [-1.0], [-2.0]]])
    pooled = max_plus_mean(Padded(data, torch.tensor([2, 3])))
    assert pooled[:, 0].tolist() == [5.0 + 3.0, -1.0 - 2.0]


def test_wrong_sizes_and_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="multiple of 8"):
        load_upstream("byol_a", num_mel_bins=60)
    with pytest.raises(ConfigError, match="std positive"):
        load_upstream("byol_a", std=0.0)
    torch.save({"conv.weight": torch.ones(2)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="no AudioNTT2020"):
        load_upstream("byol_a", checkpoint=str(tmp_path / "x.pth"))
    torch.save({"fc.0.weight": torch.ones(10, 512)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="has hidden_size = 10, 12 was asked for"):
        load_upstream("byol_a", hidden_size=12, checkpoint=str(tmp_path / "x.pth"))
