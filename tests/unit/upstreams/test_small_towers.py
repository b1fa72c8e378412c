"""The small two towers: alone equals padded, exact lengths, and what is refused."""

from __future__ import annotations

import pytest
import torch

from mmssl.errors import ConfigError, InputError
from mmssl.upstreams.base import load_upstream

NAME = "mmssl.upstreams.small_towers.SmallTowers"


def test_a_sound_gives_the_same_alone_and_in_any_batch() -> None:
    upstream = load_upstream(NAME, width=16)
    lengths = torch.tensor([3000, 200, 1777])
    waveforms = 0.1 * torch.randn(3, 3000)
    dirty = waveforms.clone()
    dirty[1, 200:] = float("nan")
    dirty[2, 1777:] = 1e6
    with torch.no_grad():
        together = upstream(dirty, lengths)["audio"]
        for clip, size in enumerate(lengths.tolist()):
            alone = upstream(waveforms[clip : clip + 1, :size])["audio"]
            for layer in range(3):
                frames = int(upstream.output_lengths(lengths, "audio", layer)[clip])
                assert frames == int(together.lengths[layer][clip]) == alone[layer].data.shape[1] >= 1
                assert torch.allclose(together[layer].data[clip, :frames], alone[layer].data[0], atol=1e-5)


def test_loudness_makes_no_difference() -> None:
    upstream = load_upstream(NAME, width=16)
    sound = 0.3 * torch.randn(1, 2000)
    with torch.no_grad():
        loud, soft = (upstream(sound * gain)["audio"][-1].data for gain in (1.0, 0.3))
    assert torch.allclose(loud, soft, atol=2e-3)


def test_both_streams_and_their_sizes() -> None:
    upstream = load_upstream(NAME, width=16)
    with torch.no_grad():
        found = upstream(torch.randn(2, 900), video=torch.rand(2, 3, 3, 8, 8))
    for stream, spec in upstream.spec.streams.items():
        assert found[stream].hidden_sizes == spec.hidden_sizes
    assert found["video"][-1].data.shape == (2, 3, 16)


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of 8"):
        load_upstream(NAME, width=12)
    with pytest.raises(InputError, match="at least 200"):
        load_upstream(NAME, width=16)(torch.randn(1, 199))
