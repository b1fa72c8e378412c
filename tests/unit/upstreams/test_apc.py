from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmssl import load_upstream
from mmssl.errors import CheckpointError, ConfigError


def test_levels_add_their_input_from_the_second_on() -> None:
    with_residual = load_upstream("apc", hidden_size=5, num_mel_bins=20)
    without = load_upstream("apc", hidden_size=5, num_mel_bins=20, residual=False)
    waveforms = torch.randn(1, 3000, generator=torch.Generator().manual_seed(0)) * 0.1
    a, b = (u(waveforms)["audio"].hidden_states for u in (with_residual, without))
    torch.testing.assert_close(a[0], b[0])
    torch.testing.assert_close(a[1], b[1] + b[0])


def test_loudness_does_not_matter_but_silence_is_finite() -> None:
    upstream = load_upstream("apc", hidden_size=5, num_mel_bins=20)
    wave = torch.randn(1, 4000, generator=torch.Generator().manual_seed(0)) * 0.3
    loud, soft = (upstream(w)["audio"].hidden_states[-1] for w in (wave, wave * 0.5))
    torch.testing.assert_close(loud, soft, atol=1e-3, rtol=0)
    assert upstream(torch.zeros(1, 4000))["audio"].hidden_states[-1].isfinite().all()


def test_other_front_ends_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    state = {"rnn_layers.0.weight_ih_l0": torch.ones(15, 13)}
    torch.save({"config": {"data": {"audio": {"feat_type": "mfcc"}}}, "model": state}, path)
    with pytest.raises(CheckpointError, match="takes features 'mfcc'"):
        load_upstream("apc", checkpoint=str(path))
    torch.save({"model": {"lstm.weight": torch.ones(2, 2)}}, path)
    with pytest.raises(CheckpointError, match="no APC"):
        load_upstream("apc", checkpoint=str(path))
    with pytest.raises(ConfigError, match="at least one level"):
        load_upstream("apc", num_layers=0)
