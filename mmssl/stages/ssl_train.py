"""Stages 3 and 4 of recipes/ssl: pretraining, iteration by iteration, and the folder that is used afterwards."""

from __future__ import annotations

import inspect
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from mmssl.data.manifest import read_manifest
from mmssl.errors import ConfigError, did_you_mean
from mmssl.stages.context import Context, log, versions
from mmssl.stages.files import digest, read_json, write_json, write_text
from mmssl.stages.ssl_setup import (
    MANIFEST,
    RUN,
    SETTINGS,
    UNTRAINED,
    UPSTREAM,
    Iteration,
    augmentation,
    build_objective,
    build_upstream,
    exported_as,
    folder_of,
    iterations,
    make_reader,
)
from mmssl.stages.ssl_targets import make_units
from mmssl.stages.ssl_watch import online_probe, score_held_out

# how often it is saved and by how many workers it is read changes no run
_NO_CHANGE = ("save_every", "num_workers", "cache_bytes")


def train(context: Context) -> str:
    """Train every iteration of the plan; what is finished is kept, and what was interrupted goes on.

    Raises:
        ConfigError: a setting of the section `pretrain` is unknown or wrong.
        InputError: the loss is not finite.
    """
    from mmssl.upstreams.exported import export_upstream

    check_settings(context.config["pretrain"])
    target, arguments = exported_as(context)
    export_upstream(build_upstream(context), context.exp_dir / UNTRAINED, target, arguments)
    before = ""
    said = []
    for iteration in iterations(context.config):
        run = _train_one(context, iteration, before)
        before = run["digest"]
        rows = run["history"]
        said.append(f"loss {rows[0]['loss']:.3f} -> {rows[-1]['loss']:.3f} in {iteration.steps} steps")
    return "; ".join(said)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Make sure that every key of the section `pretrain` is an argument of `mmssl.training.pretrain.pretrain`.

    Raises:
        ConfigError: one is not.
    """
    from mmssl.training.pretrain import pretrain

    not_here = {"objective", "clips", "folder", "reader", "augment", "device", "on_error", "max_seconds"}
    not_here |= {"probe", "callbacks", "loggers", "log"}
    allowed = [name for name in inspect.signature(pretrain).parameters if name not in not_here]
    for key in settings:
        if key not in allowed:
            raise ConfigError(
                f"pretrain.{key}: no such setting.{did_you_mean(key, allowed)} Settings: {', '.join(allowed)}."
            )


def _train_one(context: Context, iteration: Iteration, before: str) -> dict[str, Any]:
    """Train one iteration, and write its encoder and run.json."""
    from mmssl.training.pretrain import pretrain
    from mmssl.upstreams.exported import export_upstream

    config, folder = context.config, folder_of(context, iteration.number)
    clips = read_manifest(context.exp_dir / MANIFEST)
    targets = None if iteration.source is None else make_units(context, iteration)
    if targets is not None:
        iteration = replace(iteration, stream=targets["stream"])
    target, arguments = exported_as(context)
    system = context.systems[0]
    depends = {
        "upstream": [system.target, dict(system.kwargs), config["init"]],
        **{key: config[key] for key in ("objective", "reader")},
        "pretrain": {k: v for k, v in config["pretrain"].items() if k not in _NO_CHANGE},
        "iteration": asdict(iteration),
        "targets": None if targets is None else targets["digest"],
        "clips": sorted(clip.id for clip in clips),
        "before": before,
    }
    augment = augmentation(config)
    if augment is not None:
        depends["augment"] = config["augment"]
    fingerprint = digest(depends)
    if (folder / RUN).is_file() and read_json(folder / RUN)["digest"] == fingerprint:
        log.info("   iteration %d was finished", iteration.number)
        return read_json(folder / RUN)
    _clear_other_run(context, iteration, fingerprint)
    upstream = build_upstream(context)
    objective = build_objective(context, upstream, iteration, None if targets is None else targets["rate"])
    began = time.monotonic()
    # null stands for the default of the function, but for the limit of a batch, where it is a value
    given = {key: v for key, v in config["pretrain"].items() if v is not None or key == "batch_seconds"}
    settings: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in given.items()}
    settings["max_steps"] = iteration.steps
    reader = make_reader(config, upstream)
    result = pretrain(
        objective,
        clips,
        folder,
        reader=reader,
        augment=augment,
        callbacks=online_probe(context, upstream, reader),
        device=context.device(),
        on_error=config["data"]["on_error"],
        log=lambda line: log.info("   %s", line),
        **settings,
    )
    seconds = time.monotonic() - began
    steps = iteration.steps - result.resumed_from
    held_out = score_held_out(context, iteration, objective, reader)
    layout = export_upstream(upstream.cpu(), folder / UPSTREAM, target, arguments)
    run = {
        "digest": fingerprint,
        "iteration": iteration.number,
        "steps": iteration.steps,
        "seconds": seconds,
        "steps_per_second": steps / seconds if steps else None,
        "resumed_from": result.resumed_from,
        "parameters": sum(p.numel() for p in upstream.parameters()),
        "layout": layout,
        "warnings": list(result.warnings),
        "skipped": result.skipped,
        "held_out": held_out,
        "history": result.history,
    }
    write_json(folder / RUN, run)
    return run


def _clear_other_run(context: Context, iteration: Iteration, fingerprint: str) -> None:
    """Remove the checkpoint of a run with other settings, which could not go on as this one."""
    from mmssl.training.pretrain import CHECKPOINT, HISTORY
    from mmssl.training.pretrain_loggers import METRICS
    from mmssl.training.pretrain_watch import WARNINGS

    folder = folder_of(context, iteration.number)
    path = folder / SETTINGS
    if path.is_file() and read_json(path)["digest"] == fingerprint:
        return
    for name in (CHECKPOINT, HISTORY, METRICS, WARNINGS, RUN):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / UPSTREAM, ignore_errors=True)
    write_json(path, {"digest": fingerprint})


def export(context: Context) -> str:
    """Copy the last encoder to the experiment's folder `upstream`, load it from there, and add a card.

    Raises:
        CheckpointError: the folder cannot be read back.
    """
    from mmssl.upstreams.base import load_upstream
    from mmssl.upstreams.exported import load_exported

    last = iterations(context.config)[-1]
    run = read_json(folder_of(context, last.number) / RUN)
    folder, partial = context.exp_dir / UPSTREAM, context.exp_dir / f".{UPSTREAM}.part"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(folder_of(context, last.number) / UPSTREAM, partial)
    write_text(partial / "README.md", _card(context, run))
    load_exported(str(partial))
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
    built = load_upstream(str(folder))
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    reads = "transformers and mmssl read it" if run["layout"] == "transformers" else "mmssl reads it"
    return f"{type(built).__name__}, {run['parameters'] / 1e6:.2f} M parameters, {size:.1f} MB; {reads}"


def _card(context: Context, run: Mapping[str, Any]) -> str:
    config = context.config
    objective = config["objective"]["_target_"].rpartition(".")[2]
    lines = [
        f"# {context.systems[0].name}, pretrained by {objective} on {config['corpus']}",
        "",
        f'    mmssl.load_upstream("{context.exp_dir.relative_to(context.folder)}/{UPSTREAM}")',
        "",
        f"- **Run**: `{context.command}` in `egs/{context.folder.parent.name}/{context.folder.name}`",
        f"- **Steps**: {run['steps']}, {run['parameters']} parameters, last loss {run['history'][-1]['loss']:.4f}",
        f"- **Started from**: {config['init'] or 'weights drawn from the seed'}",
        f"- **Versions**: {', '.join(f'{name} {value}' for name, value in versions().items())}",
        "- **Licence**: what may be done with the weights depends on the corpus; see its licence.",
        "",
    ]
    return "\n".join(lines)
