"""Stage 4 of recipes/av_sync: find by how much the sound of a clip is late, from frozen frames of both streams.

What is trained and judged on are the cuts of `mmssl.stages.av_cuts`: every frame is a real one of the clip, and neither
a stream alone nor a frame's place in its cut tells the offset; scores with the pictures of another clip are given as
the control for that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mmssl.errors import DataError
from mmssl.stages.av_cuts import Cut, CutFeatures, CutItems, fold_cuts
from mmssl.stages.av_jobs import PairJob, pair_jobs
from mmssl.stages.av_media import AUDIO, VIDEO
from mmssl.stages.context import Context
from mmssl.stages.fold_jobs import put_in_place, run_jobs
from mmssl.stages.probe import STANDARDIZED

if TYPE_CHECKING:
    from mmssl.training.sweep import SweepResult


def train(context: Context) -> str:
    """Train on cuts of training speakers' clips at every offset, and score cuts of test speakers' clips.

    Raises:
        ConfigError: the main encoder takes one stream only.
        DataError: a fold has an empty part, or all clips of one are too short.
    """
    done, kept = run_jobs(context, pair_jobs(context, "sync"), run_job)
    return f"{done} models trained, {kept} kept"


@dataclass(frozen=True)
class Offsets:
    """A head that was trained to find offsets.

    Attributes:
        features: cuts of the encoder.
        parts: of the fold: clips that are long enough.
        test: cuts to judge.
        result: what was trained.
    """

    features: CutFeatures
    parts: Mapping[str, Sequence[str]]
    test: Sequence[Cut]
    result: SweepResult


def fit_offsets(job: PairJob, settings: Mapping[str, Any]) -> Offsets:
    """Train on cuts at every offset, and select on development clips at three offsets each.

    Args:
        job: encoder and fold.
        settings: arguments of `mmssl.downstream.sync.Synchrony`, and per_clip.

    Raises:
        DataError: all clips of a part are too short.
    """
    from mmssl.training.sweep import sweep

    features = CutFeatures(job.root, job.record)
    parts = {name: _usable(job, features, name) for name in ("train", "dev", "test")}
    cuts = fold_cuts(job.fold, features.clips, job.facts, settings)
    fit = job.fit_settings()
    rates = fit.pop("learning_rates")
    build = _builder(job, settings, features, cuts["train"])
    train, dev = (CutItems(features, cuts[name]) for name in ("train", "dev"))
    return Offsets(features, parts, cuts["test"], sweep(build, train, dev, learning_rates=rates, **fit))


def run_job(job: PairJob) -> None:
    """Train one model on one fold and write the scores of its test cuts.

    Raises:
        DataError: all clips of a part are too short.
    """
    from mmssl.training.fit import predict

    found = fit_offsets(job, job.settings)
    task: Any = found.result.task
    scores, truth = predict(task, CutItems(found.features, found.test), batch_size=64, device=job.device)
    wanted = torch.tensor([kind == "offset" for kind, *_ in found.test])
    rows = [
        {"kind": kind, "id": pictures if kind == "dubbed" else sound, "offset": offset, "scores": line}
        for (kind, sound, pictures, offset), line in zip(found.test, scores.tolist(), strict=True)
    ]
    short = {name: sum(clip in found.features.too_short for clip in getattr(job.fold, name)) for name in found.parts}
    put_in_place(
        job,
        {
            "name": job.fold.name,
            "num_train": len(found.parts["train"]),
            "num_dev": len(found.parts["dev"]),
            "num_test": len(found.parts["test"]),
            "too_short": short,
            "frame_shift": found.features.frame_shift,
            "learning_rate": found.result.learning_rate,
            "metrics": task.metrics(scores[wanted], truth[wanted]),
            "rows": rows,
        },
    )


def _usable(job: PairJob, features: CutFeatures, part: str) -> list[str]:
    ids = getattr(job.fold, part)
    kept = [clip for clip in ids if clip in features.clips]
    if not kept:
        raise DataError(
            f"{job.name}: none of the {len(ids)} {part} clips can be cut; most likely they are shorter than "
            "3 max_shift + least_frames: lower them."
        )
    return kept


def _builder(
    job: PairJob, settings: Mapping[str, Any], features: CutFeatures, train: Sequence[Cut]
) -> Callable[[], nn.Module]:
    from mmssl.downstream.sync import Synchrony
    from mmssl.interfaces.aligned import AlignedStreams

    moments = features.moments(train) if job.standardize else {}
    own = {key: value for key, value in settings.items() if key != "per_clip"}

    def build() -> nn.Module:
        aligned = AlignedStreams(features.spec, STANDARDIZED if job.standardize else job.interface)
        for name in (AUDIO, VIDEO) if job.standardize else ():
            interface: Any = aligned.interfaces[name]
            interface.set_statistics(*moments[name])
        return Synchrony(aligned, **own)

    return build
