"""Stage 3 of a recognition recipe: CTC on the frames of every upstream, and the error rate on the test clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from mmssl.data.folds import Fold, read_folds
from mmssl.data.manifest import read_manifest
from mmssl.downstream.ctc import SequenceRecognition, padded_symbols
from mmssl.errors import DataError
from mmssl.features.store import FeatureStore
from mmssl.interfaces.standardized import Standardized
from mmssl.metrics.sequences import edit_distance, error_rate, error_rate_interval
from mmssl.probing.frames import FrameData, FrameSplit, frame_spec, require_frames
from mmssl.stages.context import Context, log
from mmssl.stages.files import read_json
from mmssl.stages.probe_results import write_results
from mmssl.stages.utterance_extract import FEATURES
from mmssl.stages.utterance_prepare import FOLDS, MANIFEST
from mmssl.training.batches import PassOnce
from mmssl.training.sweep import SweepResult, sweep

UNSEEN = "<unseen>"


def recognise(context: Context) -> str:
    """Train on the training clips, decode the test clips; write exp/NAME/error_rates.json and RESULTS.md.

    Raises:
        DataError: a clip has no symbols.
        ConfigError: a setting is wrong.
    """
    settings = context.config["recognition"]
    label = context.config["label"]
    texts = {clip.id: str(clip.labels[label]).split() for clip in read_manifest(context.data / MANIFEST)}
    empty = [clip for clip, symbols in texts.items() if not symbols]
    if empty:
        raise DataError(f"{len(empty)} clips have no symbol in the label {label!r}, among them {empty[0]!r}.")
    (fold,) = read_folds(context.data / FOLDS)
    features = read_json(context.exp_dir / FEATURES)
    rows = []
    notes: list[str] = []
    for system in context.systems:
        store = FeatureStore(context.folder / features[system.name]["folder"])
        row, unseen = _one(context, store, texts, fold, settings)
        rows.append({"system": system.name, "method": f"CTC, {settings['network']}", **row})
        if unseen:
            notes = [f"Symbols of development and test clips that no training clip has: {', '.join(unseen)}."]
        log.info("   %s: error rate %.2f %%", system.name, 100 * row["metrics"]["error_rate"])
    columns = (("error_rate", f"{settings['metric']} %", 100.0),)
    write_results(context, rows, columns, "clips", notes, list(settings["published"] or []))
    return f"{len(fold.test)} test clips, {len(rows)} results, RESULTS.md"


def _one(
    context: Context, store: FeatureStore, texts: Mapping[str, list[str]], fold: Fold, settings: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    require_frames((store,))
    stream = context.config["features"]["stream"]
    parts = {name: [clip for clip in getattr(fold, name) if clip in store] for name in ("train", "dev", "test")}
    ids = tuple(clip for part in parts.values() for clip in part)
    symbols = sorted({symbol for clip in parts["train"] for symbol in texts[clip]})
    unseen = sorted({symbol for clip in ids for symbol in texts[clip]} - set(symbols))
    # what was never trained on is one more symbol, which nothing can get right
    known = {symbol: k for k, symbol in enumerate([*symbols, UNSEEN])}
    targets = padded_symbols([[known.get(s, known[UNSEEN]) for s in texts[clip]] for clip in ids])
    data = FrameData(ids, (store,), stream, None, targets, (), tuple(store.streams[stream]["layers"]))
    starts = [0, len(parts["train"]), len(parts["train"]) + len(parts["dev"]), len(ids)]
    train, dev, test = (torch.arange(a, b) for a, b in pairwise(starts))
    moments = data.moments(train)
    spec = frame_spec((store,), stream, None)

    def build() -> nn.Module:
        interface = Standardized(spec.hidden_sizes, spec.hop_lengths, context.config["interface"]["_target_"])
        interface.set_statistics(*moments)
        return SequenceRecognition(
            interface, len(known), settings["network"], settings["projection_size"], settings["hidden_size"]
        )

    common = {"device": context.device(), **dict(settings["train"])}
    result = sweep(build, FrameSplit(data, train), FrameSplit(data, dev), **common)
    found = _decode(result, FrameSplit(data, test), common)
    wanted = [[s for s in row if s >= 0] for row in targets[test].tolist()]
    edits = [edit_distance(one, other) for one, other in zip(wanted, found, strict=True)]
    sizes = [len(row) for row in wanted]
    names = [*symbols, UNSEEN]
    shown = [
        {"id": clip, "reference": " ".join(texts[clip]), "hypothesis": " ".join(names[s] for s in row)}
        for clip, row in zip(parts["test"], found, strict=True)
    ]
    record = {
        "chosen": {"learning_rate": result.learning_rate, "step": result.best.best_step},
        "metrics": {"error_rate": error_rate(edits, sizes)},
        "intervals": {"error_rate": error_rate_interval(edits, sizes)},
        "predictions": shown,
    }
    return record, unseen


def _decode(result: SweepResult, split: FrameSplit, settings: Mapping[str, Any]) -> list[Sequence[int]]:
    device = settings["device"]
    task: Any = result.task.to(device)
    found: list[Sequence[int]] = []
    for layers, _ in PassOnce(split, settings.get("batch_size", 32)):
        found += task.decode(layers.to(device))
    return found
