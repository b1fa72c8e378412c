"""`mmssl extract`: features of a manifest's clips into a feature store."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from mmssl.errors import ConfigError

WHAT = ("seed", "layers", "frames", "pooled", "dtype", "stride", "streams", "inputs", "partial", "on_error")
"""Arguments of the command that are arguments of `extract`."""
HOW = (
    "precision",
    "int8",
    "chunk_seconds",
    "chunk_overlap",
    "max_seconds",
    "batch_seconds",
    "shard_seconds",
    "jobs",
    "num_workers",
)
"""Arguments of the command that are fields of `ExtractOptions`."""
HELP = "features of a manifest's clips: all layers of an upstream into a feature store"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `mmssl extract`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "Stopped or killed, the same command goes on where it was. Several machines or GPUs:\n"
        "  torchrun --nproc_per_node 2 -m mmssl extract MANIFEST FOLDER --device cuda --upstream NAME\n"
        "or any array of jobs with --rank I --world-size N and one common FOLDER."
    )
    parser.add_argument("manifest", metavar="MANIFEST", help="clips, one JSON object a line")
    parser.add_argument(
        "folder", metavar="FOLDER", help="of the feature store, or a URL (s3://...); made where it is not there"
    )
    parser.add_argument(
        "--upstream",
        nargs="+",
        required=True,
        metavar=("NAME", "KEY=VALUE"),
        help="name, dotted path or .py file, then its arguments: --upstream hf path=DIR",
    )
    parser.add_argument("--seed", type=int, default=0, help="for weights that are drawn (default 0)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ... (default cpu)")
    parser.add_argument(
        "--frames", action=argparse.BooleanOptionalAction, default=True, help="keep all frames (default)"
    )
    parser.add_argument(
        "--pooled",
        default="mean,std",
        help='of mean, std, max, with commas between; "none" for none (default mean,std)',
    )
    parser.add_argument("--layers", help="numbers with commas between, as in 0,6,-1 (default all)")
    parser.add_argument("--dtype", default="float32", help="of the frames: float32 or float16 (default float32)")
    parser.add_argument("--stride", type=int, default=1, help="keep every N-th frame (default 1)")
    parser.add_argument("--streams", help="to keep, with commas between: audio,fusion (default all)")
    parser.add_argument("--inputs", help="to give to the upstream: waveforms, video or images (default all it takes)")
    parser.add_argument(
        "--partial", action="store_true", help="store clips without sound or video with the streams that they have"
    )
    parser.add_argument("--precision", default="fp32", help="to compute in: fp32, bf16 or fp16 (default fp32)")
    parser.add_argument("--int8", action="store_true", help="linear layers on 8-bit integers, a scale per row")
    parser.add_argument("--chunk-seconds", type=float, help="cut longer clips into chunks (default: only where exact)")
    parser.add_argument(
        "--chunk-overlap", type=float, default=2.0, help="seconds seen beyond both ends of a chunk (default 2)"
    )
    parser.add_argument(
        "--on-error", choices=("raise", "skip"), default="raise", help="a clip that cannot be used (default raise)"
    )
    parser.add_argument("--max-seconds", type=float, help="a longer clip counts as one that cannot be used")
    parser.add_argument("--batch-seconds", type=float, default=32.0, help="of audio in a batch (default 32)")
    parser.add_argument(
        "--shard-seconds", type=float, default=60.0, help="work that a kill can cost, in s (default 60)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes, each with its own upstream (default 1)")
    parser.add_argument("--num-workers", type=int, default=2, help="threads per process that decode (default 2)")
    parser.add_argument(
        "--rank", type=int, help="which share of the clips is done here, from 0 (default from torchrun)"
    )
    parser.add_argument("--world-size", type=int, help="number of shares (default from torchrun, or 1)")
    parser.add_argument(
        "--launcher",
        choices=("none", "local", "slurm"),
        default="none",
        help="start --world-size ranks here (local) or as an array of Slurm jobs, and wait for them (default none)",
    )
    parser.add_argument(
        "--launcher-option", action="append", default=[], metavar="KEY=VALUE", help="for Slurm: slurm_partition=gpu ..."
    )
    parser.add_argument("--quiet", action="store_true", help="no progress and no summary")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    name, *pairs = args.upstream
    kwargs = parse_pairs(pairs)
    layers = None if args.layers is None else _numbers(args.layers)
    pooled = [word for word in args.pooled.split(",") if word and args.pooled != "none"]
    if args.launcher != "none":
        return _launch(args)
    rank, world_size = _share(args)
    from mmssl.features.extract import ExtractOptions, extract

    how = {name: getattr(args, name) for name in HOW}
    summary = extract(
        name,
        args.manifest,
        args.folder,
        upstream_kwargs=kwargs,
        seed=args.seed,
        layers=layers,
        frames=args.frames,
        pooled=pooled,
        dtype=args.dtype,
        stride=args.stride,
        streams=_words(args.streams),
        inputs=_words(args.inputs),
        partial=args.partial,
        on_error=args.on_error,
        options=ExtractOptions(
            device=_device(args.device), rank=rank, world_size=world_size, progress=not args.quiet, **how
        ),
    )
    for skipped in summary.skipped:
        print(f"skipped {skipped.id}: {skipped.reason}", file=sys.stderr)
    if not args.quiet:
        print(summary)
    return 0


def _launch(args: argparse.Namespace) -> int:
    from mmssl.features.launch import launch

    if args.rank is not None or args.world_size is None:
        raise ConfigError("--launcher needs --world-size, the number of ranks to start, and no --rank.")
    words = [args.manifest, args.folder]
    for name in (*WHAT, *HOW, "device"):
        value, flag = getattr(args, name), f"--{name.replace('_', '-')}"
        if value is True or value is False:
            words += [flag] if value else ["--no-frames"] if name == "frames" else []
        elif value is not None:
            words += [f"{flag}={value}"]
    words += ["--upstream", *args.upstream]
    output = launch(words, args.folder, args.world_size, args.launcher, parse_pairs(args.launcher_option))
    if not args.quiet:
        print("\n".join(output))
    return 0


def parse_pairs(pairs: Sequence[str]) -> dict[str, Any]:
    """["bins=40", "path=dir"] -> {"bins": 40, "path": "dir"}: JSON where it is JSON, else text.

    Raises:
        ConfigError: a word is not key=value, or a key comes twice.
    """
    parsed: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError(
                f"An argument of the upstream is written key=value, got {pair!r}. "
                f"MANIFEST and FOLDER come before --upstream."
            )
        if key in parsed:
            raise ConfigError(f"The upstream's argument {key!r} is given twice.")
        try:
            parsed[key] = json.loads(value)
        except ValueError:
            parsed[key] = {"True": True, "False": False, "None": None}.get(value, value)
    return parsed


def _numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise ConfigError(f"--layers takes whole numbers with commas between, as in 0,6,-1; got {text!r}.") from None


def _words(text: str | None) -> list[str] | None:
    return None if text is None else [word for word in text.split(",") if word]


def _share(args: argparse.Namespace) -> tuple[int, int]:
    """Rank and world size: as given, else as torchrun sets them in the environment."""
    given = (args.rank, args.world_size)
    if given == (None, None):
        return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if None in given:
        raise ConfigError("--rank and --world-size go together.")
    return given


def _device(device: str) -> str:
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in os.environ else device
