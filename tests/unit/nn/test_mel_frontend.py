"""Stacked log-mel frames: equal to torchaudio's, of whole stacks only, the clip's own and its level kept."""

from __future__ import annotations

import pytest
import torch
import torchaudio

from mmssl.errors import ConfigError
from mmssl.nn.mel_frontend import MelFrontEnd


def clip(size: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("bins", "stack"), [(40, 2), (8, 1), (8, 3)])
def test_it_equals_neighbouring_frames_of_torchaudio_side_by_side(bins: int, stack: int) -> None:
    waveform = clip(5003)
    mel = torchaudio.transforms.MelSpectrogram(
        16000, n_fft=400, hop_length=160, n_mels=bins, norm=None, mel_scale="htk"
    )
    frames = ((mel(waveform).T + 1e-6).log() + 5) / 5
    whole = len(frames) // stack
    expected = torch.stack([torch.cat([frames[stack * k + j] for j in range(stack)]) for k in range(whole)])
    front_end = MelFrontEnd(bins, stack)
    found = front_end([waveform])
    assert found.lengths == (whole,)
    assert front_end.output_size == bins * stack
    torch.testing.assert_close(found.data, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("stack", [1, 2, 4])
def test_lengths_are_as_announced_from_the_shortest_clip_on(stack: int) -> None:
    front_end = MelFrontEnd(8, stack)
    sizes = [front_end.min_length, front_end.min_length + 1, 640, 799, 800, 801, 16000]
    found = front_end([clip(size) for size in sizes])
    assert found.lengths == tuple(front_end.output_lengths(torch.tensor(sizes)).tolist())
    assert found.lengths[0] >= 1
    assert front_end.hop_length == 160 * stack


def test_a_clip_is_the_same_beside_others_and_louder_ones_are_higher() -> None:
    front_end = MelFrontEnd()
    alone = front_end([clip(4000)]).data
    beside = front_end([clip(9000, 1), clip(4000)]).split()[1]
    torch.testing.assert_close(beside, alone, rtol=0, atol=0)
    louder = front_end([10 * clip(4000)]).data
    # 20 dB are ln(100) = 4.6 in log power, here divided by 5
    assert (louder - alone).mean().item() == pytest.approx(4.605 / 5, abs=0.02)


def test_it_has_no_weights_and_wrong_sizes_are_explained() -> None:
    assert not list(MelFrontEnd().parameters())
    assert not MelFrontEnd().state_dict()
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        MelFrontEnd(0)
