from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmssl import load_upstream
from mmssl.errors import CheckpointError, ConfigError, InputError
from mmssl.testing import assert_upstream_contract
from mmssl.upstreams.base import Upstream
from mmssl.upstreams.two_tower import TwoTower

SMALL: dict[str, Any] = {"width": 2, "image_size": 16}
NAMES = ("l3", "xdc", "crisscross", "avid")


def small(name: str, **values: Any) -> Upstream:
    return load_upstream(name, **(SMALL | values))


@pytest.mark.parametrize("name", NAMES)
def test_either_input_alone_gives_its_stream_as_both_do(name: str) -> None:
    upstream = small(name)
    waveforms = torch.randn(2, int(upstream.spec.sample_rate or 0)) * 0.1
    video = torch.rand(2, 6, 3, 16, 16)
    both, audio, pictures = upstream(waveforms, video=video), upstream(waveforms), upstream(video=video)
    assert (set(both), set(audio), set(pictures)) == ({"audio", "video"}, {"audio"}, {"video"})
    for stream, alone in (("audio", audio), ("video", pictures)):
        for a, b in zip(both[stream].hidden_states, alone[stream].hidden_states, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_the_published_rates_and_sizes(name: str) -> None:
    spec = load_upstream(name, width=1).spec
    rates = {"l3": (48000, 25.0), "xdc": (16000, 30.0), "crisscross": (16000, 16.0), "avid": (24000, 16.0)}
    assert (spec.sample_rate, spec.video_fps) == rates[name]
    size = 112 if name in ("xdc", "crisscross") else 224
    assert spec.image_size == (size, size)
    widths = (1, 2, 4, 8) if name == "l3" else (1, 1, 2, 4, 8)
    assert spec.streams["audio"].hidden_sizes == spec.streams["video"].hidden_sizes == widths
    hops = {"l3": 1920, "xdc": 32 * 320, "crisscross": 32 * 160, "avid": 16 * 240}
    assert spec.streams["audio"].hop_lengths[-1] == hops[name]
    assert spec.streams["video"].hop_lengths[-1] == (1 if name == "l3" else 8)


def test_the_spectrogram_sizes_of_the_papers() -> None:
    shapes = {"crisscross": (1, 80, 201), "avid": (1, 257, 201), "xdc": (1, 40, 99)}
    for name, shape in shapes.items():
        upstream = small(name)
        assert isinstance(upstream, TwoTower)
        assert upstream.audio is not None
        assert upstream.audio.spectrogram(torch.randn(1, 2 * int(upstream.spec.sample_rate or 0))).shape == shape


@pytest.mark.parametrize("name", NAMES)
def test_an_own_state_dict_loads_again(name: str, tmp_path: Path) -> None:
    upstream, path = small(name), str(tmp_path / "own.pt")
    extra: dict[str, Any] = {}
    torch.save(upstream.state_dict(), path)
    if name == "avid":
        np.savez(tmp_path / "stats.npz", mean=np.zeros(257), std=np.ones(257))
        extra = {"statistics": str(tmp_path / "stats.npz")}
    again = small(name, checkpoint=path, **extra)
    assert set(again.state_dict()) == set(upstream.state_dict())
    assert all(torch.equal(a, upstream.state_dict()[n]) for n, a in again.state_dict().items())
    only = small(name, checkpoint=path, modalities=["video"])
    assert only.spec.inputs == ("video",)
    assert only.spec.sample_rate is None


def test_a_video_file_gives_the_video_tower_alone(tmp_path: Path) -> None:
    upstream, path = small("xdc"), str(tmp_path / "r2plus1d_18_xdc.pth")
    state = {n.removeprefix("video.trunk."): t for n, t in upstream.state_dict().items() if n.startswith("video.")}
    torch.save(state | {"fc.weight": torch.zeros(4, 16), "fc.bias": torch.zeros(4)}, path)
    again = small("xdc", checkpoint=path)
    assert again.spec.inputs == ("video",)
    video = torch.rand(1, 4, 3, 16, 16)
    for a, b in zip(
        again(video=video)["video"].hidden_states, upstream(video=video)["video"].hidden_states, strict=True
    ):
        assert torch.equal(a, b)
    with pytest.raises(CheckpointError, match="holds no audio tower, only video"):
        small("xdc", checkpoint=path, modalities=["audio", "video"])
    with pytest.raises(ConfigError, match="has no audio tower"):
        again.output_lengths(torch.tensor([3]), "audio")
    torch.save(state | {"surprise.weight": torch.zeros(1, 1, 1, 1, 1)}, path)
    with pytest.raises(CheckpointError, match=r"left over: surprise\.weight"):
        small("xdc", checkpoint=path)
    del state["layer4.1.conv2.1.bias"]
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"missing: layer4\.1\.conv2\.1\.bias"):
        small("xdc", checkpoint=path)


def test_two_files_give_two_towers_and_the_licence_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    upstream = small("crisscross")
    paths = []
    for modality in ("audio", "video"):
        prefix = f"{modality}.trunk."
        part = {n.removeprefix(prefix): t for n, t in upstream.state_dict().items() if n.startswith(prefix)}
        paths.append(str(tmp_path / f"{modality}.pth.tar"))
        torch.save(part, paths[-1])
    again = small("crisscross", checkpoint=paths)
    assert again.spec.inputs == ("waveforms", "video")
    assert all(torch.equal(t, upstream.state_dict()[n]) for n, t in again.state_dict().items())
    assert sum("CC BY-NC" in message for message in caplog.messages) == 2
    with pytest.raises(CheckpointError, match="both hold the audio tower"):
        small("crisscross", checkpoint=[paths[0], paths[0]])


def test_avid_asks_for_its_statistics(tmp_path: Path) -> None:
    path = str(tmp_path / "avid.pt")
    torch.save(small("avid").state_dict(), path)
    with pytest.raises(ConfigError, match="statistics"):
        small("avid", checkpoint=path)
    with pytest.raises(CheckpointError, match="arrays mean and std"):
        small("avid", statistics=str(tmp_path / "absent.npz"))
    np.savez(tmp_path / "short.npz", mean=np.zeros(3), std=np.ones(3))
    with pytest.raises(CheckpointError, match="257 values"):
        small("avid", statistics=str(tmp_path / "short.npz"))


def test_mistakes_are_refused() -> None:
    for wrong in ([], ["sound"]):
        with pytest.raises(ConfigError, match="modalities must be among audio, video"):
            small("xdc", modalities=wrong)
    with pytest.raises(ConfigError, match="pictures of at least 8 x 8"):
        small("l3", image_size=4)
    with pytest.raises(InputError, match="3 channels, got 1"):
        small("xdc")(video=torch.rand(1, 4, 1, 16, 16))
    with pytest.raises(CheckpointError, match="no checkpoint file"):
        small("l3", checkpoint="absent.pt")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES, "av_hubert"])
def test_the_contract_at_full_width(name: str) -> None:
    sizes: dict[str, Any] = {} if name == "av_hubert" else {"image_size": 32}
    assert_upstream_contract(lambda: load_upstream(name, **sizes), longest=1.2)
