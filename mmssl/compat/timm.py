"""timm's `features_only` on mmssl's image upstreams: pictures in, a list of feature maps out.

    from mmssl.compat.timm import create_model            # for: from timm import create_model
    maps = create_model("my_vit", features_only=True, out_indices=(3, 7, 11))(images)     # each (B, C, H', W')

Tokens of a transformer are laid out on the grid of its patches; class and register tokens before them are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.errors import ConfigError, InputError
from mmssl.upstreams.base import Upstream, load_upstream

DEFAULT_SIZE = (224, 224)
"""Pictures that an upstream without a size of its own is measured with."""


@dataclass(frozen=True)
class FeatureInfo:
    """What each feature map is, by the calls of timm's class of this name.

    Attributes:
        info: per map its "index" among the layers, "module", "num_chs" and "reduction" (pixels per step).
    """

    info: tuple[dict[str, Any], ...]

    @property
    def out_indices(self) -> tuple[int, ...]:
        """Numbers of the layers."""
        return tuple(row["index"] for row in self.info)

    def channels(self) -> list[int]:
        """Channels of each map."""
        return [row["num_chs"] for row in self.info]

    def reduction(self) -> list[int]:
        """Pixels of the picture per step of each map."""
        return [row["reduction"] for row in self.info]

    def module_name(self) -> list[str]:
        """Name of each layer."""
        return [row["module"] for row in self.info]

    def get_dicts(self) -> list[dict[str, Any]]:
        """A copy of all rows."""
        return [dict(row) for row in self.info]

    def __len__(self) -> int:
        return len(self.info)


class FeatureMaps(nn.Module):
    """Layers of an image upstream as maps (B, C, H', W').

    Args:
        upstream: with a stream "image" of tokens in the order of rows, then columns.
        out_indices: numbers of the layers, negative from the end; None for all.
        num_prefix_tokens: class and register tokens before the patches; None for the smallest number that leaves a
            grid of the picture's shape.
        image_size: (height, width) to measure with, where the upstream takes any; None for 224 x 224.

    Attributes:
        feature_info: channels and reduction of each map.

    Raises:
        ConfigError: the upstream has no stream of pictures, a layer does not exist, or its tokens form no grid.
    """

    def __init__(
        self,
        upstream: Upstream,
        out_indices: Sequence[int] | None = None,
        num_prefix_tokens: int | None = None,
        image_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if "images" not in upstream.spec.inputs or "image" not in upstream.spec.streams:
            raise ConfigError(f"{type(upstream).__name__} takes {', '.join(upstream.spec.inputs)}, not images.")
        count = upstream.spec.streams["image"].num_layers
        chosen = range(count) if out_indices is None else out_indices
        if not chosen or any(not -count <= index < count for index in chosen):
            raise ConfigError(f"out_indices must be among {-count} to {count - 1}, got {out_indices}.")
        self.upstream, self.num_prefix_tokens = upstream, num_prefix_tokens
        self.out_indices = tuple(index % count for index in chosen)
        size = upstream.spec.image_size or image_size or DEFAULT_SIZE
        with torch.no_grad():
            maps = self(torch.zeros(1, 3, *size, device=upstream.device))
        self.feature_info = FeatureInfo(
            tuple(
                {"index": k, "module": f"layer.{k}", "num_chs": m.shape[1], "reduction": size[0] // m.shape[2]}
                for k, m in zip(self.out_indices, maps, strict=True)
            )
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Pictures (B, 3, H, W) in [0, 1] -> one map (B, C, H', W') per layer."""
        layers = self.upstream(images=images)["image"]
        return [self._map(layers.hidden_states[k], images.shape[-2], images.shape[-1]) for k in self.out_indices]

    def _map(self, tokens: Tensor, height: int, width: int) -> Tensor:
        count = tokens.shape[1]
        prefixes = range(count) if self.num_prefix_tokens is None else [self.num_prefix_tokens]
        for prefix in prefixes:
            rows = _rows(count - prefix, height, width)
            if rows:
                return tokens[:, prefix:].transpose(1, 2).unflatten(2, (rows, -1)).contiguous()
        raise InputError(
            f"{count} tokens of a picture of {height} x {width} form no grid of its shape"
            + (f" after {self.num_prefix_tokens} prefix tokens." if self.num_prefix_tokens is not None else ".")
        )


def create_model(
    model_name: str,
    *,
    features_only: bool = True,
    out_indices: Sequence[int] | None = None,
    num_prefix_tokens: int | None = None,
    image_size: tuple[int, int] | None = None,
    **kwargs: Any,
) -> FeatureMaps:
    """Load an image upstream as a pyramid of feature maps.

    Args:
        model_name, **kwargs: as for `mmssl.load_upstream`.
        features_only: must be True; heads are elsewhere (`mmssl.downstream`).
        out_indices, num_prefix_tokens, image_size: as for `FeatureMaps`.

    Raises:
        ConfigError: `features_only` is False, or as `FeatureMaps`.
    """
    if not features_only:
        raise ConfigError("Only features_only=True is offered: an upstream has no classification head.")
    return FeatureMaps(load_upstream(model_name, **kwargs), out_indices, num_prefix_tokens, image_size)


def _rows(patches: int, height: int, width: int) -> int:
    """Rows of the grid of `patches` patches whose sides are as those of the picture; 0 where there is none."""
    rows = round((patches * height / width) ** 0.5) if patches > 0 else 0
    fits = rows > 0 and patches % rows == 0 and patches // rows * height == rows * width
    return rows if fits else 0
