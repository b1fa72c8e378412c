"""Figure of localisation maps: pictures with what sounds laid over them."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mmssl.errors import InputError


def localisation_figure(
    pictures: npt.ArrayLike,
    maps: npt.ArrayLike,
    titles: Sequence[str] = (),
    boxes: npt.ArrayLike | None = None,
    columns: int = 4,
) -> bytes:
    """Pictures with their maps over them, as a PNG file.

    Each map is drawn from its own lowest to its own highest value; a cross marks the highest point.

    Args:
        pictures: (n, 3, H, W) in [0, 1].
        maps: (n, H, W).
        titles: of the pictures; empty for none.
        boxes: (n, 4) where the source is: left, top, right, bottom in points; None for none.
        columns: pictures in a row.

    Raises:
        InputError: shapes do not fit, or there is no picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    images, heat = np.asarray(pictures, dtype=np.float64), np.asarray(maps, dtype=np.float64)
    edges = None if boxes is None else np.asarray(boxes, dtype=np.float64)
    count = len(images)
    fits = images.ndim == 4 and images.shape[1:2] == (3,) and heat.shape == (count, *images.shape[2:])
    if not count or not fits or len(titles) not in (0, count) or (edges is not None and edges.shape != (count, 4)):
        raise InputError(
            f"The figure needs (n, 3, H, W) pictures, (n, H, W) maps, n titles or none and (n, 4) boxes or none, got "
            f"{images.shape}, {heat.shape}, {len(titles)} and {None if edges is None else edges.shape}."
        )
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(2.2 * columns, 2.4 * rows), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for k in range(rows * columns):
        axes = figure.add_subplot(rows, columns, k + 1)
        axes.set_axis_off()
        if k >= count:
            continue
        axes.imshow(images[k].transpose(1, 2, 0).clip(0, 1))
        axes.imshow(heat[k], cmap="viridis", alpha=0.5)
        top, left = np.unravel_index(int(heat[k].argmax()), heat[k].shape)
        axes.plot(left, top, "x", color="red", markersize=8)
        if edges is not None:
            x0, y0, x1, y1 = edges[k]
            axes.add_patch(Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor="white"))
        if titles:
            axes.set_title(titles[k], fontsize=8)
    buffer = io.BytesIO()
    canvas.print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()
