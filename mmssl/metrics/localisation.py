"""Metrics of localisation maps."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mmssl.errors import InputError


def pointing_game(maps: npt.ArrayLike, masks: npt.ArrayLike) -> float:
    """Share of pictures whose highest point of the map lies on the object, in [0, 1].

    Zhang et al. 2018, "Top-down Neural Attention by Excitation Backprop". Where several points are highest, the share
    of them on the object counts, so that a constant map scores the object's share of the picture.

    Args:
        maps: (n, H, W) finite values, higher where the source is.
        masks: (n, H, W) bool, True on the object; it has at least one point in each picture.

    Raises:
        InputError: shapes do not fit, values are not finite, or a picture has no object.
    """
    values, inside = np.asarray(maps, dtype=np.float64), np.asarray(masks)
    if values.ndim != 3 or not values.size or inside.shape != values.shape or inside.dtype != bool:
        raise InputError(
            f"The pointing game needs (n, H, W) maps and bool masks of the same shape, got {values.shape} and "
            f"{inside.dtype} {inside.shape}."
        )
    if not np.isfinite(values).all() or not inside.any((1, 2)).all():
        raise InputError("Maps must be finite and every mask must hold at least one point of the object.")
    highest = values == values.max((1, 2), keepdims=True)
    return float(((highest & inside).sum((1, 2)) / highest.sum((1, 2))).mean())


def box_masks(boxes: npt.ArrayLike, height: int, width: int) -> npt.NDArray[np.bool_]:
    """Masks (n, height, width) of boxes (n, 4): left, top, right, bottom in points, right and bottom exclusive.

    Raises:
        InputError: boxes of another shape, or one that holds no point of the picture.
    """
    edges = np.asarray(boxes, dtype=np.float64)
    if edges.ndim != 2 or edges.shape[1] != 4:
        raise InputError(f"Boxes must be (n, 4): left, top, right, bottom; got {edges.shape}.")
    left, top, right, bottom = (edges[:, k, None, None] for k in range(4))
    x, y = np.arange(width)[None, None], np.arange(height)[None, :, None]
    masks = (x >= left) & (x < right) & (y >= top) & (y < bottom)
    if len(masks) and not masks.any((1, 2)).all():
        raise InputError(f"Box {int(np.flatnonzero(~masks.any((1, 2)))[0])} holds no point of {height} x {width}.")
    return masks
