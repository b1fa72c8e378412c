"""Decoded clips on the page of recipes/av_recognition: references beside what was decoded, errors marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np
from markupsafe import Markup

from mmssl.metrics.sequences import distance_rows
from mmssl.stages.av_page import Section

BOUNDARY = "|"
"""Stands between words."""
SHOWN = 5
"""Clips of each kind."""
_EXPLAINED = (
    "Marked: in the reference what was missed or mistaken, in what was decoded what is wrong; errors are counted in "
    "characters, the spaces between words among them."
)
_LEFT = Markup('<div class="left">{}</div>')
_HEADER = ["clip", "errors", _LEFT.format("reference"), _LEFT.format("decoded")]

Pair = tuple[str | None, str | None]


def decoded_section(title: str, rows: Sequence[Mapping[str, str]]) -> Section:
    """Clips with the most errors for their length, and some in the middle.

    Args:
        title: of the section.
        rows: with "id", "reference" and "hypothesis", symbols with spaces between; no reference is empty.
    """
    aligned = {row["id"]: alignment(row["reference"].split(), row["hypothesis"].split()) for row in rows}
    errors = {clip: sum(a != b for a, b in pairs) for clip, pairs in aligned.items()}
    sizes = {clip: sum(a is not None for a, _ in pairs) for clip, pairs in aligned.items()}
    ranked = sorted(aligned, key=lambda clip: (-errors[clip] / sizes[clip], clip))
    shown, text = ranked, f"All {len(ranked)} test clips, those with the most errors for their length first."
    if len(ranked) > 2 * SHOWN:
        middle = max(SHOWN, (len(ranked) - SHOWN) // 2)
        shown = ranked[:SHOWN] + ranked[middle : middle + SHOWN]
        text = (
            f"Of {len(ranked)} test clips {SHOWN} with the most errors for their length, and {SHOWN} around the median."
        )
    body = [
        [clip, f"{errors[clip]} of {sizes[clip]}", *(_cell(aligned[clip], side) for side in (0, 1))] for clip in shown
    ]
    return Section(title, [f"{text} {_EXPLAINED}"], _HEADER, body)


def alignment(reference: Sequence[str], hypothesis: Sequence[str]) -> list[Pair]:
    """Symbols of both sequences beside each other, with as many errors as `edit_distance` counts.

    Returns:
        (a, b) for a symbol that was kept or replaced, (a, None) for one that is missing, (None, b) for one too many.
        Of several ways with the fewest errors the one that replaces late, rather than leaving out, is taken.
    """
    table = list(distance_rows(reference, np.array(hypothesis, dtype=object)))
    i, j = len(reference), len(hypothesis)
    pairs: list[Pair] = []
    while i or j:
        errors = table[i][j]
        if i and j and table[i - 1][j - 1] + (reference[i - 1] != hypothesis[j - 1]) == errors:
            i, j = i - 1, j - 1
            pairs.append((reference[i], hypothesis[j]))
        elif i and table[i - 1][j] + 1 == errors:
            i -= 1
            pairs.append((reference[i], None))
        else:
            j -= 1
            pairs.append((None, hypothesis[j]))
    return pairs[::-1]


def _cell(pairs: Sequence[Pair], side: int) -> Markup:
    """Words of one side, with <mark> around what is wrong."""
    parts = []
    for wrong, run in groupby(pairs, key=lambda pair: pair[0] != pair[1]):
        words = "".join(" " if pair[side] == BOUNDARY else pair[side] or "" for pair in run)
        if words:
            parts.append(Markup("<mark>{}</mark>" if wrong else "{}").format(words))
    return Markup('<div class="wrap left">{}</div>').format(Markup("").join(parts) or "–")
