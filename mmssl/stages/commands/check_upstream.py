"""`mmssl check-upstream`: run the contract suite on a built-in upstream or a plug-in."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from mmssl.errors import ConfigError

HELP = "run the contract tests on an upstream, yours included"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `mmssl check-upstream`."""
    parser.add_argument("upstream", metavar="NAME", help="a name, a dotted path to a class, or a path to a .py file")
    parser.add_argument(
        "arguments",
        nargs="*",
        metavar="KEY=VALUE",
        help="arguments of its constructor, values in YAML: path=DIR, 'config={model_type: hubert, hidden_size: 64}'",
    )
    parser.add_argument(
        "--longest", type=float, default=10.0, metavar="S", help="seconds of the longest clip (default 10)"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-5,
        metavar="X",
        help="largest difference alone - in a batch, in parts of a layer's scale (default 1e-5)",
    )


def run(args: argparse.Namespace) -> int:
    """Print one line per check; returns 0 if all pass, else 1."""
    from mmssl.testing.upstream_contract import check_upstream
    from mmssl.upstreams.base import load_upstream

    kwargs = parse_arguments(args.arguments)
    load_upstream(args.upstream, **kwargs)  # a wrong name or argument is the user's mistake, not a broken rule
    results = check_upstream(
        lambda: load_upstream(args.upstream, **kwargs), longest=args.longest, tolerance=args.tolerance
    )
    for result in results:
        print(result)
    failed = sum(not result.passed for result in results)
    skipped = sum(result.skipped for result in results)
    print(f"{args.upstream}: {len(results) - failed - skipped} checks passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


def parse_arguments(words: Sequence[str]) -> dict[str, Any]:
    """["path=DIR", "config={model_type: hubert}"] -> keyword arguments, values read as YAML.

    Raises:
        ConfigError: a word without "=", a key given twice, or a value that is not YAML.
    """
    import yaml

    found: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError(f"{word!r} is no argument: write KEY=VALUE, as in num_mel_bins=40.")
        if key in found:
            raise ConfigError(f"The argument {key!r} is given twice.")
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"The value of {key!r} is not YAML: {value!r}. Quote it: {key}='...'.") from error
    return found
