"""Strips of small pictures: what was seen, and what was cut out."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from mmssl.files import replace_file

if TYPE_CHECKING:
    import numpy

NUM_SHOWN = 6
_HEIGHT = 84
_COLOUR = (255, 210, 0)


def write_strip(
    path: Path, pictures: numpy.ndarray, squares: numpy.ndarray | None, crops: numpy.ndarray | None
) -> None:
    """Write a JPEG of six frames spread over the clip with their squares, and the crops below.

    Args:
        path: of the file.
        pictures: (T, H, W, 3) uint8.
        squares: (T, 3), or None where there is no crop.
        crops: (T, S, S, 3) uint8, or None.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    chosen = np.unique(np.linspace(0, len(pictures) - 1, NUM_SHOWN).round().astype(int))
    scale = _HEIGHT / pictures.shape[1]
    width = max(_HEIGHT, round(pictures.shape[2] * scale))
    rows = 1 if crops is None else 2
    sheet = Image.new("RGB", (len(chosen) * (width + 4) - 4, rows * (_HEIGHT + 4) - 4), (255, 255, 255))
    for place, index in enumerate(chosen):
        left = place * (width + 4)
        small = Image.fromarray(pictures[index]).resize((width, _HEIGHT), Image.Resampling.BILINEAR)
        if squares is not None:
            x, y, side = squares[index]
            corners = [(x - side / 2) * width / pictures.shape[2], (y - side / 2) * scale]
            corners += [(x + side / 2) * width / pictures.shape[2], (y + side / 2) * scale]
            ImageDraw.Draw(small).rectangle(corners, outline=_COLOUR, width=2)
        sheet.paste(small, (left, 0))
        if crops is not None:
            crop = Image.fromarray(crops[index]).resize((_HEIGHT, _HEIGHT), Image.Resampling.BILINEAR)
            sheet.paste(crop, (left + (width - _HEIGHT) // 2, _HEIGHT + 4))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=80)
    with replace_file(path) as file:
        file.write(buffer.getvalue())
