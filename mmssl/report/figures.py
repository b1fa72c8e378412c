"""Figures of the report as inline SVG: no script, no font, no network.

Colours are classes ("s0" to "s7") that the page's style sheet defines for light and dark; text and lines take
the page's own colour. Widths are small (`WIDTH` units), so that a figure scaled to a phone keeps its text readable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from mmssl.report.svg import (
    NUM_COLOURS,
    Place,
    colour,
    dot,
    drawing,
    grid_x,
    grid_y,
    padded_range,
    rect,
    rule,
    shorten,
    text,
    thinned,
    ticks,
)

WIDTH = 420
_LEFT, _RIGHT, _TOP = 46, 12, 12
_MAX_POINTS = 4000
# half the size of a mark, in SVG units, and its outline around (0, 0); the first one is drawn as a round line cap
SHAPES = ("circle", "square", "triangle", "diamond")
_OUTLINES = {
    "square": "m-2.6-2.6h5.2v5.2h-5.2z",
    "triangle": "m0-3.6l3.4 6h-6.8z",
    "diamond": "m0-3.8l3.2 3.8-3.2 3.8-3.2-3.8z",
}


@dataclass(frozen=True)
class Line:
    """One line of a plot.

    Attributes:
        points: (x, y) pairs, in order of x.
        colour: number of the colour.
        title: what it shows when pointed at.
        style: further classes: "mean" is thick, "dashed" is dashed.
        marked: points to mark with a dot.
    """

    points: Sequence[tuple[float, float]]
    colour: int
    title: str
    style: str = ""
    marked: Sequence[tuple[float, float]] = field(default=())


@dataclass(frozen=True)
class ForestRow:
    """One system of a forest plot; each score is (value, low, high) in plotted units or None.

    Attributes:
        name: of the system.
        mean: over folds, with interval.
        pooled: over clips, with interval.
        folds: one (fold name, value) per fold.
    """

    name: str
    mean: tuple[float, float | None, float | None] | None
    pooled: tuple[float, float | None, float | None] | None
    folds: Sequence[tuple[str, float]]


def forest(rows: Sequence[ForestRow], label: str, reference: tuple[str, float] | None, description: str) -> Markup:
    """A forest plot: per system its folds as dots, the mean over folds and the pooled score with their intervals.

    Args:
        rows: from top to bottom.
        label: of the horizontal axis.
        reference: name and place of a vertical line, such as chance.
        description: the figure in words, for screen readers.
    """
    values = [v for row in rows for score in (row.mean, row.pooled) if score for v in score if v is not None]
    values += [v for row in rows for _, v in row.folds]
    low, high = padded_range([*values, *([reference[1]] if reference else [])], 0.04)
    step, top, left = 56, 22 if reference else 8, 14
    bottom = top + step * len(rows)

    def at(value: float) -> float:
        return left + (WIDTH - left - _RIGHT) * (value - low) / (high - low)

    parts = [grid_x(ticks(low, high), at, top, bottom)]
    if reference:
        x = at(reference[1])
        anchor = "start" if x < WIDTH / 2 else "end"
        # beside the scores alone: it would run through the names between them
        parts += [rule("ref", x, x, top + step * k + 20, top + step * k + 51) for k in range(len(rows))]
        parts.append(text(reference[0], x, top - 10, anchor, "small"))
    for k, row in enumerate(rows):
        parts.append(_forest_row(row, top + step * k, at, k))
    parts.append(text(label, (left + WIDTH) / 2, bottom + 34, "middle"))
    return drawing(WIDTH, bottom + 42, parts, description)


def _forest_row(row: ForestRow, top: float, place: Place, index: int) -> str:
    parts = [text(shorten(row.name, 52), 14, top + 15, "start", "strong")]
    parts += [dot("dot", place(value), top + 28, 3.2, fold) for fold, value in row.folds]
    for score, y in ((row.mean, top + 28), (row.pooled, top + 43)):
        if score is None:
            continue
        value, low, high = score
        if low is not None and high is not None:
            parts.append(rule("ci", place(low), place(high), y, y))
            parts += [rule("ci", place(end), place(end), y - 4, y + 4) for end in (low, high)]
        x = place(value)
        if score is row.mean:
            parts.append(f'<path class="mark" d="M{x:.1f} {y - 6.5}l6.5 6.5-6.5 6.5-6.5-6.5z"/>')
        else:
            parts.append(rect("mark hollow", x - 4.5, y - 4.5, 9, 9))
    return f'<g class="{colour(index)}">{"".join(parts)}</g>'


def line_plot(
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    description: str,
    *,
    log_x: bool = False,
    height: int = 240,
) -> Markup:
    """Lines over a linear or logarithmic axis.

    Args:
        lines: drawn in order; points with a value that is not finite are left out.
        x_label: of the horizontal axis.
        y_label: written above the plot.
        description: the figure in words, for screen readers.
        log_x: decades on the horizontal axis; all x must be positive.
        height: of the plot in SVG units.
    """

    def scale(x: float) -> float:
        return math.log10(x) if log_x else x

    shown = [[(scale(x), y) for x, y in line.points if math.isfinite(x) and math.isfinite(y)] for line in lines]
    xs, ys = [x for p in shown for x, _ in p], [y for p in shown for _, y in p]
    x_low, x_high = padded_range(xs, 0.03)
    y_low, y_high = padded_range(ys)
    top, bottom = _TOP + 14, height - 38

    def at_x(x: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * (x - x_low) / (x_high - x_low)

    def at_y(y: float) -> float:
        return bottom - (bottom - top) * (y - y_low) / (y_high - y_low)

    x_ticks = sorted(dict.fromkeys(xs)) if log_x else ticks(min(xs, default=0.0), max(xs, default=1.0))
    parts = [
        grid_x(thinned(x_ticks, 7), at_x, top, bottom, (lambda v: f"{10**v:.3g}") if log_x else None),
        grid_y(ticks(y_low, y_high), at_y, _LEFT, WIDTH - _RIGHT),
    ]
    for line, points in zip(lines, shown, strict=True):
        if points:
            path, kind = "L".join(f"{at_x(x):.1f} {at_y(y):.1f}" for x, y in points), f"line {colour(line.colour)}"
            title = f"<title>{escape(line.title)}</title>"
            parts.append(f'<path class="{f"{kind} {line.style}".strip()}" d="M{path}">{title}</path>')
        parts += [dot(f"dot {colour(line.colour)}", at_x(scale(x)), at_y(y), 4, line.title) for x, y in line.marked]
    parts.append(text(y_label, _LEFT, _TOP))
    parts.append(text(x_label, (_LEFT + WIDTH - _RIGHT) / 2, bottom + 32, "middle"))
    return drawing(WIDTH, height, parts, description)


def layer_map(weights: Mapping[str, Sequence[float]], description: str) -> Markup:
    """Learned layer weights: the mean over folds as bars above a map of folds by layers.

    Args:
        weights: fold name -> one weight per layer; all of the same length.
        description: the figure in words, for screen readers.
    """
    folds, count = list(weights), max(len(w) for w in weights.values())
    left, bars, top = 64, 70, _TOP + 12
    cell = (WIDTH - left - _RIGHT) / count
    row = max(10, min(20, 260 / len(folds)))
    largest = max(max(w, default=0.0) for w in weights.values()) or 1.0
    means = [sum(w[k] if k < len(w) else 0.0 for w in weights.values()) / len(folds) for k in range(count)]
    peak = max(means) or 1.0
    parts = [text(f"mean over folds, largest {peak:.3g}", left, _TOP)]
    for k, mean in enumerate(means):
        height = max(bars * mean / peak, 0.5)
        x, y = left + (k + 0.06) * cell, top + bars - height
        parts.append(rect("fill s0", x, y, 0.88 * cell, height, title=f"layer {k}: {mean:.3f}"))
    start = top + bars + 8
    for r, fold in enumerate(folds):
        y = start + r * row
        if row >= 12 or r % math.ceil(12 / row) == 0:
            parts.append(text(shorten(fold, 9), left - 5, y + row / 2 + 3.5, "end", "small"))
        for k, weight in enumerate(weights[fold]):
            title, opacity = f"{fold}, layer {k}: {weight:.3f}", max(weight, 0.0) / largest
            parts.append(rect("fill s0", left + k * cell, y, cell, row, title=title, opacity=opacity))
    end = start + len(folds) * row
    parts.append(rect("frame", left, start, cell * count, end - start))
    parts += [text(str(k), left + (k + 0.5) * cell, end + 14, "middle", "small") for k in thinned(range(count), 13)]
    parts.append(text("layer (0 is the input of the first block)", left + cell * count / 2, end + 32, "middle"))
    return drawing(WIDTH, math.ceil(end + 40), parts, description)


def point_map(
    x: Sequence[float], y: Sequence[float], groups: Sequence[int], names: Sequence[str], description: str
) -> Markup:
    """Points in the plane, one colour and shape per group; no axes, because their units mean nothing.

    Args:
        x: horizontal places.
        y: vertical places; as many as `x`.
        groups: index into `names` of each point.
        names: of the groups, shown when pointed at.
        description: the figure in words, for screen readers.
    """
    places = [(a, b, g) for a, b, g in zip(x, y, groups, strict=True) if math.isfinite(a) and math.isfinite(b)]
    places = places[:: math.ceil(len(places) / _MAX_POINTS)] if len(places) > _MAX_POINTS else places
    size, height, edge = WIDTH, 340, 10
    x_low, x_high = padded_range((a for a, _, _ in places), 0.02)
    y_low, y_high = padded_range((b for _, b, _ in places), 0.02)
    paths: dict[int, list[str]] = {}
    for a, b, group in places:
        px = edge + (size - 2 * edge) * (a - x_low) / (x_high - x_low)
        py = height - edge - (height - 2 * edge) * (b - y_low) / (y_high - y_low)
        paths.setdefault(group, []).append(f"M{px:.1f} {py:.1f}{_OUTLINES.get(shape_of(group), 'h0')}")
    parts = [rect("frame", 1, 1, size - 2, height - 2)]
    for group in sorted(paths):
        kind = "points" if shape_of(group) == "circle" else "points solid"
        title = f"<title>{escape(names[group])}</title>"
        parts.append(f'<path class="{kind} {colour(group)}" d="{"".join(paths[group])}">{title}</path>')
    return drawing(size, height, parts, description)


def key_mark(group: int) -> Markup:
    """The mark of a group of `point_map`, for a legend."""
    kind = "points" if shape_of(group) == "circle" else "points solid"
    path = f'<path class="{kind} {colour(group)}" d="M6 6{_OUTLINES.get(shape_of(group), "h0")}"/>'
    return Markup('<svg class="key" viewBox="0 0 12 12" width="12" height="12" aria-hidden="true">{}</svg>').format(
        Markup(path)
    )


def shape_of(group: int) -> str:
    """Shape of a group's marks: another one each time the colours are used up."""
    return SHAPES[group // NUM_COLOURS % len(SHAPES)]
