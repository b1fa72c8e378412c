"""`mmssl data`: look at manifests, convert them, and make the embedded corpus."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmssl.errors import DataError, MediaError

if TYPE_CHECKING:
    from mmssl.types import Clip

HELP = "validate, audit, import and export manifests; make the embedded corpus"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions of `mmssl data` and their arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    validate = actions.add_parser("validate", help="name every fault of a manifest, and the fix")
    validate.add_argument("manifest", metavar="MANIFEST", type=Path)
    validate.add_argument("--label", nargs="+", action="extend", default=[], help="labels that every clip must have")
    validate.add_argument("--require-speaker", action="store_true", help="every clip must have a speaker")
    validate.add_argument("--no-media", action="store_true", help="see whether files exist, but do not open them")

    audit = actions.add_parser("audit", help="count clips, speakers, hours and labels; find overlap and duplicates")
    audit.add_argument("manifest", metavar="MANIFEST", type=Path)
    audit.add_argument("--label", help="label to count classes of (default: every label with few values)")
    audit.add_argument("--folds", type=Path, metavar="FOLDS", help="folds.json; default: the splits of the manifest")
    audit.add_argument("--json", action="store_true", help="print JSON")
    audit.add_argument("--no-media", action="store_true", help="open no file: no durations, no search for duplicates")

    importer = actions.add_parser("import", help="Kaldi folder or CSV -> manifest")
    importer.add_argument("format", choices=("kaldi", "csv"))
    importer.add_argument("source", metavar="SRC", type=Path, help="Kaldi data folder, or table")
    importer.add_argument("manifest", metavar="MANIFEST", type=Path)
    importer.add_argument("--numeric", nargs="+", action="extend", default=[], help="labels whose values are numbers")
    importer.add_argument("--column", action="append", default=[], metavar="NAME=FIELD", help="csv: rename a column")
    importer.add_argument("--split", help="kaldi: split of all clips")
    importer.add_argument("--root", type=Path, help="kaldi: folder from which relative paths in wav.scp are seen")

    exporter = actions.add_parser("export", help="manifest -> Kaldi folder or CSV")
    exporter.add_argument("format", choices=("kaldi", "csv"))
    exporter.add_argument("manifest", metavar="MANIFEST", type=Path)
    exporter.add_argument("target", metavar="DST", type=Path, help="new Kaldi data folder, or table")

    mini = actions.add_parser("mini", help="make the embedded synthetic corpus")
    mini.add_argument("folder", metavar="FOLDER", type=Path)
    mini.add_argument("--seed", type=int, default=0)
    kind = mini.add_mutually_exclusive_group()
    kind.add_argument("--video", action="store_true", help="a drawn face that speaks to every clip (a minute or two)")
    kind.add_argument("--images", action="store_true", help="labelled images of drawn shapes instead of speech")


def run(args: argparse.Namespace) -> int:
    """Run one action; 1 where `validate` finds a fault, else 0."""
    actions = {"validate": _validate, "audit": _audit, "import": _import, "export": _export, "mini": _mini}
    return actions[args.action](args)


def _validate(args: argparse.Namespace) -> int:
    from mmssl.data.manifest import scan_manifest
    from mmssl.data.validate import validate

    clips, broken = scan_manifest(args.manifest)
    probe = None
    if not args.no_media:
        from mmssl.media.audio import audio_info

        probe = audio_info
    faults = validate(clips, probe=probe, required_labels=args.label, require_speaker=args.require_speaker)
    for line in broken:
        print(f"{args.manifest}:{line.line}: {line.problem} {line.fix}")
    for fault in faults:
        print(fault)
    total = len(broken) + len(faults)
    if total:
        print(f"{args.manifest}: {total} fault{'s' if total > 1 else ''}, {len(clips)} clips read.", file=sys.stderr)
        return 1
    print(f"{args.manifest}: {len(clips)} clips, no fault.")
    return 0


def _audit(args: argparse.Namespace) -> int:
    from mmssl.data.audit import audit
    from mmssl.data.folds import read_folds
    from mmssl.data.manifest import read_manifest

    clips = read_manifest(args.manifest)
    folds = None if args.folds is None else read_folds(args.folds)
    durations = {} if args.no_media else _durations(clips)
    result = audit(clips, label=args.label, folds=folds, durations=durations, checksum=not args.no_media)
    if args.json:
        import json

        print(json.dumps(result.to_dict(), indent=2, ensure_ascii=False))
    else:
        print(result.render())
    return 0


def _durations(clips: Sequence[Clip]) -> dict[str, float]:
    """Durations of the clips that state none, from their files; a file that cannot be read gives none."""
    from mmssl.files import is_url
    from mmssl.media.audio import audio_info

    found: dict[str, float] = {}
    for clip in clips:
        if clip.duration is None and clip.audio is not None and not is_url(clip.audio):
            with contextlib.suppress(MediaError):
                found[clip.id] = max(0.0, audio_info(clip.audio).duration - clip.start)
    return found


def _import(args: argparse.Namespace) -> int:
    from mmssl.data.manifest import write_manifest

    if args.format == "kaldi":
        from mmssl.data.kaldi import import_kaldi

        if args.column:
            raise DataError("--column goes with csv only: a Kaldi folder has no columns.")
        clips = import_kaldi(args.source, split=args.split, numeric=args.numeric, root=args.root)
    else:
        from mmssl.data.tables import import_csv

        if args.split is not None or args.root is not None:
            raise DataError(
                "--split and --root go with kaldi only: a table has a column for the split, and its own folder."
            )
        clips = import_csv(args.source, _columns(args.column), numeric=args.numeric)
    write_manifest(args.manifest, clips)
    print(f"{args.manifest}: {len(clips)} clips.")
    return 0


def _columns(pairs: Sequence[str]) -> dict[str, str]:
    columns = {}
    for pair in pairs:
        name, sign, field = pair.partition("=")
        if not sign or not name:
            raise DataError(f"--column {pair!r} is not NAME=FIELD, such as --column filename=audio.")
        columns[name] = field
    return columns


def _export(args: argparse.Namespace) -> int:
    from mmssl.data.manifest import read_manifest

    clips = read_manifest(args.manifest)
    if args.format == "kaldi":
        from mmssl.data.kaldi import export_kaldi

        export_kaldi(clips, args.target)
    else:
        from mmssl.data.tables import export_csv

        export_csv(args.target, clips, delimiter="\t" if args.target.suffix == ".tsv" else ",")
    print(f"{args.target}: {len(clips)} clips.")
    return 0


def _mini(args: argparse.Namespace) -> int:
    from mmssl.data.manifest import write_manifest

    if args.images:
        from mmssl.media.mini_images import make_mini_images

        clips = make_mini_images(args.folder, seed=args.seed)
    else:
        from mmssl.media.mini import make_mini

        clips = make_mini(args.folder, seed=args.seed, **({"video": True} if args.video else {}))
    manifest = args.folder / "manifest.jsonl"
    write_manifest(manifest, clips)
    if args.video:
        from mmssl.media.mini_boxes import write_boxes

        # for `mmssl faces --detector given file=...`
        write_boxes(args.folder / "face_boxes.json", args.folder, clips, args.seed)
    print(f"{manifest}: {len(clips)} clips.")
    return 0
