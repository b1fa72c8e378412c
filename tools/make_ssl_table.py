#!/usr/bin/env python
"""Write the table of pretraining methods in docs/pretraining.md from the results.json files of recipes/ssl.

    python tools/make_ssl_table.py [egs/mini/ssl] [--output docs/pretraining.md] [--check]

Every experiment of the folder that has results gives a row. What stands between the two marks in the document is
replaced, everything else is kept; a document that does not exist is made.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmssl.report.pretraining_table import BEGIN, END, document_with, read_results, render_table

ROOT = Path(__file__).parents[1]


def main() -> int:
    """Write the document, or with --check say whether it is up to date."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, default=[ROOT / "egs" / "mini" / "ssl"])
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "pretraining.md")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where the table differs")
    args = parser.parse_args()
    results = read_results(args.folders)
    if not results:
        print(f"No results.json below {', '.join(map(str, args.folders))}: run the recipe first.", file=sys.stderr)
        return 1
    before = args.output.read_text(encoding="utf-8") if args.output.is_file() else None
    text = document_with(render_table(results), before)
    if args.check:
        return int(text != before)
    args.output.write_text(text, encoding="utf-8")
    print(f"{args.output}: {len(results)} methods, between {BEGIN} and {END}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
