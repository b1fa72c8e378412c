"""Jobs of the retrieval and synchrony recipes: one model for each encoder and fold, on clips that have both streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmssl.data.folds import Fold, read_folds
from mmssl.data.manifest import read_manifest
from mmssl.errors import ConfigError
from mmssl.stages.av_extract import FEATURES
from mmssl.stages.av_features import AvStore
from mmssl.stages.av_media import BOTH
from mmssl.stages.context import Context, log
from mmssl.stages.files import read_json
from mmssl.stages.fold_jobs import RESULT, kept_fold, sealed
from mmssl.stages.utterance_prepare import FOLDS, MANIFEST


@dataclass(frozen=True)
class PairJob:
    """One model to train: plain values, so that another process can do it.

    Attributes:
        folder: of the finished fold.
        root: of the recipe.
        record: of the encoder in av_features.json.
        fold: ids of clips with sound and pictures.
        facts: id -> speaker and label of a clip.
        settings: the recipe's own section.
        train: the configuration's section.
        interface: of each stream, by name.
        standardize: with statistics of the training clips.
        device: torch device.
        fingerprint: of all of the above.
    """

    folder: Path
    root: Path
    record: Mapping[str, Any]
    fold: Fold
    facts: Mapping[str, Sequence[str | None]]
    settings: Mapping[str, Any]
    train: Mapping[str, Any]
    interface: str
    standardize: bool
    device: str
    fingerprint: str = ""

    @property
    def name(self) -> str:
        """Encoder and fold, for messages."""
        return f"{self.record['title']}, {self.fold.name}"

    def fit_settings(self) -> dict[str, Any]:
        """Arguments of `mmssl.training.sweep.sweep`."""
        kept = {k: v for k, v in self.train.items() if k not in ("class_weights", "refit", "engine", "monitor")}
        return {**kept, "device": self.device}


def pair_jobs(context: Context, section: str) -> list[PairJob]:
    """A job for each encoder that takes both streams, and each fold.

    Raises:
        ConfigError: the main encoder takes one stream only.
        DataError: a fold has an empty part.
    """
    config = context.config
    label = config["label"]
    clips = {clip.id: clip for clip in read_manifest(context.data / MANIFEST)}
    folds = read_folds(context.data / FOLDS)
    jobs = []
    for encoder, record in read_json(context.exp_dir / FEATURES).items():
        if record["takes"] != BOTH:
            if record["role"] == "main":
                raise ConfigError(f"{record['title']} takes {record['takes']} only: choose an upstream of both.")
            log.info("   %s is left out: it takes %s only", record["title"], record["takes"])
            continue
        present = _clips(context, record)
        for fold in folds:
            kept = kept_fold(fold, present, lambda *_, title=record["title"]: f"with sound and pictures for {title}.")
            members = (*kept.train, *kept.dev, *kept.test)
            job = PairJob(
                folder=context.fold_dir(encoder, fold.name),
                root=context.folder,
                record=record,
                fold=kept,
                facts={name: (clips[name].speaker, str(clips[name].labels.get(label))) for name in members},
                settings=config[section],
                train=config["train"],
                interface=config["interface"]["_target_"],
                standardize=config["features"]["standardize"],
                device=context.device(),
            )
            jobs.append(sealed(job))
    return jobs


def _clips(context: Context, record: Mapping[str, Any]) -> set[str]:
    """Clips with both streams; of an encoder of cuts alone, also those that are too short, which are said later."""
    if "stores" not in record:
        return {*record["cuts"]["clips"], *record["cuts"]["too_short"]}
    store = AvStore(context.folder, record)
    return set(store.stores[BOTH].ids) if BOTH in store.stores else set()


def results_of(context: Context) -> dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Encoder -> its record and the results of its folds."""
    folds = read_folds(context.data / FOLDS)
    found = {}
    for encoder, record in read_json(context.exp_dir / FEATURES).items():
        if record["takes"] == BOTH:
            found[encoder] = (record, [read_json(context.fold_dir(encoder, f.name) / RESULT) for f in folds])
    return found
