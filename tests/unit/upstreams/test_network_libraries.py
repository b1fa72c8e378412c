"""Networks of torchvision and timm: taps equal to the network's own stages, weights from local files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmssl import load_upstream
from mmssl.errors import CheckpointError, ConfigError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def scaled(pictures: Tensor, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> Tensor:
    return (pictures - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def tokens(maps: Tensor) -> Tensor:
    return maps.flatten(2).transpose(1, 2)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_stages_of_a_resnet(images: Tensor, tmp_path: Path) -> None:
    from torchvision.models import resnet18

    network = resnet18().eval()
    path = tmp_path / "resnet.pth"
    torch.save({"state_dict": {f"module.encoder_q.{k}": v for k, v in network.state_dict().items()}}, path)
    upstream = load_upstream(
        "torchvision", name="resnet18", checkpoint=str(path), prefix="module.encoder_q.", image_size=32
    )
    found = upstream(images=images)["image"].hidden_states
    with torch.no_grad():
        x = network.maxpool(network.relu(network.bn1(network.conv1(scaled(images)))))
        expected = [x]
        for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
            expected.append(stage(expected[-1]))
    assert len(found) == 5
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, tokens(b), atol=1e-5)


def test_blocks_of_a_torchvision_vit(images: Tensor) -> None:
    upstream = load_upstream("torchvision", name="vit_b_32", image_size=32, layers=["encoder.dropout", "encoder.ln"])
    first, last = upstream(images=images)["image"].hidden_states
    assert first.shape == last.shape == (2, 2, 768)
    assert not torch.equal(first, last)
    assert upstream.names == ["encoder.dropout", "encoder.ln"]


def test_maps_with_channels_last(images: Tensor) -> None:
    from torchvision.models import swin_t

    upstream = load_upstream("torchvision", name="swin_t", image_size=32, layers=["features.0", "features.2"])
    network = swin_t().eval()
    network.load_state_dict(upstream.trunk.state_dict(), strict=False)
    with torch.no_grad():
        x = network.features[0](scaled(images))  # (B, H, W, C)
    found = upstream(images=images)["image"].hidden_states
    assert torch.allclose(found[0], x.flatten(1, 2), atol=1e-5)
    assert [h.shape[1:] for h in found] == [(64, 96), (16, 192)]


@pytest.mark.parametrize("name", ["r2plus1d_18", "r3d_18", "mc3_18"])
def test_stages_of_a_video_network(name: str, tmp_path: Path) -> None:
    from torchvision.models import get_model

    network = get_model(name).eval()
    torch.save(network.state_dict(), tmp_path / "video.pth")
    upstream = load_upstream("torchvision_video", name=name, checkpoint=str(tmp_path / "video.pth"), image_size=16)
    video = torch.rand(1, 9, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    mean, std = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
    found = upstream(video=video)["video"]
    with torch.no_grad():
        x = scaled(video, mean, std).transpose(1, 2)
        for k, stage in enumerate((network.stem, network.layer1, network.layer2, network.layer3, network.layer4)):
            x = stage(x)
            expected = x.mean(dim=(3, 4)).transpose(1, 2)
            assert torch.allclose(found.hidden_states[k], expected, atol=1e-5)
            assert upstream.output_lengths(torch.tensor([9]), "video", k).tolist() == [expected.shape[1]]


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    state = resnet18().state_dict()
    state.pop("layer3.0.conv1.weight")
    torch.save(state, tmp_path / "resnet.pth")
    with pytest.raises(CheckpointError, match=r"missing: layer3\.0\.conv1\.weight"):
        load_upstream("torchvision", name="resnet18", checkpoint=str(tmp_path / "resnet.pth"))


def test_unknown_names() -> None:
    with pytest.raises(ConfigError, match="Did you mean"):
        load_upstream("torchvision", name="resnet19")
    with pytest.raises(ConfigError, match="r2plus1d_18"):
        load_upstream("torchvision_video", name="resnet18")
    with pytest.raises(ConfigError, match="no layers by default"):
        load_upstream("torchvision", name="regnet_y_400mf")
    with pytest.raises(ConfigError, match="cannot be tapped at layer9"):
        load_upstream("torchvision", name="resnet18", layers=["layer9"])


def test_blocks_of_a_timm_vit(images: Tensor, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=7).eval()
    torch.save(network.state_dict(), tmp_path / "vit.pth")
    upstream = load_upstream(
        "timm", name="vit_tiny_patch16_224", image_size=32, checkpoint=str(tmp_path / "vit.pth"), layers=[0, 11]
    )
    found = upstream(images=images)["image"].hidden_states
    outputs: list[Tensor] = []
    for block in (network.blocks[0], network.blocks[11]):
        block.register_forward_hook(lambda module, given, output: outputs.append(output))
    with torch.no_grad():
        network(scaled(images, (0.5,) * 3, (0.5,) * 3))
    assert len(found) == 2
    for a, b in zip(found, outputs, strict=True):
        assert a.shape == (2, 5, 192)
        assert torch.allclose(a, b, atol=1e-5)


def test_stages_of_a_timm_resnet(images: Tensor) -> None:
    pytest.importorskip("timm")
    upstream = load_upstream("timm", name="resnet18", image_size=32)
    found = upstream(images=images)["image"].hidden_states
    assert [h.shape[1:] for h in found] == [(256, 64), (64, 64), (16, 128), (4, 256), (1, 512)]
    with torch.no_grad():
        maps = upstream.trunk.forward_features(scaled(images))
    assert torch.allclose(found[-1], tokens(maps), atol=1e-5)


def test_unknown_timm_name() -> None:
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match="Did you mean"):
        load_upstream("timm", name="vit_tinny_patch16_224")


def test_timm_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"mmssl\[timm\]"):
        load_upstream("timm", name="resnet18")


@pytest.mark.parametrize("name", ["efficientnet_b0", "mobilenet_v3_small"])
def test_untrained_batch_norms_leave_the_range_of_float16(images: Tensor, name: str) -> None:
    """Why these two keep the contract in bfloat16 but not in float16 unless weights are loaded."""
    found = [
        load_upstream("torchvision", name=name, image_size=32).to(dtype)(images=images)["image"].hidden_states[-1]
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
    ]
    exact, close, lost = (h.double() for h in found)
    assert float((close - exact).norm() / exact.norm()) < 0.05
    assert float(exact.abs().max()) < 2 * torch.finfo(torch.float16).smallest_normal
    assert float((lost - exact).norm() / exact.norm()) > 0.5
