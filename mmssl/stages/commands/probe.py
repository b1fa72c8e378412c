"""`mmssl probe`: protocols on feature stores, with intervals, and paired tests between the stores."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmssl.errors import ConfigError

if TYPE_CHECKING:
    from mmssl.data.folds import Fold
    from mmssl.probing.choice import HeadChoice
    from mmssl.types import Clip

HELP = "train and score probes on stored features"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `mmssl probe`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "protocols: linear and mlp (SUPERB's and EmoBox's heads on the mean and standard deviation over time), knn,\n"
        "logreg; ridge for labels that are numbers. Settings are chosen on the development clips of each fold.\n"
        "heads: linear, mlp, attentive_stats, ecapa_tdnn, xvector, blstm, a dotted path or a .py file, on the layers\n"
        "as an interface joins them: weighted_sum, hierarchical_conv, layer, last_layer, concat. A pair that is\n"
        "affine up to the mean over time (linear on weighted_sum) is trained on the mean of each layer; any other\n"
        "needs a store with frames.\n"
        "folds: a file, or made here: the manifest's own train, dev and test, or --k parts that share no --group.\n\n"
        "mmssl probe feats/hubert --manifest m.jsonl --folds f.json --label emotion --scan --fractions 0.1,1\n"
        "mmssl probe feats/hubert --manifest m.jsonl --folds f.json --label emotion --head attentive_stats \\\n"
        "    --interface hierarchical_conv"
    )
    parser.add_argument("stores", nargs="+", metavar="STORE", help="feature stores; several are compared")
    parser.add_argument("--manifest", required=True, help="clips with labels")
    parser.add_argument("--folds", help="file of folds, as a recipe's data/folds.json (default: made here)")
    parser.add_argument("--k", type=int, default=5, help="folds to make where no file is given (default 5)")
    parser.add_argument("--group", default="speaker", help="what no two parts of a fold share (default speaker)")
    parser.add_argument("--label", required=True, help="name of the label, such as emotion")
    parser.add_argument("--name", help="of the corpus, in tables (default: the manifest's)")
    parser.add_argument("--values", action="store_true", help="the label is a number, not a class")
    parser.add_argument("--protocol", help="with commas between (default linear; none where --head is given)")
    parser.add_argument("--head", metavar="NAME", help="heads, with commas between, trained on --interface")
    parser.add_argument("--interface", metavar="NAME", help="what joins the layers for --head (default weighted_sum)")
    for part in ("head", "interface"):
        parser.add_argument(
            f"--{part}-option",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help=f"argument of the {part}, may be repeated",
        )
    parser.add_argument("--stream", default="audio", help="default audio")
    parser.add_argument("--statistics", default="mean_std", help="over time: mean or mean_std (default mean_std)")
    parser.add_argument("--layers", help="numbers with commas between, as in 0,6,-1 (default all)")
    parser.add_argument("--scan", action="store_true", help="also run each layer alone")
    parser.add_argument("--fractions", default="1", help="shares of the training clips, as in 0.01,0.1,1 (default 1)")
    parser.add_argument("--fuse", action="store_true", help="also run all stores side by side")
    parser.add_argument("--seeds", type=int, default=1, help="seeds of linear and mlp (default 1)")
    parser.add_argument(
        "--learning-rates", help="as in 1e-4,1e-3 (default five from 1e-4 to 1e-2; 1e-4,1e-3 on frames)"
    )
    parser.add_argument("--weight-decays", help="as in 0,0.01 (default 0)")
    parser.add_argument("--max-steps", type=int, default=400, help="default 400")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ... (default cpu)")
    parser.add_argument("--output", metavar="FOLDER", help="keep results and leaderboard here; the same call goes on")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    if args.fuse and len(args.stores) < 2:
        raise ConfigError("--fuse puts several stores side by side: name at least two.")
    if args.seeds < 1:
        raise ConfigError(f"--seeds must be at least 1, got {args.seeds}.")
    names, heads = _protocols(args)
    settings: dict[str, Any] = {"max_steps": args.max_steps}
    for key in ("learning_rates", "weight_decays"):
        if getattr(args, key) is not None:
            settings[key] = _numbers(getattr(args, key), float, f"--{key.replace('_', '-')}")
    fractions = _numbers(args.fractions, float, "--fractions")
    layers = None if args.layers is None else _numbers(args.layers, int, "--layers")
    from mmssl.data.folds import read_folds
    from mmssl.data.manifest import read_manifest
    from mmssl.features.store import FeatureStore
    from mmssl.report.leaderboard import render_markdown
    from mmssl.stages.bench import Corpus, Protocols, leaderboard, run_protocols
    from mmssl.stages.bench_suite import write_board

    protocols = Protocols(
        names=names,
        heads=heads,
        statistics=args.statistics,
        stream=args.stream,
        layers=layers,
        scan=args.scan,
        fractions=fractions,
        seeds=args.seeds,
        settings=settings,
    )
    manifest = Path(args.manifest)
    clips = read_manifest(manifest)
    folds = _made_folds(clips, args) if args.folds is None else read_folds(args.folds)
    corpus = Corpus(args.name or manifest.stem, clips, folds, args.label, args.values)
    stores = [FeatureStore(folder) for folder in args.stores]
    systems = dict(zip(_names(args.stores), ([store] for store in stores), strict=True))
    if args.fuse:
        systems[" + ".join(systems)] = stores
    output = None if args.output is None else Path(args.output)
    records = []
    for name, used in systems.items():
        kept = None if output is None else output / "results"
        records += run_protocols(corpus, name, used, protocols, kept, device=args.device, say=_say)
    board = leaderboard(f"{args.label} of {corpus.name}", records)
    if output is not None:
        write_board(board, output)
    print(f"\n{render_markdown(board).rstrip()}")
    return 0


def _made_folds(clips: list[Clip], args: argparse.Namespace) -> list[Fold]:
    """The manifest's own split where it has one, else folds that share no group."""
    from mmssl.data.splits import make_folds

    label = None if args.values else args.label
    if {"train", "dev", "test"} <= {clip.split for clip in clips}:
        folds = make_folds(clips, scheme="predefined", group="split", label=label)
        _say("Folds: the manifest's own train, dev and test.")
    else:
        folds = make_folds(clips, scheme="group_kfold", group=args.group, label=label, k=args.k, dev_groups=1)
        _say(f"Folds: {args.k}, no {args.group} in two parts of the same one.")
    return folds


