"""The embedded image set `mini_images`: drawn shapes, made on the spot and the same to the bit for a seed.

Ten shapes are the classes. Colours, fill, place, size, turn, backdrop, clutter and noise are drawn independently of the
class, and a shape covers as much of its image in one class as in another, so that no mean colour tells them apart.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmssl.errors import DataError
from mmssl.media.paths import write_atomically
from mmssl.types import Clip

if TYPE_CHECKING:
    import numpy

SIZE = 64
FILLS = ("plain", "stripes", "dots", "checks")
_SUPERSAMPLING = 3
# Raised when the images of a given seed change, so that folders made before are made anew.
_VERSION = 1
_STAMP = "mini_images.json"
# Of five images of a class, the last is for the test.
_TEST_EVERY = 5

Mask = Callable[["numpy.ndarray", "numpy.ndarray"], "numpy.ndarray"]


def _polygon(*corners: tuple[float, float]) -> Mask:
    """Inside by the even-odd rule."""

    def inside(x: numpy.ndarray, y: numpy.ndarray) -> numpy.ndarray:
        import numpy as np

        found = np.zeros(x.shape, dtype=bool)
        for (ax, ay), (bx, by) in zip(corners, (*corners[1:], corners[0]), strict=True):
            if ay != by:
                found ^= ((ay > y) != (by > y)) & (x < (bx - ax) * (y - ay) / (by - ay) + ax)
        return found

    return inside


def _star(points: int, inner: float) -> Mask:
    corners = []
    for step in range(2 * points):
        radius, angle = (inner if step % 2 else 1.0), math.pi * step / points - math.pi / 2
        corners.append((radius * math.cos(angle), radius * math.sin(angle)))
    return _polygon(*corners)


def _ring(x: numpy.ndarray, y: numpy.ndarray) -> numpy.ndarray:
    return (x**2 + y**2 < 1) & (x**2 + y**2 > 0.36)


def _crescent(x: numpy.ndarray, y: numpy.ndarray) -> numpy.ndarray:
    return (x**2 + y**2 < 1) & ((x - 0.5) ** 2 + y**2 > 0.64)


def _heart(x: numpy.ndarray, y: numpy.ndarray) -> numpy.ndarray:
    u, v = 1.2 * x, 0.15 - 1.2 * y
    return (u**2 + v**2 - 1) ** 3 - u**2 * v**3 < 0


_SHAPES: dict[str, Mask] = {
    "disc": lambda x, y: x**2 + y**2 < 1,
    "square": _polygon((-1, -1), (1, -1), (1, 1), (-1, 1)),
    "triangle": _polygon((0, -1), (0.95, 0.8), (-0.95, 0.8)),
    "star": _star(5, 0.42),
    "cross": _polygon(
        *((-0.33, -1), (0.33, -1), (0.33, -0.33), (1, -0.33), (1, 0.33), (0.33, 0.33)),
        *((0.33, 1), (-0.33, 1), (-0.33, 0.33), (-1, 0.33), (-1, -0.33), (-0.33, -0.33)),
    ),
    "ring": _ring,
    "crescent": _crescent,
    "heart": _heart,
    "arrow": _polygon((-1, -0.3), (0.1, -0.3), (0.1, -0.85), (1, 0), (0.1, 0.85), (0.1, 0.3), (-1, 0.3)),
    "hourglass": _polygon((-0.9, -1), (0.9, -1), (0.12, 0), (0.9, 1), (-0.9, 1), (-0.12, 0)),
}
SHAPES = tuple(_SHAPES)


def make_mini_images(folder: str | os.PathLike[str], *, seed: int = 0, images_per_class: int = 100) -> list[Clip]:
    """Make the image set in a folder, or find it there complete.

    Written are `images/<id>.png` (64x64, colour) and, last of all, `mini_images.json`. A folder made by other settings
    is made anew.

    Args:
        folder: where the images go.
        seed: of all that is drawn.
        images_per_class: 1 to 10,000; every fifth is for the test.

    Returns:
        10 * images_per_class clips with labels shape and fill, and split "train" or "test".

    Raises:
        DataError: a number is out of range, or the folder cannot be written.
    """
    for name, value, low, high in (("seed", seed, 0, 2**63 - 1), ("images_per_class", images_per_class, 1, 10_000)):
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise DataError(f"{name} of mini_images must be a whole number from {low} to {high}, got {value!r}.")
    settings = {"seed": seed, "images_per_class": images_per_class, "version": _VERSION}
    root = Path(folder)
    try:
        return _finished(root, settings) or _make(root, settings)
    except OSError as error:
        raise DataError(f"mini_images cannot be written to {root}: {error}. Choose another folder.") from error


def draw_image(shape: str, fill: str, rng: numpy.random.Generator) -> numpy.ndarray:
    """Draw one image, (64, 64, 3) uint8, of a shape in SHAPES with a fill in FILLS."""
    import numpy as np
    from PIL import Image

    side = SIZE * _SUPERSAMPLING
    y, x = (np.mgrid[:side, :side] + 0.5) / side
    front, back, second = _colours(rng)
    picture = _backdrop(rng, x, y, back)
    for _ in range(rng.integers(0, 4)):
        spot = (x - rng.random()) ** 2 + (y - rng.random()) ** 2 < rng.uniform(0.02, 0.07) ** 2
        picture[spot] = rng.uniform(0, 255, 3)
    # the share of the image, not the radius, is drawn: shapes of all classes are as large
    share = rng.uniform(0.09, 0.22)
    radius = math.sqrt(share / _area(shape))
    reach = min(0.42, radius)
    middle = rng.uniform(reach, 1 - reach, 2)
    turn = rng.uniform(-0.45, 0.45)
    cos, sin = math.cos(turn) / radius, math.sin(turn) / radius
    dx, dy = x - middle[0], y - middle[1]
    inside = _SHAPES[shape](cos * dx + sin * dy, cos * dy - sin * dx)
    marked = inside & _texture(rng, fill, x, y)
    picture[inside], picture[marked] = front, second
    image = Image.fromarray(np.round(picture).astype(np.uint8)).reduce(_SUPERSAMPLING)
    noisy = np.asarray(image) + rng.uniform(0, 14) * rng.standard_normal((SIZE, SIZE, 3))
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8)


@functools.cache
def _area(shape: str) -> float:
    """Of the shape at radius 1."""
    import numpy as np

    y, x = (np.mgrid[:200, :200] + 0.5) / 80 - 1.25
    return float(_SHAPES[shape](x, y).mean()) * 2.5**2


def _colours(rng: numpy.random.Generator) -> numpy.ndarray:
    """Front, back and the fill's second colour: the first two well apart, the last near the first."""
    import numpy as np

    while True:
        colours = rng.uniform(15, 240, (3, 3))
        colours[2] = colours[0] + 0.6 * (colours[2] - colours[0])
        if min(np.abs(colours[k] - colours[1]).sum() for k in (0, 2)) > 170:
            return colours


