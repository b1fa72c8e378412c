"""Stage 2 of the audio-visual recipes: pretrain the encoder on speakers that no test has, where that is asked for."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmssl.data.folds import read_folds
from mmssl.data.manifest import read_manifest
from mmssl.errors import ConfigError, DataError, did_you_mean
from mmssl.random import isolated_rng
from mmssl.registry import OBJECTIVES, UPSTREAMS
from mmssl.stages.av_prepare import PRETRAINING
from mmssl.stages.context import Context, log
from mmssl.stages.files import digest, read_json, write_json
from mmssl.stages.ssl_setup import LOADER
from mmssl.stages.ssl_train import check_settings
from mmssl.stages.utterance_prepare import FOLDS
from mmssl.types import Clip

RECORD, TRAINED, UNTRAINED = "pretraining.json", "pretrained", "untrained"
PLAIN = "mmssl.stages.av_plain.MelPixels"
_KEYS = ("objective", "seconds", "settings")


@dataclass(frozen=True)
class Encoder:
    """One compared encoder.

    Attributes:
        name: in folder names.
        title: in tables.
        target: registry name or dotted path.
        kwargs: of its constructor.
        role: "main", "untrained", "plain" or "compared".
    """

    name: str
    title: str
    target: str
    kwargs: Mapping[str, Any]
    role: str


def pretrain(context: Context) -> str:
    """Train the main upstream under `pretraining.objective`, and write it and its untrained twin; or do nothing.

    Raises:
        ConfigError: a setting is wrong, or the clips to pretrain on cannot be told from those of some test.
        DataError: there is no clip to pretrain on.
    """
    settings = context.config["pretraining"]
    if settings is None:
        write_json(context.exp_dir / RECORD, {"trained": False})
        return "none: the upstream is taken as it is"
    _check(settings)
    return _train(context, settings)


def _check(settings: Mapping[str, Any]) -> None:
    for key in settings:
        if key not in _KEYS:
            raise ConfigError(f"pretraining.{key}: no such key.{did_you_mean(key, _KEYS)} Keys: {', '.join(_KEYS)}.")
    if settings.get("objective") is None or settings.get("seconds") is None:
        raise ConfigError("pretraining needs objective (with a _target_) and seconds, the length of its segments.")
    check_settings(settings.get("settings") or {})


def _clips(context: Context) -> list[Clip]:
    """The clips to pretrain on."""
    path = context.data / PRETRAINING
    if not path.is_file():
        count = len(read_folds(context.data / FOLDS))
        raise DataError(
            f"There are {count} folds, so that one encoder for all of them would have seen test speakers. Have "
            "local/prepare.py give clips of other speakers the split 'pretrain', choose a protocol of one fold, or "
            "take a pretrained upstream and pretraining=null."
        )
    return read_manifest(path)


def _train(context: Context, settings: Mapping[str, Any]) -> str:
    from mmssl.training.pretrain import pretrain as run
    from mmssl.training.readers import reader_for
    from mmssl.upstreams.exported import export_upstream

    system, folder = context.systems[0], context.exp_dir
    given = dict(settings.get("settings") or {})
    seed = int(given.get("seed") or 0)
    clips = _clips(context)
    fingerprint = digest(
        {
            "upstream": [system.target, dict(system.kwargs)],
            "settings": settings,
            "clips": sorted(clip.id for clip in clips),
        }
    )
    done = folder / RECORD
    if done.is_file() and read_json(done).get("digest") == fingerprint and (folder / TRAINED).is_dir():
        return "finished before"
    for name in (TRAINED, UNTRAINED):
        shutil.rmtree(folder / name, ignore_errors=True)
    with isolated_rng(seed):
        upstream = UPSTREAMS.build(system.target, **system.kwargs).requires_grad_(True)
    export_upstream(upstream, folder / UNTRAINED, system.target, system.kwargs)
    node = settings["objective"]
    with isolated_rng(seed):
        own = {key: value for key, value in node.items() if not key.startswith("_")}
        objective = OBJECTIVES.build(node["_target_"], upstream, **own)
    began = time.monotonic()
    # where an earlier run was cut off, it goes on from its checkpoint, if nothing changed
    work = folder / f"pretraining-{fingerprint[:12]}"
    options: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    result = run(
        objective,
        clips,
        work,
        reader=reader_for(upstream.spec, seconds=settings["seconds"]),
        device=context.device(),
        on_error=context.config["data"]["on_error"],
        log=lambda line: log.info("   %s", line),
        **options,
    )
    export_upstream(upstream.cpu(), folder / TRAINED, system.target, system.kwargs)
    rows = result.history
    record = {
        "trained": True,
        "digest": fingerprint,
        "objective": node["_target_"].rpartition(".")[2],
        "clips": len(clips),
        "speakers": len({clip.speaker for clip in clips}),
        "steps": rows[-1]["step"],
        "seconds": time.monotonic() - began,
        "loss": [rows[0]["loss"], rows[-1]["loss"]],
        "skipped": result.skipped,
        "warnings": list(result.warnings),
        "history": rows,
    }
    write_json(done, record)
    return f"loss {rows[0]['loss']:.3f} -> {rows[-1]['loss']:.3f} in {rows[-1]['step']:.0f} steps on {len(clips)} clips"


def encoders(context: Context) -> list[Encoder]:
    """What is compared: the main upstream, its untrained twin, plain features, and those of `compare`.

    Raises:
        StageError: the stage pretrain has not run.
    """
    config, main = context.config, context.systems[0]
    trained = read_json(context.exp_dir / RECORD)["trained"]
    kwargs = {"path": str(context.exp_dir / TRAINED)} if trained else dict(main.kwargs)
    target = LOADER if trained else main.target
    title = f"{main.name}, pretrained" if trained else main.name
    found = [Encoder(main.name, title, target, kwargs, "main")]
    if config["untrained"]:
        twin = _untrained(context, trained)
        if twin is None:
            log.info("   %s has no untrained twin: it was built without a checkpoint", main.name)
        else:
            found.append(twin)
    if config["plain"]:
        found.append(Encoder("mel_pixels", "log-mel and pixels", PLAIN, {}, "plain"))
    return found + [Encoder(s.name, s.name, s.target, s.kwargs, "compared") for s in context.systems[1:]]


def _untrained(context: Context, trained: bool) -> Encoder | None:
    main = context.systems[0]
    name, title = f"{main.name}-untrained", f"{main.name}, untrained"
    if trained:
        return Encoder(name, title, LOADER, {"path": str(context.exp_dir / UNTRAINED)}, "untrained")
    if main.kwargs.get("checkpoint") is None:
        return None
    return Encoder(name, title, main.target, {**main.kwargs, "checkpoint": None}, "untrained")
