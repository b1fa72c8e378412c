from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmssl.compat.timm import FeatureMaps, create_model
from mmssl.errors import ConfigError, InputError
from mmssl.types import Inputs, Layers, Representation, StreamSpec, UpstreamSpec
from mmssl.upstreams.base import Upstream

DUMMY = "mmssl.testing.dummies.DummyImage"


class Tokens(Upstream):
    """Patches that hold their row and column, after some prefix tokens of 100."""

    def __init__(self, prefix: int, size: tuple[int, int] | None = None, layers: int = 2) -> None:
        super().__init__()
        self.prefix = prefix
        self.spec = UpstreamSpec(("images",), {"image": StreamSpec((2,) * layers, (0,) * layers)}, image_size=size)

    def output_lengths(self, lengths: Tensor, stream: str = "image", layer: int = -1) -> Tensor:
        raise NotImplementedError

    def extract(self, inputs: Inputs) -> Representation:
        assert inputs.images is not None
        rows, columns = inputs.images.shape[2] // 8, inputs.images.shape[3] // 8
        grid = torch.cartesian_prod(torch.arange(float(rows)), torch.arange(float(columns)))
        tokens = torch.cat([torch.full((self.prefix, 2), 100.0), grid])[None].expand(len(inputs.images), -1, -1)
        lengths = torch.full((len(tokens),), tokens.shape[1])
        return {"image": Layers((tokens, tokens + 0.5), (lengths,) * 2)}


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("size", [(48, 48), (32, 64), (64, 32)])
def test_patches_lie_where_they_belong(prefix: int, size: tuple[int, int]) -> None:
    maps = FeatureMaps(Tokens(prefix, size))(torch.zeros(2, 3, *size))
    rows, columns = size[0] // 8, size[1] // 8
    assert [tuple(m.shape) for m in maps] == [(2, 2, rows, columns)] * 2
    assert torch.equal(maps[0][1, 0], torch.arange(float(rows))[:, None].expand(rows, columns))
    assert torch.equal(maps[1][0, 1], torch.arange(float(columns)).expand(rows, columns) + 0.5)


def test_calls_are_those_of_timm() -> None:
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("test_vit", features_only=True, pretrained=False, out_indices=(0, -1))
    ours = create_model(DUMMY, features_only=True, out_indices=(0, -1))
    (row,) = create_model(DUMMY).feature_info.get_dicts()
    assert set(row) == set(theirs.feature_info.get_dicts()[0])
    for call in ("channels", "reduction", "module_name", "get_dicts"):
        assert len(getattr(ours.feature_info, call)()) == len(getattr(theirs.feature_info, call)()) == 2
    assert ours.feature_info.channels() == [8, 8]
    assert ours.feature_info.reduction() == [8, 8]
    assert ours.feature_info.out_indices == (0, 0)


def test_maps_equal_timms_of_the_same_network() -> None:
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        network = timm.create_model("test_vit", pretrained=False, num_classes=0).eval()
    features = timm.create_model("test_vit", pretrained=False, features_only=True, out_indices=(0, 1)).eval()
    features.model.load_state_dict(network.state_dict(), strict=False)
    size = network.patch_embed.img_size
    prefix, width = network.num_prefix_tokens, network.embed_dim

    class Wrapped(Upstream):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.spec = UpstreamSpec(("images",), {"image": StreamSpec((width,) * 2, (0, 0))}, image_size=size)

        def output_lengths(self, lengths: Tensor, stream: str = "image", layer: int = -1) -> Tensor:
            return torch.full_like(lengths, network.patch_embed.num_patches + prefix)

        def extract(self, inputs: Inputs) -> Representation:
            kept = self.network.forward_intermediates(
                inputs.images, indices=[0, 1], return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
            )
            tokens = tuple(torch.cat([before, patches], dim=1) for patches, before in kept)
            lengths = torch.full((len(tokens[0]),), tokens[0].shape[1])
            return {"image": Layers(tokens, (lengths,) * 2)}

    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    maps = FeatureMaps(Wrapped())
    assert maps.feature_info.channels() == features.feature_info.channels()
    assert maps.feature_info.reduction() == features.feature_info.reduction()
    with torch.no_grad():
        for ours, theirs in zip(maps(images), features(images), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_wrong_requests_are_named() -> None:
    with pytest.raises(ConfigError, match="takes waveforms, not images"):
        create_model("fbank")
    with pytest.raises(ConfigError, match="classification head"):
        create_model(DUMMY, features_only=False)
    with pytest.raises(ConfigError, match="among -1 to 0"):
        create_model(DUMMY, out_indices=(1,))
    with pytest.raises(InputError, match="after 1 prefix tokens"):
        create_model(DUMMY, num_prefix_tokens=1)
