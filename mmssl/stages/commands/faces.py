"""`mmssl faces`: crop the face or mouth of every clip, and a page that says how well that went."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mmssl.errors import ConfigError

if TYPE_CHECKING:
    from mmssl.faces.clip import CropJob

HELP = "crop the face or mouth of every clip's video, with a quality page"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `mmssl faces`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "Writes OUT/mouth_96/{manifest.jsonl,quality.html,quality.json,crops/}. Stopped or killed, the same command\n"
        "goes on where it was. Detectors: opencv (pip install 'mmssl[faces]'), mtcnn, given file=BOXES.json, centre,\n"
        "a dotted path or a .py file."
    )
    parser.add_argument("manifest", metavar="MANIFEST", help="clips with video, one JSON object a line")
    parser.add_argument(
        "folder", metavar="OUT", help="for boxes, crops and the new manifest; made where it is not there"
    )
    parser.add_argument(
        "--detector",
        nargs="+",
        default=["opencv"],
        metavar=("NAME", "KEY=VALUE"),
        help="name, then its arguments: --detector given file=BOXES.json (default opencv)",
    )
    parser.add_argument("--region", default="mouth", help="face or mouth (default mouth)")
    parser.add_argument("--size", type=int, help="side of the crops in pixels (default 96 for mouth, 160 for face)")
    parser.add_argument(
        "--margin", type=float, help="added on each side, as a share (default: the detector's for face, 0 for mouth)"
    )
    parser.add_argument("--window", type=int, default=12, help="frames that boxes are smoothed over (default 12)")
    parser.add_argument(
        "--max-missing", type=float, default=0.5, help="share of frames without a face that breaks a clip (default 0.5)"
    )
    parser.add_argument("--nj", type=int, default=1, help="processes (default 1)")
    parser.add_argument("--quiet", action="store_true", help="no progress and no summary")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from mmssl.data.manifest import read_manifest
    from mmssl.faces.prepare import prepare_faces
    from mmssl.stages.commands.extract import parse_pairs

    if args.nj < 1:
        raise ConfigError(f"--nj must be 1 or more, got {args.nj}.")
    name, *pairs = args.detector
    summary = prepare_faces(
        read_manifest(args.manifest),
        args.folder,
        detector=name,
        arguments=parse_pairs(pairs),
        region=args.region,
        size=args.size,
        margin=args.margin,
        window=args.window,
        max_missing=args.max_missing,
        run=_runner(args.nj, args.quiet),
    )
    for clip, reason in summary.broken.items():
        print(f"broken {clip}: {reason}", file=sys.stderr)
    if not args.quiet:
        print(summary)
    return 0


def _runner(processes: int, quiet: bool) -> Callable[[Callable[[CropJob], None], Sequence[CropJob]], None]:
    """What runs the jobs, on so many processes, and shows how far it is."""
    from mmssl.stages.workers import run_all

    def work_all(work: Callable[[CropJob], None], jobs: Sequence[CropJob]) -> None:
        done = 0

        def finished(_: int) -> None:
            nonlocal done
            done += 1
            if not quiet and sys.stderr.isatty():
                print(f"\r{done} of {len(jobs)} clips", end="\n" if done == len(jobs) else "", file=sys.stderr)

        run_all(work, jobs, processes, finished)

    return work_all
