from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmssl import load_upstream
from mmssl.errors import ConfigError
from mmssl.upstreams.exported import export_upstream

SIZES = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "feed_forward_size": 24}


def waveforms(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(len(lengths), max(lengths), generator=generator) - 0.5, torch.tensor(lengths)


@pytest.mark.parametrize("join", ["concat", "mean"])
def test_steps_are_the_patches_side_by_side_or_their_mean(join: str) -> None:
    plain = load_upstream("audio_mae", num_mel_bins=32, **SIZES)
    steps = load_upstream("time_steps", upstream="audio_mae", join=join, num_mel_bins=32, **SIZES)
    given = waveforms(16000, 8000)
    tokens, joined = plain(*given)["audio"], steps(*given)["audio"]
    for k, (before, after) in enumerate(zip(tokens.hidden_states, joined.hidden_states, strict=True)):
        for clip in range(2):
            rows = before[clip, : int(tokens.lengths[k][clip])].numpy()
            low, high = rows[0::2], rows[1::2]
            expected = np.concatenate([low, high], axis=1) if join == "concat" else (low + high) / 2
            count = int(joined.lengths[k][clip])
            assert count == len(expected) == int(steps.output_lengths(given[1], "audio", k)[clip])
            np.testing.assert_allclose(after[clip, :count].numpy(), expected, rtol=0, atol=1e-7)
            assert not after[clip, count:].any()
    assert steps.spec.streams["audio"].hidden_sizes == ((32,) * 3 if join == "concat" else (16,) * 3)
    assert steps.spec.streams["audio"].tokens_per_frame == 1
    assert steps.spec.streams["audio"].hop_lengths == plain.spec.streams["audio"].hop_lengths


def test_a_stream_of_one_token_for_each_step_stays() -> None:
    arguments: dict[str, Any] = SIZES | {"image_size": 32, "pad_last": True}
    plain = load_upstream("hicmae", **arguments)
    steps = load_upstream("time_steps", upstream="hicmae", **arguments)
    sound, lengths = waveforms(16000)
    video = torch.rand(1, 6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    given: dict[str, Any] = {"waveforms": sound, "lengths": lengths, "video": video}
    before, after = plain(**given), steps(**given)
    assert plain.spec.streams["fusion"].tokens_per_frame == 1
    assert all(
        torch.equal(a, b) for a, b in zip(before["fusion"].hidden_states, after["fusion"].hidden_states, strict=True)
    )
    assert steps.spec.streams["video"].hidden_sizes[-1] == 16 * plain.spec.streams["video"].tokens_per_frame


def test_an_exported_folder(tmp_path: Path) -> None:
    encoder = load_upstream("audio_mae", seed=5, **SIZES)
    export_upstream(encoder, tmp_path / "e", "audio_mae", SIZES)
    given = waveforms(9000)
    expected = encoder(*given)["audio"].hidden_states[-1].reshape(1, -1, 8 * 16)
    found = load_upstream("time_steps", upstream=str(tmp_path / "e"))(*given)["audio"].hidden_states[-1]
    assert torch.equal(found, expected)


def test_the_seed_draws_its_weights() -> None:
    given = waveforms(9000)
    first, again, other = (
        load_upstream("time_steps", seed=seed, upstream="audio_mae", **SIZES)(*given)["audio"].hidden_states[-1]
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_what_it_cannot_join_is_refused() -> None:
    with pytest.raises(ConfigError, match="concat, mean, got 'sum'"):
        load_upstream("time_steps", upstream="audio_mae", join="sum")
    with pytest.raises(ConfigError, match="mel has no stream with several tokens"):
        load_upstream("time_steps", upstream="mel")
