"""Marks, axes and colours that the figures are drawn with. All text and titles are escaped here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from markupsafe import Markup, escape

Place = Callable[[float], float]
Item = TypeVar("Item")
NUM_COLOURS = 8


def drawing(width: float, height: float, parts: Iterable[str], description: str) -> Markup:
    """An <svg> of parts that are already markup, with a description for screen readers."""
    inner = "".join(parts)
    return Markup(
        f'<svg viewBox="0 0 {width} {height:.0f}" role="img" aria-label="{escape(description)}">{inner}</svg>'
    )


def text(words: str, x: float, y: float, anchor: str = "start", kind: str = "") -> str:
    """One line of text; `anchor` is start, middle or end."""
    styled = f' class="{kind}"' if kind else ""
    return f'<text{styled} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def rule(kind: str, x1: float, x2: float, y1: float, y2: float) -> str:
    """A straight line."""
    return f'<line class="{kind}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'


def dot(kind: str, x: float, y: float, radius: float, title: str) -> str:
    """A filled circle that says its title when pointed at."""
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"><title>{escape(title)}</title></circle>'


def rect(
    kind: str, x: float, y: float, width: float, height: float, *, title: str = "", opacity: float | None = None
) -> str:
    """A rectangle, with a title and an opacity in [0, 1] where they are given."""
    faded = "" if opacity is None else f' fill-opacity="{opacity:.3f}"'
    shape = f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"{faded}'
    return f"{shape}><title>{escape(title)}</title></rect>" if title else f"{shape}/>"


def grid_x(
    values: Sequence[float], place: Place, top: float, bottom: float, write: Callable[[float], str] | None = None
) -> str:
    """Vertical grid lines with their numbers below."""
    return "".join(
        rule("grid", place(v), place(v), top, bottom)
        + text((write or _number)(v), place(v), bottom + 15, "middle", "small")
        for v in values
    )


def grid_y(values: Sequence[float], place: Place, left: float, right: float) -> str:
    """Horizontal grid lines with their numbers on the left."""
    return "".join(
        rule("grid", left, right, place(v), place(v)) + text(_number(v), left - 6, place(v) + 3.5, "end", "small")
        for v in values
    )


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` numbers between two values, all inside [low, high]: multiples of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.63)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def padded_range(values: Iterable[float], margin: float = 0.06) -> tuple[float, float]:
    """A range that holds all values with some room; never of zero width."""
    known = [v for v in values if math.isfinite(v)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    room = (high - low) * margin or max(abs(high) * 0.05, 0.05)
    return low - room, high + room


def thinned(values: Sequence[Item], most: int) -> list[Item]:
    """At most `most` of the values, evenly taken, the first among them."""
    return list(values[:: math.ceil(len(values) / most)]) if values else []


def shorten(words: str, limit: int) -> str:
    """Text of at most `limit` characters, an ellipsis in place of what is cut."""
    return words if len(words) <= limit else words[: limit - 1] + "…"


def colour(index: int) -> str:
    """Class of a colour; they begin again after the last one."""
    return f"s{index % NUM_COLOURS}"


def heat(share: float) -> tuple[str, str]:
    """Background and text colour of a cell of value `share` in [0, 1].

    The text is black or white, whichever has the higher contrast on the background (WCAG 2.1, relative luminance); it
    is at least 4.5 to 1 everywhere.
    """
    share = min(max(share, 0.0), 1.0)
    light, dark = (240, 246, 252), (8, 48, 107)
    mixed = [round(a + (b - a) * share) for a, b in zip(light, dark, strict=True)]
    # black on the cell has (l + 0.05) / 0.05, white has 1.05 / (l + 0.05): equal where (l + 0.05)^2 = 0.0525
    dark_text = (luminance(mixed) + 0.05) ** 2 > 0.0525
    return "#" + "".join(f"{c:02x}" for c in mixed), "#000000" if dark_text else "#ffffff"


def luminance(rgb: Sequence[int]) -> float:
    """Relative luminance in [0, 1] of an sRGB colour of three values 0 to 255 (WCAG 2.1)."""
    linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _number(value: float) -> str:
    return f"{value:.6g}"
