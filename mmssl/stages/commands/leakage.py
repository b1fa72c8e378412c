"""`mmssl leakage`: how well speakers can be read from stored features."""

from __future__ import annotations

import argparse
import json

HELP = "how well a linear probe reads the speaker from stored features"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `mmssl leakage`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = """A linear probe is trained on clips of every speaker and judged on other clips of the same
speakers; the interval is a bootstrap over speakers. Where each speaker was recorded in one session, room and
microphone count too."""
    parser.add_argument("store", metavar="STORE", help="feature store with pooled features")
    parser.add_argument("--manifest", required=True, help="clips with speakers")
    parser.add_argument("--stream", default="audio", help="default audio")
    parser.add_argument("--statistics", default="mean_std", help="over time: mean or mean_std (default mean_std)")
    parser.add_argument("--layers", type=int, nargs="+", help="numbers, negative from the end (default all)")
    parser.add_argument("--folds", type=int, default=5, help="parts of every speaker's clips (default 5)")
    parser.add_argument("--seed", type=int, default=0, help="of the parts (default 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Measure every layer and print a table."""
    from mmssl.data.manifest import read_manifest
    from mmssl.features.store import FeatureStore
    from mmssl.probing.leakage import store_leakage
    from mmssl.report.summary import align

    found = store_leakage(
        FeatureStore(args.store),
        read_manifest(args.manifest),
        stream=args.stream,
        statistics=args.statistics,
        layers=args.layers,
        folds=args.folds,
        seed=args.seed,
    )
    first = next(iter(found.values()))
    if args.json:
        layers = {str(k): {"accuracy": v.accuracy, "interval": v.interval} for k, v in found.items()}
        counts = {"chance": first.chance, "clips": first.num_clips, "speakers": first.num_speakers}
        print(json.dumps({**counts, "layers": layers}))
        return 0
    rows = [["layer", "speakers found", "95 % interval"]]
    rows += [
        [
            str(layer),
            f"{100 * value.accuracy:.1f} %",
            f"{100 * value.interval[0]:.1f} to {100 * value.interval[1]:.1f} %",
        ]
        for layer, value in found.items()
    ]
    print("\n".join(align(rows, left=1)))
    print(f"\n{first.num_clips} clips of {first.num_speakers} speakers; chance {100 * first.chance:.1f} %.")
    return 0