def _backdrop(rng: numpy.random.Generator, x: numpy.ndarray, y: numpy.ndarray, colour: numpy.ndarray) -> numpy.ndarray:
    import numpy as np

    angle = rng.uniform(0, 2 * math.pi)
    slope = (x - 0.5) * math.cos(angle) + (y - 0.5) * math.sin(angle)
    waves = rng.uniform(0, 12) * np.sin(2 * np.pi * (rng.uniform(1, 6) * slope + rng.random()))
    lightness = rng.uniform(0, 50) * slope + waves
    return np.clip(colour + lightness[..., None], 0, 255)


def _texture(rng: numpy.random.Generator, fill: str, x: numpy.ndarray, y: numpy.ndarray) -> numpy.ndarray:
    import numpy as np

    angle, step = rng.uniform(0, math.pi), rng.uniform(0.08, 0.14)
    u = (math.cos(angle) * x + math.sin(angle) * y) / step + rng.random()
    v = (math.cos(angle) * y - math.sin(angle) * x) / step + rng.random()
    if fill == "stripes":
        return u % 1 < 0.5
    if fill == "dots":
        return (u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 < 0.09
    if fill == "checks":
        return (np.floor(u) + np.floor(v)) % 2 == 0
    return np.zeros(x.shape, dtype=bool)


def _make(root: Path, settings: dict[str, Any]) -> list[Clip]:
    import numpy as np
    from PIL import Image

    _remove_former(root)
    (root / "images").mkdir(parents=True, exist_ok=True)
    clips, sums = [], {}
    for label, shape in enumerate(SHAPES):
        for index in range(settings["images_per_class"]):
            # an image is the same in a set of any size
            rng = np.random.default_rng((settings["seed"], label, index))
            fill = FILLS[int(rng.integers(len(FILLS)))]
            buffer = io.BytesIO()
            Image.fromarray(draw_image(shape, fill, rng)).save(buffer, format="PNG")
            name = f"{shape}-{index:04d}"
            write_atomically(root / "images" / f"{name}.png", buffer.getvalue())
            split = "test" if index % _TEST_EVERY == _TEST_EVERY - 1 else "train"
            clips.append(Clip(name, image=f"images/{name}.png", labels={"shape": shape, "fill": fill}, split=split))
            sums[name] = hashlib.sha256(buffer.getvalue()).hexdigest()
    stamp = {"settings": settings, "sha256": sums, "clips": [asdict(clip) for clip in clips]}
    write_atomically(root / _STAMP, json.dumps(stamp, indent=1).encode())
    return [replace(clip, image=str(root / str(clip.image))) for clip in clips]


def _read_stamp(root: Path) -> dict[str, Any] | None:
    try:
        stamp = json.loads((root / _STAMP).read_text(encoding="utf-8"))
        return stamp if {"settings", "sha256", "clips"} <= stamp.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _finished(root: Path, settings: dict[str, Any]) -> list[Clip] | None:
    """The clips of a folder that these settings made and that nobody changed, else None."""
    stamp = _read_stamp(root)
    if stamp is None or stamp["settings"] != settings:
        return None
    clips = [Clip(**fields) for fields in stamp["clips"]]
    for clip in clips:
        file = root / str(clip.image)
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != stamp["sha256"][clip.id]:
            return None
    return [replace(clip, image=str(root / str(clip.image))) for clip in clips]


def _remove_former(root: Path) -> None:
    stamp = _read_stamp(root)
    (root / _STAMP).unlink(missing_ok=True)
    for name in stamp["sha256"] if stamp else ():
        (root / "images" / f"{name}.png").unlink(missing_ok=True)
