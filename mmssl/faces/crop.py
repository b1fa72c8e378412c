"""Cut squares out of pictures and bring them to one size."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy


def crop_squares(pictures: numpy.ndarray, squares: numpy.ndarray, size: int) -> numpy.ndarray:
    """Resample a square of each picture, bilinearly.

    Squares may lie between pixels, so that a slow movement does not become steps of one pixel. Where a square shrinks,
    the filter widens with it (no aliasing). Beyond the edge of the picture its outermost pixels are repeated. A square
    on whole pixels whose side is `size` gives exactly these pixels.

    Args:
        pictures: (T, H, W, 3) uint8.
        squares: (T, 3): x and y of the centre, and the side, in pixels.
        size: side of the result, in pixels.

    Returns:
        (T, size, size, 3) uint8.
    """
    import numpy as np

    height, width = pictures.shape[1:3]
    crops = np.empty((len(pictures), size, size, 3), dtype=np.uint8)
    for index, (picture, (x, y, side)) in enumerate(zip(pictures, squares, strict=True)):
        top, rows = _weights(y - side / 2, side, size, height)
        left, columns = _weights(x - side / 2, side, size, width)
        part = picture[top : top + rows.shape[1], left : left + columns.shape[1]].astype(np.float32)
        lines = np.tensordot(rows, part, axes=1)
        crops[index] = np.rint(np.einsum("jw,iwc->ijc", columns, lines, optimize=True)).clip(0, 255)
    return crops


def share_outside(squares: numpy.ndarray, height: int, width: int) -> float:
    """Mean share of the squares' area that lies beyond the picture, in [0, 1]."""
    import numpy as np

    half = squares[:, 2] / 2
    inside = [
        np.clip(np.minimum(squares[:, k] + half, edge) - np.maximum(squares[:, k] - half, 0), 0, None)
        for k, edge in ((0, width), (1, height))
    ]
    return float(np.mean(np.clip(1 - inside[0] * inside[1] / np.maximum(squares[:, 2] ** 2, 1e-12), 0, 1)))


def black_frames(pictures: numpy.ndarray, level: float = 12.0) -> int:
    """How many pictures are black: nearly all of their pixels (99 %) darker than `level` of 255.

    Args:
        pictures: (T, H, W, 3) uint8.
        level: of the brightest colour of a pixel. Video range black is 16 before decoding and 0 to 2 after it.
    """
    import numpy as np

    # every other row and column: the share is the same and the work a quarter
    return int(sum(np.mean(picture[::2, ::2].max(axis=-1) < level) > 0.99 for picture in pictures))


def _weights(start: float, side: float, size: int, limit: int) -> tuple[int, numpy.ndarray]:
    """Triangle filter along one axis.

    Args:
        start: where the square begins, in pixels.
        side: of the square.
        size: pixels of the result.
        limit: pixels of the picture.

    Returns:
        The first pixel used, and (size, pixels used) float32 whose rows sum to one.
    """
    import numpy as np

    scale = side / size
    reach = max(1.0, scale)
    centres = start + (np.arange(size) + 0.5) * scale - 0.5
    first, last = math.floor(centres[0] - reach), math.ceil(centres[-1] + reach)
    pixels = np.arange(first, last + 1)
    weights = np.clip(1 - np.abs(pixels[None] - centres[:, None]) / reach, 0, None)
    weights /= weights.sum(axis=1, keepdims=True)
    # what lies beyond the edge counts for the outermost pixel
    inside = np.clip(pixels, 0, limit - 1)
    low = int(inside[0])
    folded = np.zeros((int(inside[-1]) - low + 1, size))
    np.add.at(folded, inside - low, weights.T)
    return low, folded.T.astype(np.float32)
