"""The command line of a recipe: what `run.sh` hands over to. Light until it is known that work is to be done."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from mmssl.errors import MmsslError, StageError, did_you_mean
from mmssl.registry import HEADS, INTERFACES, UPSTREAMS
from mmssl.stages.cli import report_error

CALLER = "MMSSL_CALLER_DIR"

_EPILOG = """\
what is computed is set by words key=value after the options:
  upstream=NAME       the encoder: {upstreams}; a dotted path (my_package.module.Name); a .py file
  upstream.KEY=VALUE  an argument of it, as in: upstream=hf upstream.path=FOLDER
  compare=[A,B]       further upstreams, run with the same interface and head
  interface=NAME      how layers become one sequence: {interfaces}
  head=NAME           what stands on it: {heads}
  data.root=FOLDER    the corpus; a relative path is seen from the folder where you type the command
  data.on_error=skip  leave out unreadable files and list them, instead of stopping at the first (raise)
  train.KEY=VALUE     learning_rates, max_steps, batch_size, patience, ...: conf/train
  exp=NAME            results go to exp/NAME; by default upstream-interface-head

A stage whose configuration and inputs did not change is skipped, unless --stage or --stop_stage asks for it; what was
extracted and which folds were trained is kept either way. After an interruption, run the same command again.

examples:
  ./run.sh
  ./run.sh upstream=hf upstream.path=../models/hubert_base interface=hierarchical_conv --nj 4
  ./run.sh --stage train --stop_stage score train.learning_rates=[1e-4,1e-3] exp=short
  ./run.sh --list
"""


def build_parser() -> argparse.ArgumentParser:
    """The options that every recipe has."""
    parser = argparse.ArgumentParser(
        prog="run.sh",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Run the stages of a recipe: data to report. Without options all of them, in order.",
        epilog=_EPILOG.format(
            upstreams=", ".join(_packaged("upstream", UPSTREAMS.builtins)),
            interfaces=", ".join(_packaged("interface", INTERFACES.builtins)),
            heads=", ".join(_packaged("head", HEADS.builtins)),
        ),
        allow_abbrev=False,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="what to compute, see below")
    parser.add_argument("--stage", metavar="N|NAME", help="first stage to run, even if nothing changed")
    parser.add_argument("--stop_stage", metavar="N|NAME", help="last stage to run")
    parser.add_argument("--skip_stages", metavar='"N|NAME ..."', default="", help="stages to leave out")
    parser.add_argument("--list", action="store_true", help="list the stages and stop")
    parser.add_argument("--dry_run", action="store_true", help="check everything, say what would run, and stop")
    parser.add_argument("--overwrite", action="store_true", help="replace results of another configuration in exp/NAME")
    parser.add_argument("--nj", type=int, default=None, metavar="N", help="worker processes (default: the cores)")
    parser.add_argument("--ngpu", type=int, default=0, metavar="N", help="0 (default): the CPU; 1: a GPU")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: Sequence[str] | None = None, folder: Path | None = None) -> int:
    """Run a recipe.

    Args:
        argv: words after `run.sh`; None takes them from the process.
        folder: egs/<corpus>/<task>; None means the current folder.

    Returns:
        0; 1 after an error that was printed; 130 when interrupted. Wrong options leave with 2.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    options, unknown = parser.parse_known_intermixed_args(words)
    for word in unknown:
        # an override may begin with ~ or +, an option that is unknown may not pass as one
        known = [o for action in parser._actions for o in action.option_strings]
        parser.error(f"unknown option {word!r}.{did_you_mean(word, known)} See --help.")
    try:
        return _run(options, words, (folder or Path.cwd()).resolve())
    except (MmsslError, OSError) as error:
        return report_error(error, options.debug)
    except KeyboardInterrupt:
        print("\nInterrupted. Run the same command again: what was finished is kept.", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace, words: Sequence[str], folder: Path) -> int:
    from mmssl.stages.compose import compose
    from mmssl.stages.context import Context
    from mmssl.stages.engine import Engine, claim_results_folder, select
    from mmssl.stages.settings import check, stages_of

    if options.nj is not None and options.nj < 1:
        raise StageError(f"--nj must be at least 1, got {options.nj}.")
    caller = Path(os.environ.get(CALLER) or Path.cwd())
    composed = compose(folder, options.overrides, caller)
    stages = stages_of(composed.config)
    if options.list:
        print("\n".join(_listing(folder, stages)))
        return 0
    selected = select(stages, options.stage, options.stop_stage, options.skip_stages.replace(",", " ").split())
    check(composed)
    _check_gpus(options.ngpu)
    context = Context(
        folder=folder,
        exp=composed.config["exp"],
        config=composed.config,
        systems=composed.systems,
        nj=options.nj or os.cpu_count() or 1,
        ngpu=options.ngpu,
        command=shlex.join(["./run.sh", *words]),
    )
    engine = Engine(stages, context, asked=options.stage is not None or options.stop_stage is not None)
    if options.dry_run:
        print("\n".join([f"exp/{context.exp} in {folder}", *engine.preview(selected)]))
        return 0
    claim_results_folder(context, options.overwrite)
    with _logging_to(context.exp_dir / "log.txt"):
        logging.getLogger("mmssl.file").info("%s", context.command)
        engine.run(selected)
    _print_summary(context.exp_dir)
    return 0


