"""CAV-MAE and HiCMAE: streams from one input or both, lengths, and what is refused. test_mae.py has the numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmssl import load_upstream
from mmssl.errors import ConfigError, InputError
from mmssl.upstreams.base import Upstream

SIZES: dict[str, Any] = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "feed_forward_size": 24, "image_size": 32}
NAMES = ("cav_mae", "hicmae")


def inputs(frames: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return 0.1 * torch.randn(2, 12000, generator=generator), torch.rand(2, frames, 3, 32, 32, generator=generator)


def build(name: str, **kwargs: Any) -> Upstream:
    return load_upstream(name, **SIZES, **kwargs)


@pytest.mark.parametrize("name", NAMES)
def test_a_stream_does_not_depend_on_the_other_input(name: str) -> None:
    upstream = build(name)
    waveforms, video = inputs()
    both, audio, pictures = upstream(waveforms, video=video), upstream(waveforms), upstream(video=video)
    assert set(both) == {"audio", "video", "fusion"}
    assert (set(audio), set(pictures)) == ({"audio"}, {"video"})
    for stream, alone in (("audio", audio), ("video", pictures)):
        for a, b in zip(both[stream].hidden_states, alone[stream].hidden_states, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_the_fusion_sees_both(name: str) -> None:
    upstream = build(name)
    waveforms, video = inputs()
    reference = upstream(waveforms, video=video)["fusion"]
    tokens = upstream.output_lengths(torch.tensor([12000]), "audio") + upstream.output_lengths(
        torch.tensor([4]), "video"
    )
    assert reference.lengths[0].tolist() == [int(tokens)] * 2
    split = int(upstream.output_lengths(torch.tensor([12000]), "audio"))
    with_other_video = upstream(waveforms, video=1 - video)["fusion"].hidden_states
    with_other_audio = upstream(waveforms.flip(1), video=video)["fusion"].hidden_states
    assert torch.equal(with_other_video[0][:, :split], reference.hidden_states[0][:, :split])
    assert not torch.allclose(with_other_video[-1][:, :split], reference.hidden_states[-1][:, :split], atol=1e-4)
    assert torch.equal(with_other_audio[0][:, split:], reference.hidden_states[0][:, split:])
    assert not torch.allclose(with_other_audio[-1][:, split:], reference.hidden_states[-1][:, split:], atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_one_length_does_not_tell_that_of_the_fusion(name: str) -> None:
    with pytest.raises(InputError, match="length follows from both"):
        build(name).output_lengths(torch.tensor([12000]), "fusion")


@pytest.mark.parametrize("name", NAMES)
def test_as_many_videos_as_waveforms(name: str) -> None:
    waveforms, video = inputs()
    with pytest.raises(InputError, match="2 waveforms and 1 videos"):
        build(name)(waveforms, video=video[:1])


def test_pictures_of_cav_mae_do_not_see_each_other() -> None:
    upstream = build("cav_mae")
    _, video = inputs()
    together = upstream(video=video)["video"].hidden_states[-1]
    alone = upstream(video=video[:, 2:3])["video"].hidden_states[-1]
    assert torch.allclose(together[:, 2 * 4 : 3 * 4], alone, atol=1e-6)


def test_audio_of_a_fusion_is_averaged_over_pictures() -> None:
    upstream = build("cav_mae")
    waveforms, video = inputs(2)
    first, second, both = (
        upstream(waveforms, video=v)["fusion"].hidden_states[-1] for v in (video[:, :1], video[:, 1:], video)
    )
    audio = int(upstream.output_lengths(torch.tensor([12000]), "audio"))
    assert torch.allclose(both[:, :audio], (first[:, :audio] + second[:, :audio]) / 2, atol=1e-6)
    assert torch.allclose(both[:, audio:], torch.cat([first[:, audio:], second[:, audio:]], dim=1), atol=1e-6)


def test_hicmae_takes_at_least_a_slice_of_video() -> None:
    waveforms, video = inputs(1)
    with pytest.raises(InputError, match="at least 2 frames"):
        build("hicmae")(waveforms, video=video)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_sizes(name: str) -> None:
    with pytest.raises(ConfigError, match="image_size must be a multiple of the patch size 16, got 40"):
        load_upstream(name, **SIZES | {"image_size": 40})
    joint = {"cav_mae": "num_shared_layers", "hicmae": "num_fusion_layers"}[name]
    with pytest.raises(ConfigError, match=f"{joint} must be at least 1, got 0"):
        load_upstream(name, **SIZES | {joint: 0})
    with pytest.raises(ConfigError, match="num_heads"):
        load_upstream(name, **SIZES | {"num_heads": 5})


def test_published_hicmae_has_the_published_number_of_weights() -> None:
    # encoders and fusion; the decoder of pretraining is not there
    with torch.device("meta"):
        from mmssl.upstreams.hicmae import HiCMAE

        count = sum(p.numel() for p in HiCMAE().parameters())
    assert count == pytest.approx(81e6, rel=0.02)
