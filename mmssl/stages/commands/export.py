"""mmssl export: write a trained system as a folder that stands alone."""

from __future__ import annotations

import argparse

HELP = "write a trained experiment as a folder that stands alone"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("folder", metavar="EXP_DIR", help="an experiment: exp/NAME, after the train stage")
    parser.add_argument("out", metavar="OUT", help="the folder to write; it must be new or empty")
    parser.add_argument("--system", help="which system of the experiment (default: the best in results.json)")
    parser.add_argument("--with-upstream", action="store_true", help="copy the upstream's weights into the folder")
    parser.add_argument(
        "--trust", action="store_true", help="also build parts that are no installed plug-in (runs their code)"
    )


def run(args: argparse.Namespace) -> int:
    """Write the folder and say what is in it."""
    from mmssl.stages.export_folder import export_system

    written = export_system(
        args.folder, args.out, args.system, with_upstream=args.with_upstream, trust_targets=args.trust
    )
    print(f"Wrote {args.out}: system {written.name}, {len(written.models)} models.")
    print(f"Use it: mmssl predict {args.out} FILE, or mmssl.load_predictor({args.out!r}).")
    return 0
