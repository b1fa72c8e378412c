"""Detection error trade-off curves as inline SVG, on the axes of normal deviates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from markupsafe import Markup, escape

from mmssl.report.figures import WIDTH
from mmssl.report.svg import colour, drawing, rule, text

TICKS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 24, 40
_NORMAL = NormalDist()


@dataclass(frozen=True)
class DetCurve:
    """One curve.

    Attributes:
        name: of the system.
        points: (false-alarm rate, miss rate) pairs, along the curve.
        colour: its number.
        dashed: drawn so, for baselines.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: int
    dashed: bool = False


def det_plot(curves: Sequence[DetCurve], description: str) -> Markup:
    """Miss rate over false-alarm rate; both axes are normal deviates, so that Gaussian scores give straight lines.

    Source: Martin et al. 1997, "The DET curve in assessment of detection task performance". The diagonal is where both
    rates are equal. What lies beyond the axes is drawn along their ends.

    Args:
        curves: drawn in order.
        description: the figure in words, for screen readers.
    """
    rates = [rate for curve in curves for pair in curve.points for rate in pair]
    # from the largest tick below every rate on, and two decades at least
    least = min([0.05, *(rate for rate in rates if rate > 0)])
    low = max((tick for tick in TICKS if tick <= least), default=TICKS[0])
    ticks = [tick for tick in TICKS if tick >= low]
    side = WIDTH - _LEFT - _RIGHT
    first, last = _NORMAL.inv_cdf(ticks[0]), _NORMAL.inv_cdf(ticks[-1])

    def share(rate: float) -> float:
        inside = min(max(rate, ticks[0]), ticks[-1])
        return (_NORMAL.inv_cdf(inside) - first) / (last - first)

    def at(alarm: float, miss: float) -> tuple[float, float]:
        return _LEFT + side * share(alarm), _TOP + side * (1 - share(miss))

    parts = []
    for tick in ticks:
        (x, y), shown = at(tick, tick), f"{100 * tick:g}"
        parts.append(rule("grid", x, x, _TOP, _TOP + side) + text(shown, x, _TOP + side + 15, "middle", "small"))
        parts.append(rule("grid", _LEFT, _LEFT + side, y, y) + text(shown, _LEFT - 6, y + 3.5, "end", "small"))
    parts.append(rule("ref", _LEFT, _LEFT + side, _TOP + side, _TOP))
    for curve in curves:
        places = "L".join("{:.1f} {:.1f}".format(*at(*point)) for point in curve.points)
        kind = f"line mean {colour(curve.colour)}{' dashed' if curve.dashed else ''}"
        parts.append(f'<path class="{kind}" d="M{places}"><title>{escape(curve.name)}</title></path>')
    parts.append(text("miss rate %", _LEFT, _TOP - 10))
    parts.append(text("false-alarm rate %", _LEFT + side / 2, _TOP + side + 33, "middle"))
    return drawing(WIDTH, _TOP + side + _BOTTOM, parts, description)


def line_mark(curve: DetCurve) -> Markup:
    """A short piece of a curve's line, for a legend."""
    kind = f"line mean {colour(curve.colour)}{' dashed' if curve.dashed else ''}"
    return Markup(
        f'<svg class="key" viewBox="0 0 24 12" width="24" height="12" aria-hidden="true">'
        f'<path class="{kind}" d="M0 6h24"/></svg>'
    )
