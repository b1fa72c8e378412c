"""mmssl predict: label files with a trained experiment."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmssl.stages.predictor import Prediction

HELP = "label files with a trained experiment"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "folder", metavar="EXP_DIR", help="an experiment (exp/NAME) or a folder written by `mmssl export`"
    )
    parser.add_argument("files", metavar="FILE", nargs="+", help="audio or video files of any format and sample rate")
    parser.add_argument("--system", help="which system of the experiment (default: the best in results.json)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per file")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--upstream-path", metavar="DIR", help="where the upstream's weights are now")
    parser.add_argument(
        "--trust", action="store_true", help="also build parts that are no installed plug-in (runs their code)"
    )


def run(args: argparse.Namespace) -> int:
    """Predict for every file that can be read; 1 if one could not."""
    from mmssl.errors import MmsslError
    from mmssl.stages.predictor import load_predictor

    predictor = load_predictor(
        args.folder, args.system, args.device, upstream_path=args.upstream_path, trust_targets=args.trust
    )
    done: list[Prediction] = []
    failed = 0
    for path in args.files:
        try:
            prediction = predictor.predict_one(path)
        except (MmsslError, OSError) as error:
            failed += 1
            print(f"error: {error if path in str(error) else f'{path}: {error}'}", file=sys.stderr)
            if args.json:
                print(json.dumps({"path": path, "error": str(error)}, ensure_ascii=False))
            continue
        done.append(prediction)
        if args.json:
            print(json.dumps(_as_json(prediction, predictor.system.name), ensure_ascii=False), flush=True)
    if not args.json and done:
        print("\n".join(_table(done)))
        models = len(predictor.models)
        source = f"mean over the models of {models} folds" if models > 1 else "one model"
        print(f"\nSystem {predictor.system.name}, {source}.")
    if failed:
        print(f"error: {failed} of {len(args.files)} files could not be labelled.", file=sys.stderr)
    return 1 if failed else 0


def _as_json(prediction: Prediction, system: str) -> dict[str, Any]:
    fields: dict[str, Any] = {"path": prediction.path, "system": system}
    if prediction.values:
        return fields | {"values": prediction.values}
    return fields | {"label": prediction.label, "probabilities": prediction.probabilities}


def _table(predictions: list[Prediction]) -> list[str]:
    from mmssl.report.summary import align

    first = predictions[0]
    if first.values:
        rows = [
            ["file", *first.values],
            *([str(p.path), *(f"{v:.3f}" for v in p.values.values())] for p in predictions),
        ]
        return align(rows, left=1)
    header = ["file", "label", *first.probabilities]
    rows = [[str(p.path), str(p.label), *(f"{v:.3f}" for v in p.probabilities.values())] for p in predictions]
    return align([header, *rows], left=2)
