"""Stages 4 and 5 of recipes/av_verification: are two clips of one speaker, by sound, by pictures and by both?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from mmssl.data.folds import read_folds
from mmssl.data.manifest import read_manifest
from mmssl.data.trials import Trials, check_trials, read_trials
from mmssl.errors import DataError
from mmssl.stages.av_extract import FEATURES
from mmssl.stages.av_features import AvClips
from mmssl.stages.av_view_jobs import ViewJob, system_name, view_jobs, views_of
from mmssl.stages.context import Context
from mmssl.stages.files import read_json
from mmssl.stages.fold_jobs import RESULT, put_in_place, run_jobs, sealed
from mmssl.stages.probe_results import write_results
from mmssl.stages.utterance_prepare import FOLDS, MANIFEST

TRIALS = "trials.txt"
COLUMNS = (("eer", "EER %", 100.0), ("min_dcf_p01", "minDCF (P .01)", 1.0), ("min_dcf_p05", "minDCF (P .05)", 1.0))


@dataclass(frozen=True, kw_only=True)
class VerificationJob(ViewJob):
    """One embedding to train and to judge by the trials.

    Attributes:
        speakers: id -> speaker.
        trials: whose clips all have what the view gives.
        settings: of the section `verification`.
    """

    speakers: Mapping[str, str]
    trials: Trials
    settings: Mapping[str, Any]


def train(context: Context) -> str:
    """Train an embedding for every encoder and view on the training speakers, and score the trials.

    Raises:
        DataError: the trial list does not fit the clips, a clip has no speaker, or a part is empty.
    """
    clips = read_manifest(context.data / MANIFEST)
    without = [clip.id for clip in clips if clip.speaker is None]
    if without:
        raise DataError(f"{len(without)} clips have no speaker, among them {without[0]!r}: mend local/prepare.py.")
    speakers = {clip.id: str(clip.speaker) for clip in clips}
    trials = read_trials(context.data / TRIALS)
    jobs = []
    for fields in view_jobs(context):
        fold = fields["fold"]
        tested = set(fold.test)
        kept = _among(trials, tested)
        check_trials(kept, tested, speakers)
        own = {clip: speakers[clip] for clip in (*fold.train, *fold.dev, *fold.test)}
        job = VerificationJob(**fields, speakers=own, trials=kept, settings=context.config["verification"])
        jobs.append(sealed(job))
    done, finished = run_jobs(context, jobs, run_job)
    return f"{done} models trained, {finished} kept"


def _among(trials: Trials, clips: set[str]) -> Trials:
    """Trials of clips that are there."""
    rows = zip(trials.enrol, trials.test, trials.is_target, strict=True)
    kept = [row for row in rows if row[0] in clips and row[1] in clips]
    if not kept:
        raise DataError(f"None of the {len(trials)} trials compares two test clips that are there.")
    enrol, test, target = zip(*kept, strict=True)
    return Trials(enrol, test, target)


def run_job(job: VerificationJob) -> None:
    """Train one embedding, selected by trials among development speakers, and write the scores of the test trials."""
    from mmssl.downstream.scoring import cosine_scores
    from mmssl.metrics.speaker_bootstrap import DEFAULT_METRICS, speaker_bootstrap
    from mmssl.metrics.verification import verification_metrics
    from mmssl.training.fit import predict
    from mmssl.training.sweep import sweep

    store, trials = job.store(), job.trials
    # training speakers first: the loss counts them from 0
    trained = sorted({job.speakers[clip] for clip in job.fold.train})
    numbers = {name: k for k, name in enumerate(dict.fromkeys([*trained, *sorted(set(job.speakers.values()))]))}
    targets = {clip: numbers[name] for clip, name in job.speakers.items()}
    ids = tuple(dict.fromkeys((*trials.enrol, *trials.test)))
    train, dev, test = (AvClips(store, part, targets, job.view) for part in (job.fold.train, job.fold.dev, ids))
    settings = {k: v for k, v in job.train.items() if k not in ("class_weights", "refit", "engine", "monitor")}
    rates = settings.pop("learning_rates")
    build = _builder(job, train, len(trained))
    result = sweep(build, train.batches(), dev.batches(), learning_rates=rates, device=job.device, **settings)
    embeddings, _ = predict(result.task, test.batches(), batch_size=settings["batch_size"], device=job.device)
    scores = cosine_scores(embeddings.float().numpy(), *trials.rows(test.ids))
    is_target = np.array(trials.is_target)
    enrol, tested = ([job.speakers[clip] for clip in side] for side in (trials.enrol, trials.test))
    samples = job.settings["bootstrap"]
    spans: Mapping[str, Any] = {}
    if samples and len({*enrol, *tested}) > 2:
        spans = speaker_bootstrap(scores, is_target, enrol, tested, DEFAULT_METRICS, num_samples=samples)
    put_in_place(
        job,
        {
            "name": job.fold.name,
            "num_train": len(train),
            "num_dev": len(dev),
            "num_test": len(test),
            "num_trials": len(trials),
            "learning_rate": result.learning_rate,
            "step": result.best.best_step,
            "metrics": verification_metrics(scores, is_target),
            "intervals": dict(spans),
            "scores": np.round(scores, 6).tolist(),
        },
    )


def _builder(job: VerificationJob, train: AvClips, speakers: int) -> Any:
    from mmssl.downstream.margin import MarginSoftmax
    from mmssl.downstream.projection import MeanProjection
    from mmssl.downstream.speaker import SpeakerEmbedding

    fused = job.fusion_builder(train.store, train.ids)

    def build() -> nn.Module:
        fusion = fused()
        encoder = MeanProjection(fusion.output_size, job.settings["embedding_size"])
        return SpeakerEmbedding(fusion, encoder, MarginSoftmax(encoder.output_size, speakers, **job.settings["loss"]))

    return build


def report(context: Context) -> str:
    """Write error_rates.json and RESULTS.md."""
    settings = context.config["verification"]
    folds = read_folds(context.data / FOLDS)
    rows, counts = [], {}
    for encoder, record in read_json(context.exp_dir / FEATURES).items():
        for view in views_of(context.config, record):
            for fold in folds:
                found = read_json(context.fold_dir(system_name(encoder, view), fold.name) / RESULT)
                chosen = {key: found[key] for key in ("learning_rate", "step")}
                row = {"system": record["title"], "method": _method(view, fold.name, len(folds)), "chosen": chosen}
                rows.append(row | {key: found[key] for key in ("metrics", "intervals", "scores")})
                counts[record["title"], view] = found["num_trials"]
    notes = _notes(context, counts)
    write_results(context, rows, COLUMNS, "speakers", notes, list(settings["published"] or []))
    best = min(rows, key=lambda row: row["metrics"]["eer"])
    return f"lowest EER {100 * best['metrics']['eer']:.2f} % ({best['system']}, {best['method']})"


def _method(view: str, fold: str, folds: int) -> str:
    return view if folds == 1 else f"{view}, {fold}"


def _notes(context: Context, counts: Mapping[tuple[str, str], int]) -> Sequence[str]:
    """What a reader of the scores should know."""
    clips = {clip.id: str(clip.speaker) for clip in read_manifest(context.data / MANIFEST)}
    trials = read_trials(context.data / TRIALS)
    there = _among(trials, set(clips))
    notes = list(check_trials(there, clips, clips))
    notes += [
        f"{title}, {view}: {count} of {len(trials)} trials; the others are of clips that were left out."
        for (title, view), count in counts.items()
        if count < len(trials)
    ]
    for fold in read_folds(context.data / FOLDS):
        known = {clips[clip] for clip in (*fold.train, *fold.dev)}
        shared = sorted({clips[clip] for clip in (*there.enrol, *there.test)} & known)
        if shared:
            notes.append(f"{len(shared)} speakers of the trials were trained on, among them {shared[0]}.")
    return notes
