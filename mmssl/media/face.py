"""A drawn face: who it is, how it looks, and where it is in the picture -> pixels.

Everything is drawn as polygons and ellipses at four times the size and averaged down, so that edges are smooth and a
movement of a quarter of a pixel shows. The unit of length is half the height of the head; x goes right and y down
from the middle of the face.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy

Colour = tuple[int, int, int]
Point = tuple[float, float]

HAIR_STYLES = ("bald", "short", "side", "long", "bun", "curly")
_SUPERSAMPLING = 4
_STEPS = 12
# where the hair is parted, -1 to 1, and how far it comes down
_FRINGES = {"short": (0.15, 0.1), "side": (0.5, 0.2), "long": (-0.35, 0.18), "bun": (0.0, 0.1), "curly": (0.0, 0.18)}
_WHITE: Colour = (244, 242, 238)
_INSIDE: Colour = (66, 20, 26)
_TONGUE: Colour = (196, 92, 96)
_PUPIL: Colour = (22, 18, 18)


@dataclass(frozen=True)
class Identity:
    """What stays the same of a face.

    Attributes:
        skin, hair_colour, iris, lips, shirt: colours, 0 to 255.
        width: of the head, as a share of its height.
        jaw: how much the head narrows towards the chin, 0 to 0.5.
        eyes: distance of an eye from the middle, and size.
        nose: length and width.
        mouth: half the width, and thickness of the lips.
        brow: thickness of the eyebrows.
        hair: one of HAIR_STYLES.
        extras: any of "beard", "glasses".
    """

    skin: Colour
    hair_colour: Colour
    iris: Colour
    lips: Colour
    shirt: Colour
    width: float
    jaw: float
    eyes: tuple[float, float]
    nose: tuple[float, float]
    mouth: tuple[float, float]
    brow: float
    hair: str
    extras: tuple[str, ...]


@dataclass(frozen=True)
class Expression:
    """What moves within a face; all 0 is a face at rest with its mouth shut.

    Attributes:
        brow_raise: 1 is high.
        brow_tilt: 1 lifts the inner ends (grief), -1 lowers them (anger).
        lids: -1 is shut, 0 at rest, 0.5 wide open.
        gaze: of the eyes, -1 left to 1 right.
        corners: of the mouth, 1 up, -1 down.
        opening: of the mouth, 0 shut to 1 wide.
        spread: of the mouth, 1 wide, -1 rounded.
        teeth, tongue: how much of them shows, 0 to 1.
    """

    brow_raise: float = 0.0
    brow_tilt: float = 0.0
    lids: float = 0.0
    gaze: float = 0.0
    corners: float = 0.0
    opening: float = 0.0
    spread: float = 0.0
    teeth: float = 0.0
    tongue: float = 0.0


@dataclass(frozen=True)
class Pose:
    """Where the head is: middle and half-height as shares of the picture, roll in radians, yaw and pitch -1 to 1."""

    x: float = 0.5
    y: float = 0.5
    scale: float = 0.34
    roll: float = 0.0
    yaw: float = 0.0
    pitch: float = 0.0


def backdrop(top: Colour, bottom: Colour, size: int) -> Any:
    """A picture for `draw_face` to draw on: a vertical gradient."""
    import numpy as np
    from PIL import Image

    share = np.linspace(0, 1, size * _SUPERSAMPLING)[:, None, None]
    column = (1 - share) * np.array(top) + share * np.array(bottom)
    return Image.fromarray(np.broadcast_to(np.round(column), (len(column), len(column), 3)).astype(np.uint8))


def draw_face(ground: Any, identity: Identity, expression: Expression, pose: Pose) -> numpy.ndarray:
    """Draw a face.

    Args:
        ground: a picture from `backdrop`; it is left as it is.
        identity: whose face.
        expression: what it does.
        pose: where it is.

    Returns:
        (size, size, 3) uint8.
    """
    import numpy as np

    canvas = _Canvas(ground.copy(), pose)
    _draw_behind(canvas, identity)
    outline = _head(identity, 0.07 * expression.opening)
    canvas.polygon(outline, identity.skin)
    if "beard" in identity.extras:
        _draw_beard(canvas, identity, outline)
    _draw_eyes(canvas, identity, expression)
    _draw_nose(canvas, identity)
    _draw_mouth(canvas, identity, expression)
    _draw_hair(canvas, identity)
    _draw_brows(canvas, identity, expression)
    if "glasses" in identity.extras:
        _draw_glasses(canvas, identity)
    return np.asarray(canvas.image.reduce(_SUPERSAMPLING))


def head_box(identity: Identity, expression: Expression, pose: Pose, size: int) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) in pixels of the head's outline, without hair, in a picture of `size` x `size`."""
    cos, sin = math.cos(pose.roll), math.sin(pose.roll)
    points = _head(identity, 0.07 * expression.opening)
    across = [size * (pose.x + pose.scale * (cos * x - sin * y)) for x, y in points]
    down = [size * (pose.y + pose.scale * (sin * x + cos * y)) for x, y in points]
    return min(across), min(down), max(across), max(down)


