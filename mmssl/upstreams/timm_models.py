"""Picture networks of timm by name, tapped at their blocks or stages. timm is an optional extra."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.errors import ConfigError, did_you_mean
from mmssl.upstreams.pictures import TappedPictures, load_trunk

_HEADS = r"(head|head_dist|fc|classifier|fc_norm)\..*"


class Timm(TappedPictures):
    """A network of timm; each block (vision transformers) or stage (others) is a layer.

    Tokens of vision transformers come with their prefix (class and register tokens) in front; the norm after the last
    block is not applied. A map's positions are tokens, row by row.

    Args:
        name: as timm has it, without its training tag: vit_small_patch16_224, resnet50, convnext_tiny, ...
        checkpoint: a local file with the network's weights (.safetensors, .pth); its head is left out. None draws
            weights: nothing is downloaded.
        prefix: what stands before the network's names in the file.
        layers: numbers of the blocks or stages to tap; None for all.
        image_size: height and width of the pictures; None for the network's own.
        image_mean, image_std: of the channels of pictures in [0, 1]; None for the network's own.

    Raises:
        ConfigError: timm is not installed, or has no such network, or cannot tap it.
        CheckpointError: the checkpoint cannot be read or does not fit.
    """

    def __init__(
        self,
        name: str,
        checkpoint: str | None = None,
        *,
        prefix: str = "",
        layers: Sequence[int] | None = None,
        image_size: int | None = None,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        network: Any = _create(name, image_size)
        if not hasattr(network, "forward_intermediates"):
            raise ConfigError(f"timm's {name} gives no layers (it has no forward_intermediates): take another network.")
        self.trunk = network
        self.indices = None if layers is None else [int(layer) for layer in layers]
        if checkpoint is not None:
            load_trunk(self.trunk, checkpoint, prefix, _HEADS)
        stated = network.pretrained_cfg
        self.declare(
            image_size or stated["input_size"][-1],
            image_mean if image_mean is not None else stated["mean"],
            image_std if image_std is not None else stated["std"],
        )

    def taps(self, pictures: Tensor) -> list[Tensor]:
        """Blocks or stages, tokens with their prefix."""
        more: dict[str, Any] = {}
        if getattr(self.trunk, "num_prefix_tokens", None) is not None:
            more = {"output_fmt": "NLC", "return_prefix_tokens": True}
        trunk: Any = self.trunk
        found = trunk.forward_intermediates(pictures, indices=self.indices, intermediates_only=True, **more)
        return [_with_prefix(h) if isinstance(h, tuple | list) else h for h in found]


def _create(name: str, image_size: int | None) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ConfigError("The timm upstream needs timm, an optional extra: pip install 'mmssl[timm]'.") from error
    if not timm.is_model(name):
        raise ConfigError(
            f"timm {timm.__version__} has no network {name!r}.{did_you_mean(name, timm.list_models())} "
            "Give the name without a training tag."
        )
    more: dict[str, Any] = {"img_size": image_size} if image_size is not None else {}
    try:
        return timm.create_model(name, pretrained=False, num_classes=0, **more)
    except TypeError:  # convolutional networks take any size and no such argument
        return timm.create_model(name, pretrained=False, num_classes=0)


def _with_prefix(parts: Sequence[Tensor]) -> Tensor:
    tokens, prefix = parts
    return torch.cat([prefix, tokens], dim=1)