def _check_gpus(wanted: int) -> None:
    if wanted not in (0, 1):
        raise StageError(f"--ngpu must be 0 (the CPU) or 1, got {wanted}: the stages of a recipe use one GPU at most.")
    if wanted:
        import torch

        if not torch.cuda.is_available():
            raise StageError("--ngpu 1: PyTorch sees no GPU here. Use --ngpu 0, or install a PyTorch for your GPU.")


def _listing(folder: Path, stages: Sequence) -> list[str]:
    lines = [f"Stages of {folder.parent.name}/{folder.name}:"]
    for stage in stages:
        lines.append(f"  {stage.title:<11} {stage.summary}")
        lines += textwrap.wrap(
            f"writes {', '.join(stage.writes).replace('{exp}', 'exp/NAME')}",
            100,
            initial_indent=" " * 14,
            subsequent_indent=" " * 16,
        )
    return lines


def _packaged(group: str, builtins: object) -> list[str]:
    stems = {path.stem for path in (Path(__file__).parents[1] / "conf" / group).glob("*.yaml")}
    return sorted(stems | set(builtins))  # type: ignore[call-overload]


class _logging_to:  # noqa: N801  (reads as a with-statement)
    """Progress to the terminal, the same with times and tracebacks to a file."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = logging.FileHandler(path, encoding="utf-8")
        self.file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self.terminal = logging.StreamHandler(sys.stdout)
        self.terminal.setFormatter(logging.Formatter("%(message)s"))

    def __enter__(self) -> None:
        shown, hidden = logging.getLogger("mmssl.stages"), logging.getLogger("mmssl.file")
        for logger in (shown, hidden):
            logger.setLevel(logging.INFO)
            logger.propagate = False
        shown.handlers = [self.terminal, self.file]
        hidden.handlers = [self.file]

    def __exit__(self, *failure: object) -> None:
        if failure[1] is not None:
            logging.getLogger("mmssl.file").error("stopped", exc_info=failure[1])  # type: ignore[arg-type]
        for name in ("mmssl.stages", "mmssl.file"):
            logging.getLogger(name).handlers = []
        self.file.close()


def _print_summary(exp_dir: Path) -> None:
    path = exp_dir / "results.json"
    if path.is_file():
        from mmssl.report.build import summary_table
        from mmssl.report.pretraining import KIND, pretraining_summary
        from mmssl.stages.files import read_json

        results = read_json(path)
        table = pretraining_summary(results) if results.get("kind") == KIND else summary_table(results)
        print(f"\n{table.rstrip()}")
    for name in ("RESULTS.md", "report.html"):
        if (exp_dir / name).is_file():
            print(f"Report: {exp_dir / name}")
