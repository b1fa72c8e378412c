"""`mmssl sync`: by how much the sound of video files is late, and whether it belongs to the pictures at all."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmssl.errors import MmsslError

if TYPE_CHECKING:
    from mmssl.downstream.sync_distance import SyncJudgement
    from mmssl.types import Clip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `mmssl sync`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "Offset and confidence are those of SyncNet (Chung and Zisserman 2016): the shift at which the distance of\n"
        "both streams is least, and the median of the distances over shifts minus the least one. A model of mouths\n"
        "takes crops of mouths: run `mmssl faces` first and give its manifest. Exit code 1 where a clip could not be\n"
        "judged."
    )
    parser.add_argument(
        "model", metavar="FOLDER_OR_NAME", help="of a synchrony model, or of an encoder whose streams are of one space"
    )
    parser.add_argument("clips", metavar="CLIP", nargs="+", help="video files, or manifests (.jsonl)")
    parser.add_argument("--tolerance", type=int, default=1, help="frames of offset that count as in sync (default 1)")
    parser.add_argument("--threshold", type=float, help="confidence below which nothing fits (default the model's)")
    parser.add_argument("--max-shift", type=int, help="largest shift in frames (default the model's)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ... (default cpu)")
    parser.add_argument("--json", metavar="FILE", help="write all distances there")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from mmssl.training.sync_media import MediaReader
    from mmssl.training.sync_model import load_sync_model

    clips = [clip for name in args.clips for clip in _clips(name)]
    model = load_sync_model(args.model, args.device)
    if args.threshold is not None:
        model.threshold = args.threshold
    if args.max_shift is not None:
        model.set_max_shift(args.max_shift)
    reader, width = MediaReader(model.upstream.spec), max(len(clip.id) for clip in clips)
    print(f"{'clip':<{width}}  offset (frames, ms)  confidence  verdict")
    found: dict[str, Any] = {}
    failed = 0
    for clip in clips:
        try:
            judgement = model.judge(clip, tolerance=args.tolerance, reader=reader)
        except MmsslError as error:
            failed += 1
            print(f"{clip.id}: {error}", file=sys.stderr)
            continue
        print(_line(clip, judgement, model.frame_shift, width))
        found[clip.id] = _record(judgement, model.frame_shift)
    if args.json:
        from mmssl.stages.files import write_json

        settings = {"model": str(args.model), "max_shift": model.max_shift, "frame_shift": model.frame_shift}
        settings |= {"tolerance": args.tolerance, "threshold": model.threshold}
        write_json(Path(args.json), {"settings": settings, "clips": found})
    return 1 if failed else 0


def _clips(name: str) -> list[Clip]:
    from mmssl.data.manifest import read_manifest
    from mmssl.types import Clip

    return read_manifest(name) if name.endswith(".jsonl") else [Clip(Path(name).stem, video=name)]


def _line(clip: Clip, found: SyncJudgement, frame_shift: float, width: int) -> str:
    milliseconds = 1000 * found.offset * frame_shift
    return f"{clip.id:<{width}}  {found.offset:+7d} {milliseconds:+11.0f}  {found.confidence:10.3f}  {found.verdict}"


def _record(found: SyncJudgement, frame_shift: float) -> dict[str, Any]:
    record = asdict(found) | {"offset_seconds": found.offset * frame_shift, "manipulated": found.manipulated}
    # JSON has no infinity: None where too few frames meet
    record["distances"] = [value if value < float("inf") else None for value in found.distances]
    return json.loads(json.dumps(record))
