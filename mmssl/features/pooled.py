"""Statistics over time, computed clip by clip so that they cannot see padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmssl.errors import ConfigError, InputError
from mmssl.features.fingerprint import STATISTICS
from mmssl.types import Layers


def pool_frames(frames: Tensor, stats: Sequence[str], dim: int = 0) -> dict[str, Tensor]:
    """Statistics over the frames of one clip.

    Args:
        frames: float tensor, all of its frames valid, for example (T, D) or (L, T, D) with dim=1.
        stats: of "mean", "std" (population: the mean of squared deviations, not T - 1) and "max".
        dim: axis of time.

    Returns:
        Statistic -> float32 tensor without that axis. Sums run in float64.

    Raises:
        InputError: there is no frame.
        ConfigError: an unknown statistic.
    """
    if frames.shape[dim] == 0:
        raise InputError("A clip with no frame cannot be pooled: it is shorter than one window of the upstream.")
    unknown = [name for name in stats if name not in STATISTICS]
    if unknown:
        raise ConfigError(f"There is no pooled statistic {unknown[0]!r}. Known ones: {', '.join(STATISTICS)}.")
    pooled = {}
    if "mean" in stats or "std" in stats:
        wide = frames.double()
        mean = wide.mean(dim, keepdim=True)
        if "mean" in stats:
            pooled["mean"] = mean.squeeze(dim).float()
        if "std" in stats:
            pooled["std"] = (wide - mean).square().mean(dim).sqrt().float()
    if "max" in stats:
        pooled["max"] = frames.amax(dim).float()
    return {name: pooled[name] for name in stats}


def pool(layers: Layers, stat: str = "mean") -> Layers:
    """Pool a batch over its valid frames.

    Args:
        layers: tensors (B, T_k, D_k) with lengths (B,).
        stat: "mean", "std" (population) or "max".

    Returns:
        Layers of one frame: tensors (B, 1, D_k) float32, all lengths 1.
    """
    pooled = []
    for k in range(len(layers)):
        rows = [pool_frames(frames, (stat,))[stat] for frames in layers[k].unpad()]
        pooled.append(torch.stack(rows)[:, None])
    return Layers(tuple(pooled), tuple(torch.ones_like(n) for n in layers.lengths))
