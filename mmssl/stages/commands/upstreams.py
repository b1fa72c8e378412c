"""`mmssl upstreams`: what can be loaded by name and where each comes from, without importing any of it."""

from __future__ import annotations

import argparse
import json
from typing import Any

from mmssl.registry import UPSTREAMS
from mmssl.upstreams.catalog import CATALOG, MODALITIES, Entry

HELP = "list the upstreams that can be used, and where each comes from"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `mmssl upstreams`."""
    parser.add_argument(
        "--modality", choices=MODALITIES, help="only those for this input (others' plug-ins do not say and stay listed)"
    )
    parser.add_argument("--json", action="store_true", help="as JSON, for other programs")


def run(args: argparse.Namespace) -> int:
    """Print the list; returns 0."""
    rows = listing(args.modality)
    clashes = UPSTREAMS.clashes()
    if args.json:
        print(json.dumps({"upstreams": rows, "clashes": clashes}, indent=2))
        return 0
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        modalities = ", ".join(row["modalities"]) or "not declared"
        print(f"{row['name']:{width}s}  {modalities}; {row['sizes'] or 'sizes not declared'}; {row['source']}")
        if row["families"]:
            print(f"{'':{width}s}  model types: {', '.join(row['families'])}")
    for name, owners in clashes.items():
        print(f"warning: the name {name!r} is offered by {owners}; uninstall one, or ask for it by its dotted path")
    print("A dotted path (package.module.Name) or a path to a .py file works in the place of a name.")
    return 0


def listing(modality: str | None = None) -> list[dict[str, Any]]:
    """One row per name: name, source, and what `mmssl.upstreams.catalog_entry.Entry.as_dict` gives.

    Args:
        modality: leave out the built-in upstreams that do not take it. Upstreams of others declare nothing before
            they are imported; they stay, with empty fields.
    """
    undeclared = Entry((), {}, inputs=(), sample_rate=None)
    rows = []
    for name, source in sorted(UPSTREAMS.sources().items()):
        entry = CATALOG.get(name, undeclared) if name in UPSTREAMS.builtins else undeclared
        if entry is not undeclared and modality is not None and modality not in entry.modalities:
            continue
        declared = entry.as_dict() if entry is not undeclared else entry.as_dict() | {"sizes": ""}
        rows.append({"name": name, "source": source} | declared)
    return rows
