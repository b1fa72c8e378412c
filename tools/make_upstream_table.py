"""Write docs/upstreams.md: every upstream with its sizes, and how far padding moves its features.

    python tools/make_upstream_table.py           # minutes; keeps the table of base sizes that the page has
    python tools/make_upstream_table.py --base    # measures that one again, too

Sizes and sources come from `mmssl.upstreams.catalog`, which the tests compare with the objects that are built; the
measured column comes from the check of the contract suite on the tiny models of `tests/contract/tiny.py`.
"""

from __future__ import annotations

import argparse
import datetime
import logging
import re
import runpy
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmssl.upstreams.catalog import CATALOG, Entry

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "upstreams.md"
BASE_HEADING = "### Default sizes"
COLUMNS = (
    "name",
    "input",
    "layers",
    "frame shift (ms)",
    "padding kept out by",
    "loads",
    "paper",
    "licence of the weights",
    "alone = padded, to",
)
UNKNOWN = "-"


def entries() -> Iterator[tuple[str, Entry]]:
    """Each built-in upstream, and each model type of those that wrap several as "upstream: model type"."""
    for name, entry in CATALOG.items():
        yield from (
            ((f"{name}: {family}", e) for family, e in entry.families.items()) if entry.families else [(name, entry)]
        )


def static_rows() -> list[tuple[str, ...]]:
    """All columns but the measured one."""
    return [
        (
            name,
            ", ".join(_input(entry, kind) for kind in entry.inputs),
            f"{next(iter(entry.streams))}: {entry.sizes}" if len(entry.streams) == 1 else entry.sizes,
            "; ".join(_shifts(entry, stream) for stream in entry.streams) or UNKNOWN,
            entry.invariance,
            ", ".join(entry.checkpoints) or ("comes with its weights" if entry.shipped else "has no weights"),
            entry.paper or UNKNOWN,
            entry.licence or UNKNOWN,
        )
        for name, entry in entries()
    ]


def _input(entry: Entry, kind: str) -> str:
    if kind == "waveforms" and entry.sample_rate:
        return f"waveforms, {entry.sample_rate / 1000:g} kHz"
    if kind == "video" and entry.video_fps:
        return f"video, {entry.video_fps:g} Hz"
    return kind


def _shifts(entry: Entry, stream: str) -> str:
    shifts = list(dict.fromkeys(run.frame_shift for run in entry.streams[stream]))
    text = ", ".join("no time axis" if shift is None else f"{shift:g}" for shift in shifts)
    tokens = entry.streams[stream][0].tokens_per_frame
    text += f" ({tokens} tokens a frame)" if tokens > 1 else ""
    return text if len(entry.streams) == 1 else f"{stream}: {text}"


def measured() -> dict[str, str]:
    """Name of a row -> the largest difference that the contract's check finds on its tiny models."""
    from mmssl import load_upstream
    from mmssl.testing.upstream_case import Case
    from mmssl.testing.upstream_checks import CHECKS

    tiny = runpy.run_path(str(ROOT / "tests" / "contract" / "tiny.py"))["TINY"]
    found: dict[str, float] = {}
    for name, rows in tiny.items():
        for kwargs in rows:
            row = f"{name}: {kwargs['config']['model_type']}" if CATALOG[name].families else name
            case = Case(lambda name=name, kwargs=kwargs: load_upstream(name, **kwargs), 2.5, 1e-5)  # type: ignore[misc]
            for check in ("loads", "spec"):
                CHECKS[check](case)
            number = re.search(r"\d\.\de[+-]\d+", CHECKS["alone = padded = shuffled"](case))
            if number is None:
                raise RuntimeError(f"the contract's check states no number for {row}")
            found[row] = max(found.get(row, 0.0), float(number[0]))
            print(f"{row}: {number[0]}", file=sys.stderr)
    return {row: f"{value:.1e}" if value else "0" for row, value in found.items()}


def markdown(rows: list[tuple[str, ...]], header: tuple[str, ...] = COLUMNS) -> str:
    """A markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ("---",) * len(header), *rows])


def read_rows(page: str) -> list[tuple[str, ...]]:
    """The rows of the page's first table, as `markdown` wrote them."""
    lines = iter(page.splitlines())
    for line in lines:
        if line == f"| {' | '.join(COLUMNS)} |":
            break
    next(lines, None)
    rows = []
    for line in lines:
        if not line.startswith("| "):
            break
        rows.append(tuple(line.removeprefix("| ").removesuffix(" |").split(" | ")))
    return rows


def make_page(differences: dict[str, str], exactness: str, base: str, machine: str) -> str:
    """The whole page."""
    rows = [(*row, differences.get(row[0], UNKNOWN)) for row in static_rows()]
    return f"""# Upstreams

Written by `tools/make_upstream_table.py` on {datetime.date.today().isoformat()};
do not edit by hand. `mmssl upstreams --json` gives the same for programs,
`mmssl check-upstream NAME` runs the contract suite.

Sizes are those of the default arguments; a checkpoint brings its own. Rows named `hf: ...` are model types of
transformers that `hf` wraps, with transformers' default sizes. The last column is the largest difference between a
clip alone, padded and in a shuffled batch, in parts of the layer's scale (root mean square), over all layers and
streams: the check of the contract suite on tiny models with random weights ({machine}).

Licences are those that the authors state for their weights; where a row names a LICENSE file or shows
`{UNKNOWN}`, read it at the source before use. The only weights that `mmssl` ships are those of `hubert_nano`.

{markdown(rows)}

## Padding in plain transformers and here

The largest difference between a clip alone and the same clip in a padded batch, in parts of the layer's scale: in
transformers with the attention mask of the model's feature extractor, in transformers without it, and in mmssl; each
for the last layer and for the worst one. Same weights, with norms moved away from the identity, same clips
(`python benchmarks/upstream_exactness.py [--base]`).

### Tiny sizes

{exactness}

{BASE_HEADING}

{base}
"""


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", action="store_true", help="measure the default sizes of transformers again")
    args = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask")
    benchmark: dict[str, Any] = runpy.run_path(str(ROOT / "benchmarks" / "upstream_exactness.py"))
    report, configurations = benchmark["report"], benchmark["configurations"]
    differences = measured()
    base = PAGE.read_text(encoding="utf-8").partition(f"{BASE_HEADING}\n")[2].strip() if PAGE.is_file() else ""
    if args.base or not base:
        base = report(configurations(True), True, True)
    page = make_page(differences, report(configurations(False), False, True), base, benchmark["machine"]())
    temporary = PAGE.with_suffix(".md.new")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(PAGE)
    print(f"wrote {PAGE.relative_to(ROOT)}: {len(static_rows())} rows")


if __name__ == "__main__":
    main()
