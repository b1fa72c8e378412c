"""Stages 5 and 6 of recipes/ssl: a probe of the trained encoder, the untrained one and plain features; a report."""

from __future__ import annotations

from typing import Any

from mmssl.data.folds import read_folds
from mmssl.data.manifest import read_manifest
from mmssl.errors import ConfigError
from mmssl.probing.data import ProbeData, load_data
from mmssl.probing.evaluate import probe as run_probe
from mmssl.report.pretraining import KIND, write_pretraining_report
from mmssl.stages.context import Context, log, versions
from mmssl.stages.files import read_json, write_json
from mmssl.stages.ssl_features import features_of, pixels_of
from mmssl.stages.ssl_setup import (
    CORPUS,
    FOLDS,
    LOADER,
    PROBE_MANIFEST,
    RUN,
    TARGETS,
    UNTRAINED,
    UPSTREAM,
    folder_of,
    iterations,
)

PROBE = "probe.json"
_METRICS = {True: "ccc", False: "uar"}


def probe(context: Context) -> str:
    """Train a probe on frozen features of the labelled clips, and score it on the held-out part; write probe.json.

    Compared are the trained encoder, the same one untrained, and log-mel (sound) or pixels (pictures), for every
    stream of the encoder.

    Raises:
        ConfigError: a stream that the encoder does not have.
        DataError: no labelled clip is left.
    """
    config = context.config
    folds = read_folds(context.exp_dir / FOLDS)
    if not folds:
        write_json(context.exp_dir / PROBE, {"label": None, "scores": []})
        return "none: label=null, the corpus is used without labels"
    clips = read_manifest(context.exp_dir / PROBE_MANIFEST)
    label, values = config["label"], config["task"]["kind"] == "regression"
    metric = _METRICS[values]
    scores: list[dict[str, Any]] = []
    stores = {
        name: features_of(context, f"{context.exp}-{name}", LOADER, {"path": str(context.exp_dir / folder)}, clips)
        for name, folder in (("trained", UPSTREAM), ("untrained", UNTRAINED))
    }
    streams = list(stores["trained"].streams)
    wanted = config["probing"]["streams"] or streams
    for stream in wanted:
        if stream not in streams:
            raise ConfigError(f"probing.streams: the encoder has {', '.join(streams)}, not {stream!r}.")
    for name, store in stores.items():
        for stream in wanted:
            data = load_data(store, clips, label, stream=stream, values=values)
            scores.append(_score(context, data, name, stream, metric))
    for name, stream, data in _plain(context, clips, wanted):
        scores.append(_score(context, data, name, stream, metric))
    write_json(context.exp_dir / PROBE, {"label": label, "metric": metric, "scores": scores, "fold": folds[0].name})
    return f"{metric} of {label}: " + ", ".join(f"{s['system']} {s['stream']} {s[metric]:.3f}" for s in scores)


def _plain(context: Context, clips: list[Any], streams: list[str]) -> list[tuple[str, str, ProbeData]]:
    """Features that nobody trained, of the kinds of media that the streams are of."""
    label, values = context.config["label"], context.config["task"]["kind"] == "regression"
    found = []
    if {*streams} & {"audio", "fusion"} and all(clip.audio is not None for clip in clips):
        store = features_of(context, "mel", "mel", {}, clips)
        found.append(("log-mel", "audio", load_data(store, clips, label, values=values)))
    if {*streams} & {"image", "video", "fusion"}:
        found.append(("pixels", "image" if clips[0].image else "video", pixels_of(clips, label, values)))
    return found


def _score(context: Context, data: ProbeData, system: str, stream: str, metric: str) -> dict[str, Any]:
    settings = context.config["probing"]
    folds = read_folds(context.exp_dir / FOLDS)
    result = run_probe(data, data.parts(folds), settings["protocol"], device=context.device())
    found = result.metrics[metric]
    row = {
        "system": system,
        "stream": stream,
        metric: found["mean"],
        "low": found["ci_low"],
        "high": found["ci_high"],
        "metrics": {name: value["mean"] for name, value in result.metrics.items()},
        "clips": len(result.ids),
        "chosen": next(iter(result.folds[0]["seeds"].values()))["chosen"],
    }
    log.info("   %s, %s: %s %.3f", system, stream, metric, row[metric])
    return row


def report(context: Context) -> str:
    """Write results.json, RESULTS.md and report.html from what the other stages left."""
    config = context.config
    plan = iterations(config)
    runs = [read_json(folder_of(context, iteration.number) / RUN) for iteration in plan]
    targets = [
        read_json(folder_of(context, iteration.number) / TARGETS) if iteration.source is not None else None
        for iteration in plan
    ]
    results = {
        "schema": 1,
        "kind": KIND,
        "name": context.exp,
        "objective": config["objective"]["_target_"].rpartition(".")[2],
        "upstream": context.systems[0].name,
        "init": config["init"],
        "corpus": {"name": config["corpus"], **read_json(context.exp_dir / CORPUS)},
        "iterations": [
            {"targets": made, **{k: v for k, v in run.items() if k != "digest"}}
            for made, run in zip(targets, runs, strict=True)
        ],
        "probe": read_json(context.exp_dir / PROBE),
        "pretrain": config["pretrain"],
        "command": context.command,
        "versions": versions(),
    }
    write_json(context.exp_dir / "results.json", results)
    write_pretraining_report(results, context.exp_dir)
    return "results.json, RESULTS.md, report.html"
