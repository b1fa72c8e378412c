from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmssl import load_upstream
from mmssl.errors import CheckpointError, ConfigError
from mmssl.upstreams.cpc import ChannelNorm


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_frames_do_not_depend_on_what_comes_later(cell: str) -> None:
    upstream = load_upstream("cpc", hidden_size=6, context_size=5, num_context_layers=2, cell=cell)
    assert upstream.spec.streams["audio"].hidden_sizes == (6, 5, 5)
    waveforms = torch.randn(1, 3200, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    upstream(waveforms)["audio"].hidden_states[-1][0, 9].square().sum().backward()
    gradient = waveforms.grad[0]
    assert gradient[: 9 * 160].any()
    # frame t is centred on 160 t + 79.5 and reads 232 samples to either side
    assert not gradient[9 * 160 + 80 + 233 :].any()


def test_channel_norm_standardises_over_channels() -> None:
    x = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0)) * 4 + 3
    out = ChannelNorm(7)(x)
    torch.testing.assert_close(out.mean(1), torch.zeros(2, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std(1, unbiased=True), torch.ones(2, 5), atol=1e-4, rtol=0)


def test_a_wrong_cell_and_another_network_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gru, lstm, rnn"):
        load_upstream("cpc", cell="transformer")
    torch.save({"weights": {"gEncoder.conv0.weight": torch.ones(4, 1, 10)}}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"no CPC .*gEncoder\.conv0\.weight"):
        load_upstream("cpc", checkpoint=str(tmp_path / "x.pt"))
    with pytest.raises(CheckpointError, match="no checkpoint file"):
        load_upstream("cpc", checkpoint=str(tmp_path / "absent.pt"))
