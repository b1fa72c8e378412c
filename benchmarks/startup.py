"""Seconds from the start of a process to the moment it can do something, each in fresh processes, in turn."""

from __future__ import annotations

import argparse
import subprocess
import sys

from common import interleave, median, print_table, timed

STARTS = {
    "python": "pass",
    "mmssl --help": "import sys; from mmssl.stages.cli import main; sys.argv = ['mmssl', '--help']; main()",
    "import mmssl": "import mmssl",
    "hydra main": "import hydra, omegaconf",
    "import torch": "import torch",
    "fbank upstream ready": "import mmssl; mmssl.load_upstream('fbank')",
    "transformers: import Wav2Vec2Model": "from transformers import Wav2Vec2Model",
}


def start(code: str) -> float:
    """Seconds of a process that runs some code."""
    return timed(lambda: subprocess.run([sys.executable, "-c", code], check=False, capture_output=True))


def main() -> None:
    """Run the comparison and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    found = interleave({name: (lambda code=code: start(code)) for name, code in STARTS.items()}, args.rounds)
    print_table("Start-up, median of fresh processes", ("what", "s"), [(name, median(found[name])) for name in STARTS])


if __name__ == "__main__":
    main()
