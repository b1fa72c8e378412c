"""The command `mmssl`. One module per subcommand in mmssl/stages/commands; only the one asked for is imported."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from mmssl import __version__
from mmssl.errors import MmsslError, did_you_mean

COMMANDS = {
    "data": "validate, audit, import and export manifests; make the mini corpus",
    "extract": "features of a manifest's clips: all layers of an upstream into a feature store",
    "features": "what a feature store holds, and whether it is whole",
    "faces": "crop the face or mouth of every clip's video, with a quality page",
    "probe": "train and score probes on stored features",
    "bench": "probe upstreams on corpora and write a leaderboard",
    "predict": "label files with a trained experiment",
    "export": "write a trained experiment as a folder that stands alone",
    "embed": "one vector per clip: speaker embeddings, or the mean of an upstream's layer",
    "verify": "compare the speakers of two clips",
    "leakage": "how well a linear probe reads the speaker from stored features",
    "export-onnx": "write a speaker model as an ONNX graph",
    "sync": "by how much the sound of video files is late, and whether it belongs to the pictures",
    "upstreams": "list the upstreams that can be used, and where each comes from",
    "check-upstream": "run the contract tests on an upstream, yours included",
}


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser; the arguments of `command` alone are filled in, as that needs its module."""
    parser = argparse.ArgumentParser(
        prog="mmssl",
        description="Self-supervised learning on speech, audio, images, video and audio-visual data.",
        epilog="Experiments are run by recipes: egs/CORPUS/TASK/run.sh --help. More: mmssl COMMAND --help",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"mmssl {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        sub = subparsers.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name == command:
            module = importlib.import_module(f"mmssl.stages.commands.{name.replace('-', '_')}")
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        argv: words after `mmssl`; None takes them from the process.

    Returns:
        What the subcommand returns; 1 after an error that was printed; 130 when interrupted. Wrong usage leaves with 2.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in words if not word.startswith("-")), None)
    if command is not None and command not in COMMANDS:
        hint = did_you_mean(command, COMMANDS)
        print(f"mmssl: there is no command {command!r}.{hint} Commands: {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    args = build_parser(command).parse_args(words)
    try:
        return int(args.run(args) or 0)
    except BrokenPipeError:
        # the reader of the output left, as in `mmssl upstreams | head -1`
        sys.stderr.close()
        return 0
    except (MmsslError, OSError) as error:
        return report_error(error, args.debug)
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130


def report_error(error: BaseException, debug: bool = False) -> int:
    """Print an error as one message, with its traceback if asked for; returns the exit code 1."""
    if debug:
        import traceback

        traceback.print_exception(error)
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        print(f"error: {error.strerror or error}{where}", file=sys.stderr)
    else:
        print(f"error: {error}", file=sys.stderr)
    return 1
