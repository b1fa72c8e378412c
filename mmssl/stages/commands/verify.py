"""`mmssl verify`: whether two clips are of one speaker."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from mmssl.errors import ConfigError

HELP = "compare the speakers of two clips"
REFUSED = 3
"""Exit code of `--require-same` where the model says "two speakers"."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `mmssl verify`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"""The score is the cosine of the two embeddings. The decision and the log-likelihood ratio need
calibration.json in the model's folder, which the recipes fit to development trials.

exit code: 0 the clips were compared; 1 an error; 2 wrong usage; {REFUSED} --require-same, and they differ"""
    parser.add_argument("model", metavar="MODEL", help="folder of a speaker model, as exp/NAME/model")
    parser.add_argument("enrol", metavar="A", help="audio or video file of any format and sample rate")
    parser.add_argument("test", metavar="B", help="another")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--require-same", action="store_true", help=f"exit with {REFUSED} where the speakers differ")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument(
        "--trust", action="store_true", help="also build parts that are no installed plug-in (runs their code)"
    )


def run(args: argparse.Namespace) -> int:
    """Compare and print; returns the exit code."""
    from mmssl.speaker import WITHOUT_CALIBRATION, load_speaker

    speaker = load_speaker(args.model, device=args.device, trust=args.trust)
    if args.require_same and speaker.calibration is None:
        raise ConfigError(f"--require-same needs a decision; there is {WITHOUT_CALIBRATION}.")
    found = speaker.verify(args.enrol, args.test)
    if args.json:
        print(json.dumps({"enrol": args.enrol, "test": args.test, **asdict(found)}, ensure_ascii=False))
    elif found.same is None:
        print(f"score {found.score:.4f} ({found.note})")
    else:
        verdict = "one speaker" if found.same else "two speakers"
        print(
            f"{verdict}: score {found.score:.4f}, threshold {found.threshold:.4f}, "
            f"log-likelihood ratio {found.llr:+.2f}"
        )
    return REFUSED if args.require_same and not found.same else 0