class _Canvas:
    """A picture with the head's own coordinates. Features that stand out move further when the head turns."""

    def __init__(self, image: Any, pose: Pose) -> None:
        from PIL import ImageDraw

        self.image = image
        self._draw = ImageDraw.Draw(image)
        side = image.size[0]
        self.unit = pose.scale * side
        self._middle = (pose.x * side, pose.y * side)
        self._roll = (math.cos(pose.roll), math.sin(pose.roll))
        self._turn = (0.16 * pose.yaw, 0.12 * pose.pitch)

    def polygon(self, points: Iterable[Point], colour: Colour, depth: float = 0.0) -> None:
        """Fill a polygon; depth 0 is the head's outline, 1 the tip of the nose, below 0 what lies behind."""
        self._draw.polygon([self._at(point, depth) for point in points], fill=colour)

    def line(self, points: Sequence[Point], colour: Colour, width: float, depth: float = 0.0) -> None:
        """Draw a line with round joints; `width` in the unit of the head."""
        pixels = max(1, round(width * self.unit))
        self._draw.line([self._at(point, depth) for point in points], fill=colour, width=pixels, joint="curve")

    def disc(self, middle: Point, radius: float, colour: Colour, depth: float = 0.0) -> None:
        """Fill a circle."""
        x, y = self._at(middle, depth)
        reach = radius * self.unit
        self._draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=colour)

    def _at(self, point: Point, depth: float) -> Point:
        x, y = point[0] + depth * self._turn[0], point[1] + depth * self._turn[1]
        cos, sin = self._roll
        return self._middle[0] + self.unit * (cos * x - sin * y), self._middle[1] + self.unit * (sin * x + cos * y)


def _shade(colour: Colour, factor: float) -> Colour:
    return (
        min(255, round(colour[0] * factor)),
        min(255, round(colour[1] * factor)),
        min(255, round(colour[2] * factor)),
    )


def _head(identity: Identity, drop: float, grow: float = 1.0) -> list[Point]:
    """Outline, clockwise from the right; the chin is `drop` lower than at rest."""
    points = []
    for step in range(48):
        angle = 2 * math.pi * step / 48
        x, y = math.cos(angle), math.sin(angle)
        x = math.copysign(abs(x) ** 0.86, x) * identity.width * (1 - identity.jaw * max(0.0, y) ** 1.5)
        points.append((x * grow, (y + max(0.0, y) * drop) * grow))
    return points


def _ellipse(middle: Point, width: float, height: float) -> list[Point]:
    angles = [2 * math.pi * step / 24 for step in range(24)]
    return [(middle[0] + width * math.cos(a), middle[1] + height * math.sin(a)) for a in angles]


def _arc(width: float, end: float, middle: float, x: float = 0.0) -> list[Point]:
    """A parabola over [-width, width], through `end` at both ends and `middle` between."""
    shares = [2 * step / _STEPS - 1 for step in range(_STEPS + 1)]
    return [(x + width * share, end * share**2 + middle * (1 - share**2)) for share in shares]


def _draw_behind(canvas: _Canvas, identity: Identity) -> None:
    w = identity.width
    if identity.hair == "long":
        canvas.polygon(
            [*_ellipse((0, -0.15), 1.28 * w, 1.05), (1.28 * w, 0), (-1.28 * w, 0)], identity.hair_colour, -0.3
        )
        canvas.polygon(
            [(-1.28 * w, -0.2), (1.28 * w, -0.2), (1.2 * w, 1.25), (-1.2 * w, 1.25)], identity.hair_colour, -0.3
        )
    elif identity.hair == "bun":
        canvas.disc((0, -1.12), 0.34, identity.hair_colour, -0.4)
    elif identity.hair == "curly":
        for step in range(11):
            angle = math.pi * (1.02 + 0.96 * step / 10)
            canvas.disc((1.08 * w * math.cos(angle), -0.1 + 0.95 * math.sin(angle)), 0.3, identity.hair_colour, -0.1)
    canvas.polygon(_ellipse((0, 1.9), 1.35, 0.75), identity.shirt, -0.8)
    neck = _shade(identity.skin, 0.82)
    canvas.polygon([(-0.3, 0.6), (0.3, 0.6), (0.34, 1.25), (0, 1.4), (-0.34, 1.25)], neck, -0.4)
    for side in (-1, 1):
        canvas.polygon(_ellipse((side * 0.99 * w, 0.02), 0.11, 0.2), _shade(identity.skin, 0.9), -0.3)


def _draw_beard(canvas: _Canvas, identity: Identity, outline: Sequence[Point]) -> None:
    lower = [point for point in outline if point[1] > 0.22]
    canvas.polygon([*lower, *((x, 0.3 + 0.12 * abs(x)) for x, _ in lower[::-1])], identity.hair_colour)