def _protocols(args: argparse.Namespace) -> tuple[tuple[str, ...], tuple[HeadChoice, ...]]:
    """Protocols and pairs of interface and head that were asked for."""
    heads = _words(args.head)
    if not heads and (args.interface or args.head_option or args.interface_option):
        raise ConfigError(
            "--interface, --head-option and --interface-option go with --head: name one, as --head linear."
        )
    names = _words(args.protocol) or (() if heads else ("linear",))
    from mmssl.probing.choice import PLAIN_INTERFACE, HeadChoice

    own, joining = _options(args.head_option, "--head-option"), _options(args.interface_option, "--interface-option")
    return names, tuple(HeadChoice(head, args.interface or PLAIN_INTERFACE, own, joining) for head in heads)


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())


def _options(given: list[str], option: str) -> dict[str, Any]:
    """KEY=VALUE words as a mapping; values as yaml reads them."""
    import yaml

    found: dict[str, Any] = {}
    for word in given:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise ConfigError(f"{option} takes KEY=VALUE, as in channels=256; got {word!r}.")
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"{option} {word!r}: {value!r} cannot be read: {error}.") from error
    return found


def _names(folders: list[str]) -> list[str]:
    """Names of the stores' folders; with their parents' where two are alike."""
    names = [Path(folder).resolve().name for folder in folders]
    if len(set(names)) == len(names):
        return names
    longer = ["_".join(Path(folder).resolve().parts[-2:]) for folder in folders]
    if len(set(longer)) < len(longer):
        raise ConfigError(f"Two of the stores have one name: {', '.join(longer)}. Name each store once.")
    return longer


def _numbers(text: str, kind: Callable[[str], Any], option: str) -> list[Any]:
    try:
        return [kind(word) for word in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} takes numbers with commas between; got {text!r}.") from None


def _say(text: str) -> None:
    print(text, flush=True)
