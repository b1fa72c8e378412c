"""`mmssl features`: what a feature store holds, whether it is whole, and copies in other formats."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmssl.features.store import FeatureStore

HELP = "what a feature store holds, and whether it is whole"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `mmssl features`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    info = actions.add_parser("info", help="clips, layers, sizes and fingerprint")
    verify = actions.add_parser("verify", help="compare every byte with its checksum; exit code 1 where one is wrong")
    verify.add_argument("--remove", action="store_true", help="take damaged clips out, so that they are computed again")
    clean = actions.add_parser("gc", help="delete superseded shards and what dead runs left")
    export = actions.add_parser("export", help="copy into a format that other tools read")
    together = actions.add_parser("merge", help="put stores of one fingerprint together")
    together.add_argument("folder", metavar="TARGET", help="new folder, or a store to add to")
    together.add_argument("sources", nargs="+", metavar="SOURCE", help="store to take clips from")
    for action in (info, verify, clean, export):
        action.add_argument("folder", metavar="FOLDER", help="of the feature store, or its URL")
    export.add_argument("target", metavar="TARGET", help="new folder")
    export.add_argument("--format", default="npy", help="npy, kaldi, hdf5, webdataset or parquet (default npy)")
    export.add_argument("--stream", default="audio", help="default audio")
    export.add_argument("--layer", type=int, help="number of one layer, negative from the end (default all)")
    export.add_argument("--stat", help="mean, std or max instead of frames")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from mmssl.features.store import FeatureStore

    if args.action == "merge":
        from mmssl.features.maintain import merge

        merged = merge([FeatureStore(source) for source in args.sources], args.folder)
        print(f"{merged.location}: {len(merged)} clips of {len(args.sources)} stores")
        return 0
    store = FeatureStore(args.folder)
    if args.action == "info":
        return _info(store)
    if args.action == "verify":
        return _verify(store, args.remove)
    if args.action == "gc":
        from mmssl.features.maintain import gc

        print(f"{store.location}: {gc(store) / 1e6:.1f} MB set free")
        return 0
    from mmssl.features.export import export

    count = export(store, args.target, args.format, stream=args.stream, layer=args.layer, stat=args.stat)
    print(f"{args.target}: {count} clips in the format {args.format}")
    return 0


def _info(store: FeatureStore) -> int:
    fields = store.fingerprint.fields
    size = sum(part.size for part in store.parts.values())
    print(f"{store.location}: {len(store)} clips in {len(store.parts)} shards, {size / 1e6:.1f} MB")
    print(f"  upstream     {fields['upstream']} {fields.get('kwargs', '(built before it was handed over)')}")
    print(f"  frames       {fields['dtype'] if store.has_frames else 'not kept'}")
    print(f"  pooled       {', '.join(store.stats) or 'not kept'}")
    for name, stream in store.streams.items():
        widths, hops = (sorted(set(stream[key])) for key in ("hidden_sizes", "hop_lengths"))
        kept = f"{len(stream['layers'])} of {stream['num_layers']} layers"
        rate = store.input_rate(name)
        at = "" if rate is None else f" at {rate:g} Hz"
        print(f"  {name:<12} {kept}, width {_list(widths)}, hop {_list(hops)}{at}")
    for name, text in store.notes.items():
        print(f"  {name.replace('_', ' ')}: {text}")
    print(f"  fingerprint  {store.fingerprint.digest}")
    print(f"  written by   mmssl {fields['mmssl']}, layout {fields['schema']}")
    for text in store.damaged_parts.values():
        print(f"  damaged      {text}")
    return 0


def _verify(store: FeatureStore, remove_damaged: bool) -> int:
    from mmssl.features.maintain import remove, verify

    report = verify(store)
    for clip_id, reason in sorted(report.damaged.items()):
        print(f"damaged {clip_id}: {reason}", file=sys.stderr)
    for text in report.damaged_parts.values():
        print(f"damaged: {text}", file=sys.stderr)
    if report.ok:
        print(f"{store.location}: {report.checked} clips, all whole")
        return 0
    found = f"{len(report.damaged)} of {report.checked} clips and {len(report.damaged_parts)} index parts are damaged"
    if not remove_damaged:
        print(f"{store.location}: {found}; --remove takes them out, then the same extraction computes them again")
        return 1
    remove(store, report.damaged)
    print(f"{store.location}: {found} and were taken out; run the same extraction again to compute their clips")
    return 1


def _list(numbers: list[int]) -> str:
    return " / ".join(str(number) for number in numbers)