def _draw_eyes(canvas: _Canvas, identity: Identity, expression: Expression) -> None:
    distance, size = identity.eyes
    width, height = 0.19 * size, 0.15 * size * max(0.0, 1 + expression.lids)
    level = -0.16
    for side in (-1, 1):
        x = side * distance
        upper = [(px, level + y) for px, y in _arc(width, 0.0, -height, x)]
        lower = [(px, level + y) for px, y in _arc(width, 0.0, 0.6 * height, x)]
        if height > 0.02:
            canvas.polygon([*upper, *lower[::-1]], _WHITE, 0.5)
            middle = (x + 0.07 * size * expression.gaze, level - 0.015)
            canvas.disc(middle, 0.1 * size, identity.iris, 0.5)
            canvas.disc(middle, 0.05 * size, _PUPIL, 0.5)
        # lids over the part of the iris that would stick out
        brim, reach = width + 0.03, 0.17 * size
        canvas.polygon([(x - brim, level - reach), *upper, (x + brim, level - reach)], identity.skin, 0.5)
        canvas.polygon([(x - brim, level + reach), *lower, (x + brim, level + reach)], identity.skin, 0.5)
        canvas.line(upper, _shade(identity.skin, 0.35), 0.045, 0.5)


def _draw_brows(canvas: _Canvas, identity: Identity, expression: Expression) -> None:
    distance, size = identity.eyes
    level = -0.43 - 0.11 * expression.brow_raise
    colour = _shade(identity.hair_colour, 0.75)
    for side in (-1, 1):
        inner = (side * (distance - 0.2 * size), level - 0.13 * expression.brow_tilt)
        middle = (side * (distance + 0.02), level - 0.05 - 0.02 * expression.brow_tilt)
        outer = (side * (distance + 0.23 * size), level + 0.02 + 0.07 * expression.brow_tilt)
        canvas.line([inner, middle, outer], colour, identity.brow, 0.6)


def _draw_nose(canvas: _Canvas, identity: Identity) -> None:
    length, width = identity.nose
    shadow = _shade(identity.skin, 0.8)
    tip = -0.1 + length
    canvas.polygon([(-0.03, -0.12), (0.03, -0.12), (width, tip), (-width, tip)], _shade(identity.skin, 0.93), 0.8)
    canvas.line(
        [(-width, tip - 0.03), (-0.4 * width, tip + 0.03), (0.4 * width, tip + 0.03), (width, tip - 0.03)],
        shadow,
        0.045,
        1.0,
    )


def _draw_mouth(canvas: _Canvas, identity: Identity, expression: Expression) -> None:
    width, thickness = identity.mouth
    width *= 1 + (0.22 if expression.spread > 0 else 0.4) * expression.spread + 0.1 * max(0.0, expression.corners)
    opening = max(0.0, expression.opening)
    # rounded lips are thicker and stand out
    thickness *= 1 + 0.35 * max(0.0, -expression.spread)
    level = 0.5
    ends = level - 0.14 * expression.corners
    top = level + 0.05 * expression.corners - 0.06 * opening
    bottom = level + 0.05 * expression.corners + 0.34 * opening
    upper, lower = _arc(width, ends, top), _arc(width, ends, bottom)
    rim = _arc(1.06 * width, ends, top - thickness), _arc(1.06 * width, ends, bottom + 1.25 * thickness)
    canvas.polygon([*rim[0], *rim[1][::-1]], identity.lips, 0.7)
    if bottom - top > 0.03:
        canvas.polygon([*upper, *lower[::-1]], _INSIDE, 0.7)
        if expression.teeth > 0:
            shown = min(0.11, 0.55 * (bottom - top)) * expression.teeth
            canvas.polygon([*upper, *_arc(width, ends, top + shown)[::-1]], _WHITE, 0.7)
        if expression.tongue > 0:
            height = 0.5 * (bottom - top) * expression.tongue
            side = ends + (bottom - ends) * (1 - 0.6**2)
            back = _arc(0.6 * width, side, bottom - height)
            canvas.polygon([*back, *_arc(0.6 * width, side, bottom)[::-1]], _TONGUE, 0.7)
    else:
        canvas.line(upper, _shade(identity.lips, 0.5), 0.035, 0.7)


def _draw_hair(canvas: _Canvas, identity: Identity) -> None:
    if identity.hair == "bald":
        return
    cap = [point for point in _head(identity, 0.0, 1.06) if point[1] < -0.3]
    # from the left temple over the top to the right one, and back along the fringe
    cap.sort(key=lambda point: math.atan2(point[1], point[0]))
    (left, _), (right, _) = cap[0], cap[-1]
    part, depth = _FRINGES[identity.hair]
    fringe = []
    for step in range(_STEPS + 1):
        across = 1 - 2 * step / _STEPS
        height = (0.46 - depth) * (1 - across**2) - 0.12 * part * math.sin(math.pi * across)
        fringe.append(((left + right + across * (right - left)) / 2, -0.34 - height))
    canvas.polygon([*cap, *fringe], identity.hair_colour, 0.1)


def _draw_glasses(canvas: _Canvas, identity: Identity) -> None:
    distance, size = identity.eyes
    for side in (-1, 1):
        ring = _ellipse((side * distance, -0.14), 0.26 * size, 0.24 * size)
        canvas.line([*ring, ring[0]], _PUPIL, 0.045, 0.7)
    gap = distance - 0.26 * size
    canvas.line([(-gap, -0.18), (gap, -0.18)], _PUPIL, 0.045, 0.7)
