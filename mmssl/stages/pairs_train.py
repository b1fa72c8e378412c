"""Stage of recipes/ssl_pairs: pretrain on pairs of a sound and a picture, with true and with shuffled pairs.

A few thousand words and small pictures fit in memory, so that they are read once. What is drawn for a clip depends on
the seed, the clip and the epoch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmssl.data.folds import Fold, read_folds
from mmssl.data.manifest import read_manifest
from mmssl.errors import ConfigError, DataError
from mmssl.lengths import pad
from mmssl.media.audio import load_audio
from mmssl.media.images import load_image
from mmssl.objectives.av_samplers import partners
from mmssl.objectives.objective import Objective
from mmssl.objectives.types import Examples
from mmssl.random import isolated_rng, mix
from mmssl.registry import OBJECTIVES, UPSTREAMS
from mmssl.stages.context import Context, log
from mmssl.stages.files import read_json, write_json
from mmssl.training.pretrain_module import learning_rate_factor
from mmssl.types import Clip, Inputs, Padded

PAIRINGS = ("paired", "shuffled")
WEIGHTS, HISTORY = "objective.safetensors", "history.json"


@dataclass(frozen=True)
class Pairs:
    """Sounds and pictures of a corpus in memory.

    Attributes:
        clips: in the order of the manifest.
        sounds: (T_b,) of each clip.
        pictures: (N, C, H, W), those of the clips, in their order.
    """

    clips: Sequence[Clip]
    sounds: Sequence[Tensor]
    pictures: Tensor

    def rows(self, ids: Sequence[str]) -> list[int]:
        """Places of clips."""
        place = {clip.id: row for row, clip in enumerate(self.clips)}
        return [place[name] for name in ids]


def train(context: Context) -> str:
    """Train every objective and pairing on every fold; what is there already is kept.

    Raises:
        ConfigError: an unknown objective or pairing, or settings out of range.
        DataError: a clip lacks its sound or its picture.
    """
    config = context.config
    _check(config)
    folds = read_folds(context.data / "folds.json")
    pairs = read_pairs(context)
    wanted = {key: config[key] for key in ("upstream", "objectives", "pretrain")}
    done = 0
    for fold, method, pairing in product(folds, config["methods"], config["pairings"]):
        folder = run_folder(context, method, pairing, fold.name)
        if (folder / HISTORY).is_file() and read_json(folder / HISTORY)["settings"] == wanted:
            continue
        began = time.monotonic()
        objective = build(context, method)
        history = fit(objective, pairs, [*fold.train, *fold.dev], pairing, config["pretrain"])
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{WEIGHTS}.part"
        save_file({name: value.contiguous() for name, value in objective.state_dict().items()}, partial)
        partial.replace(folder / WEIGHTS)
        seconds = time.monotonic() - began
        write_json(folder / HISTORY, {"settings": wanted, "seconds": seconds, "rows": history})
        last = history[-1]
        log.info("   %s, %s, fold %s: loss %.3f -> %.3f", method, pairing, fold.name, history[0]["loss"], last["loss"])
        done += 1
    return f"{done} runs of {config['pretrain']['steps']} steps"


def run_folder(context: Context, method: str, pairing: str, fold: str) -> Path:
    """Where one run is kept."""
    return context.exp_dir / "pretrained" / f"{method}-{pairing}" / fold


def build(context: Context, method: str) -> Objective:
    """An objective with weights drawn from the seed."""
    config = context.config
    with isolated_rng(config["pretrain"]["seed"]):
        system = context.systems[0]
        upstream = UPSTREAMS.build(system.target, **system.kwargs)
        options = {key: value for key, value in config["objectives"][method].items() if not key.startswith("_")}
        return OBJECTIVES.build(config["objectives"][method]["_target_"], upstream, health_every=0, **options)


def load(context: Context, method: str, pairing: str, fold: Fold) -> Objective:
    """A trained objective, in eval mode."""
    objective = build(context, method)
    objective.load_state_dict(load_file(run_folder(context, method, pairing, fold.name) / WEIGHTS))
    return objective.eval()


def read_pairs(context: Context) -> Pairs:
    """All sounds and pictures of the corpus, as the upstream takes them.

    Raises:
        DataError: a clip lacks its sound or its picture.
    """
    system = context.systems[0]
    spec = UPSTREAMS.build(system.target, **system.kwargs).spec
    clips = read_manifest(context.data / "manifest.jsonl")
    sounds, pictures = [], []
    for clip in clips:
        if clip.audio is None or clip.image is None:
            raise DataError(f"The clip {clip.id!r} needs audio and an image; its manifest line lacks one.")
        sounds.append(load_audio(clip.audio, sample_rate=spec.sample_rate)[0])
        pictures.append(load_image(clip.image, spec.image_size))
    return Pairs(clips, sounds, torch.stack(pictures))


def fit(
    objective: Objective, pairs: Pairs, ids: Sequence[str], pairing: str, settings: Mapping[str, Any]
) -> list[dict[str, float]]:
    """Train an objective on clips.

    Args:
        objective: trained in place.
        pairs: the corpus.
        ids: of the clips to train on.
        pairing: "shuffled" binds each sound to the picture of another clip, the same one in all epochs.
        settings: the section `pretrain`.

    Returns:
        Mean of the objective's logs over each twentieth of the steps.
    """
    seed, steps, size = settings["seed"], settings["steps"], settings["batch_size"]
    rows = pairs.rows(ids)
    pictures = {row: row for row in rows}
    if pairing == "shuffled":
        order = partners(rows, torch.Generator().manual_seed(mix(seed, 1))).tolist()
        pictures = {row: rows[other] for row, other in zip(rows, order, strict=True)}
    limit = round(settings["max_seconds"] * float(objective.encoder.upstream.spec.sample_rate or 0))
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings["learning_rate"], weight_decay=settings["weight_decay"])
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, settings["warmup_steps"], steps, "cosine")
    )
    objective.train()
    per_epoch = max(len(rows) // size, 1)
    every = max(steps // 20, 1)
    history: list[dict[str, float]] = []
    logs: list[Mapping[str, Tensor]] = []
    for step in range(steps):
        epoch, place = divmod(step, per_epoch)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(mix(seed, 2, epoch))).tolist()
        members = [rows[k] for k in order[place * size : (place + 1) * size]]
        examples = _examples(pairs, members, [pictures[row] for row in members], limit, seed, epoch)
        with isolated_rng(mix(seed, 3, step)):
            output = objective(examples, step, torch.Generator().manual_seed(mix(seed, 4, step)))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        schedule.step()
        objective.after_step(step)
        logs.append(output.logs)
        if (step + 1) % every == 0 or step + 1 == steps:
            mean = {name: float(torch.stack([log[name].float() for log in logs]).mean()) for name in logs[0]}
            history.append({"step": step + 1, **mean})
            logs = []
    return history


def _examples(
    pairs: Pairs, rows: Sequence[int], pictures: Sequence[int], limit: int, seed: int, epoch: int
) -> Examples:
    seeds = tuple(mix(seed, epoch, row) for row in rows)
    sounds = []
    for row, own in zip(rows, seeds, strict=True):
        sound = pairs.sounds[row]
        places = max(len(sound) - limit, 0) + 1
        start = int(torch.randint(places, (), generator=torch.Generator().manual_seed(own)))
        sounds.append(sound[start : start + limit])
    inputs = Inputs(waveforms=Padded(*pad(sounds)), images=pairs.pictures[list(pictures)])
    return Examples(inputs, tuple(pairs.clips[row].id for row in rows), seeds=seeds, epoch=epoch)


def _check(config: Mapping[str, Any]) -> None:
    settings = config["pretrain"]
    unknown = [name for name in config["methods"] if name not in config["objectives"]]
    wrong = [name for name in config["pairings"] if name not in PAIRINGS]
    if unknown or wrong or not config["methods"] or not config["pairings"]:
        raise ConfigError(
            f"methods are of {', '.join(config['objectives'])} and pairings of {', '.join(PAIRINGS)}, at least one of "
            f"each; got {config['methods']} and {config['pairings']}."
        )
    if settings["steps"] < 1 or settings["batch_size"] < 2 or not settings["learning_rate"] > 0:
        raise ConfigError(
            f"pretrain takes steps >= 1, batch_size >= 2 and learning_rate > 0, got {settings['steps']}, "
            f"{settings['batch_size']} and {settings['learning_rate']}."
        )
    if not settings["max_seconds"] > 0 or not 0 <= settings["warmup_steps"] <= settings["steps"]:
        raise ConfigError(
            f"pretrain takes max_seconds > 0 and warmup_steps of 0 to steps, got {settings['max_seconds']} and "
            f"{settings['warmup_steps']}."
        )
