"""`mmssl bench`: corpora x upstreams x protocols, and a leaderboard."""

from __future__ import annotations

import argparse

HELP = "probe upstreams on corpora and write a leaderboard"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `mmssl bench`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = """a suite is a yaml file:
  name: my upstreams
  folder: results                    # features, results and leaderboard, seen from the suite's folder
  corpora:
    - {name: mini, manifest: data/manifest.jsonl, folds: data/folds.json, label: emotion}
    - {name: other, manifest: other.jsonl, label: emotion, protocol: {scheme: group_kfold, k: 5}}
  upstreams:
    - fbank
    - {name: hubert, _target_: hf, path: /models/hubert_base}
  protocols: [linear, knn, logreg]   # linear, mlp, knn, logreg; ridge for labels that are numbers
  heads:                             # pairs of head and interface; frames are kept where one needs them
    - attentive_stats
    - {head: ecapa_tdnn, interface: hierarchical_conv, head_arguments: {channels: 256}}
  probe: {scan: true, fractions: [0.1, 1], seeds: 3, learning_rates: [1.0e-3, 1.0e-2], max_steps: 400}
Stopped or killed, the same command goes on where it was."""
    parser.add_argument("suite", metavar="SUITE.yaml", help="what to run")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ... (default cpu)")
    parser.add_argument("--jobs", type=int, default=1, help="processes that extract (default 1)")
    parser.add_argument("--quiet", action="store_true", help="print the leaderboard only")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from pathlib import Path

    from mmssl.report.leaderboard import render_markdown
    from mmssl.stages.bench_suite import read_suite, run_suite

    suite = read_suite(Path(args.suite))
    board = run_suite(suite, device=args.device, jobs=args.jobs, say=_nothing if args.quiet else _say)
    print(f"\n{render_markdown(board).rstrip()}")
    print(f"\nLeaderboard: {suite.folder / 'leaderboard.html'} (.md, .tex, .json)")
    return 0


def _say(text: str) -> None:
    print(text, flush=True)


def _nothing(text: str) -> None:
    pass
