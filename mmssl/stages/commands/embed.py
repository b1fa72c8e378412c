"""`mmssl embed`: one vector per clip, from a speaker model or from a layer of any upstream."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mmssl.errors import ConfigError, DataError, MmsslError

if TYPE_CHECKING:
    from torch import Tensor

    from mmssl.types import Clip

HELP = "one vector per clip: speaker embeddings, or the mean of an upstream's layer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `mmssl embed`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = """mmssl embed exp/mine/model a.wav b.flac --output embeddings.npz
mmssl embed exp/mine/model --manifest data/manifest.jsonl --output embeddings.parquet
mmssl embed hubert --argument checkpoint=models/hubert-base-ls960 --layer 9 a.wav --output embeddings.safetensors

written:
  .npz          arrays `ids` (N,) and `embeddings` (N, E) float32
  .parquet      columns `id` and `embedding`
  .safetensors  tensor `embeddings` (N, E); the ids are its metadata `ids`, a JSON list
exit code: 0 every clip is in the file; 1 an error, or a clip had to be left out; 2 wrong usage"""
    parser.add_argument("model", metavar="MODEL", help="folder of a speaker model, or the name of an upstream")
    parser.add_argument("clips", metavar="CLIP", nargs="*", help="audio or video files of any format and sample rate")
    parser.add_argument("--manifest", type=Path, metavar="FILE", help="clips of a manifest, beside the files or alone")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help=".npz, .parquet or .safetensors")
    parser.add_argument("--layer", type=int, default=-1, help="of an upstream; negative from the end (default -1)")
    parser.add_argument(
        "--argument",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of the upstream's constructor, value in YAML; may be repeated",
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument(
        "--trust", action="store_true", help="also build parts that are no installed plug-in (runs their code)"
    )


def run(args: argparse.Namespace) -> int:
    """Embed every clip that can be read; 1 if one could not."""
    from mmssl.stages.commands.check_upstream import parse_arguments
    from mmssl.stages.embedding_files import check_output, write_embeddings

    check_output(args.output)
    items = _items(args.clips, args.manifest)
    from mmssl.speaker import Speaker, load_embedder

    embedder = load_embedder(
        args.model,
        layer=args.layer,
        arguments=parse_arguments(args.argument),
        device=args.device,
        trust=args.trust,
    )
    if isinstance(embedder, Speaker) and args.argument:
        raise ConfigError("--argument is for upstreams: a speaker model's folder says how it is built.")
    found: dict[str, Tensor] = {}
    failed = 0
    for name, item in items.items():
        try:
            found[name] = embedder.embed_one(item)
        except (MmsslError, OSError) as error:
            failed += 1
            print(f"error: {error if name in str(error) else f'{name}: {error}'}", file=sys.stderr)
    if found:
        write_embeddings(args.output, found)
        print(f"{args.output}: {len(found)} embeddings of width {embedder.output_size}")
    if failed:
        print(f"error: {failed} of {len(items)} clips could not be embedded and were left out.", file=sys.stderr)
    return 1 if failed else 0


def _items(files: list[str], manifest: Path | None) -> dict[str, str | Clip]:
    """Name in the output -> what to embed."""
    items: dict[str, str | Clip] = {}
    for file in files:
        if file in items:
            raise DataError(f"The file {file} is given twice.")
        items[file] = file
    if manifest is not None:
        from mmssl.data.manifest import read_manifest

        for clip in read_manifest(manifest):
            if clip.id in items:
                raise DataError(f"{manifest} has a clip {clip.id!r}, which is a file on the command line too.")
            items[clip.id] = clip
    if not items:
        raise DataError("There is nothing to embed: give files, or --manifest FILE.")
    return items
