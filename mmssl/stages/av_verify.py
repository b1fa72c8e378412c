"""Stages 4 and 5 of recipes/av_verification: are two clips of one speaker, by sound, by pictures and by both?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from torch import nn

from mmssl.data.folds import read_folds
from mmssl.data.manifest import read_manifest
from mmssl.data.trials import Trials, check_trials, read_trials
from mmssl.errors import DataError
from mmssl.report.speaker_figures import DetCurve, det_plot, line_mark
from mmssl.stages.av_features import AvClips
from mmssl.stages.av_page import Figure, Section
from mmssl.stages.av_rates_page import write_rates
from mmssl.stages.av_view_jobs import ViewJob, ViewResult, view_jobs, view_results
from mmssl.stages.context import Context
from mmssl.stages.fold_jobs import put_in_place, run_jobs, sealed
from mmssl.stages.trial_scores import (
    COLUMNS,
    TRIALS,
    det_curve,
    judged,
    speaker_numbers,
    speakers_of,
    trained_speakers,
)
from mmssl.stages.utterance_prepare import FOLDS, MANIFEST


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
    speakers = speakers_of(read_manifest(context.data / MANIFEST))
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
    from mmssl.training.fit import predict

    store, trials = job.store(), job.trials
    numbers, num_trained = speaker_numbers(job.speakers, job.fold.train)
    targets = {clip: numbers[name] for clip, name in job.speakers.items()}
    ids = tuple(dict.fromkeys((*trials.enrol, *trials.test)))
    train, dev, test = (AvClips(store, part, targets, job.view) for part in (job.fold.train, job.fold.dev, ids))
    task, record = job.fit(_builder(job, train, num_trained), train.batches(), dev.batches(), len(test))
    embeddings, _ = predict(task, test.batches(), batch_size=job.train["batch_size"], device=job.device)
    scores = cosine_scores(embeddings.float().numpy(), *trials.rows(test.ids))
    put_in_place(
        job,
        {
            **record,
            "num_trials": len(trials),
            **judged(scores, trials, job.speakers, job.settings["bootstrap"]),
            "scores": np.round(scores, 6).tolist(),
            "det": det_curve(scores, np.array(trials.is_target)),
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
    """Write error_rates.json, RESULTS.md and report.html."""
    settings = context.config["verification"]
    results = view_results(context)
    rows = [result.row("scores") for result in results]
    write_rates(
        context,
        rows,
        COLUMNS,
        "speakers",
        _notes(context, {(r.record["title"], r.view): r.found["num_trials"] for r in results}),
        list(settings["published"] or []),
        what="speaker verification by sound and pictures",
        how=_HOW,
        sections=[_det_section(results)],
    )
    best = min(rows, key=lambda row: row["metrics"]["eer"])
    return f"lowest EER {100 * best['metrics']['eer']:.2f} % ({best['system']}, {best['method']})"


_HOW = (
    "A linear map of the fused layers is trained on frozen features of the training speakers' clips, under additive "
    "margin softmax. Learning rate and step are those with the lowest EER of all pairs of development clips, whose "
    "speakers are neither trained on nor tested. A trial's score is the cosine of its two embeddings."
)
_AXES = (
    "Miss rate over false-alarm rate on normal-deviate axes; nearer to the lower left is better. Encoders that nobody "
    "trained are dashed; where both rates are equal runs the straight dashed line."
)


def _det_section(results: Sequence[ViewResult]) -> Section:
    """The main encoder's kinds of input in one figure, and for each kind of input all encoders in one."""
    drawn = [result for result in results if "det" in result.found]
    texts = [_AXES] if drawn else []
    if len(drawn) < len(results):
        texts.append(
            f"{len(results) - len(drawn)} models have no curve, since an older mmssl trained them. To get theirs, "
            "remove systems/ in the experiment's folder and run stages 4 and 5 again."
        )
    main = results[0].record
    groups = {main["title"]: [(result.method, result) for result in drawn if result.record is main]}
    for method in dict.fromkeys(result.method for result in drawn):
        group = [(result.record["title"], result) for result in drawn if result.method == method]
        if len(group) > 1:
            groups[f"All encoders: {method}"] = group
    return Section("DET curves", texts, figures=[_det_figure(*group) for group in groups.items() if group[1]])


def _det_figure(title: str, lines: Sequence[tuple[str, ViewResult]]) -> Figure:
    curves, keys = [], []
    for k, (name, result) in enumerate(lines):
        points = list(zip(*result.found["det"], strict=True))
        curve = DetCurve(name, points, k, result.record["role"] in ("untrained", "plain"))
        words = f"{name}: EER {100 * result.found['metrics']['eer']:.3g} %"
        curves.append(curve)
        keys.append((line_mark(curve), words))
    legend = Markup("").join(Markup("<li>{} {}</li>").format(*key) for key in keys)
    caption = Markup('{}<ul class="keys">{}</ul>').format(title, legend)
    return Figure(det_plot(curves, f"DET curves of {title}. {'; '.join(words for _, words in keys)}"), caption)


def _notes(context: Context, counts: Mapping[tuple[str, str], int]) -> Sequence[str]:
    """What a reader of the scores should know."""
    clips = speakers_of(read_manifest(context.data / MANIFEST))
    trials = read_trials(context.data / TRIALS)
    there = _among(trials, set(clips))
    notes = list(check_trials(there, clips, clips))
    notes += [
        f"{title}, {view}: {count} of {len(trials)} trials; the others are of clips that were left out."
        for (title, view), count in counts.items()
        if count < len(trials)
    ]
    for fold in read_folds(context.data / FOLDS):
        notes += trained_speakers(there, clips, fold)
    return notes
