"""Stages 4 and 5 of recipes/av_recognition: characters of a clip by CTC, from sound, from pictures and from both."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

from mmssl.data.folds import read_folds
from mmssl.data.manifest import read_manifest
from mmssl.errors import ConfigError, DataError
from mmssl.metrics.sequences import edit_distance, error_rate, error_rate_interval
from mmssl.stages.av_decoded import BOUNDARY, decoded_section
from mmssl.stages.av_features import AvStore
from mmssl.stages.av_page import Section
from mmssl.stages.av_rates_page import write_rates
from mmssl.stages.av_view_jobs import ViewJob, ViewResult, view_jobs, view_results
from mmssl.stages.context import Context
from mmssl.stages.fold_jobs import PREDICTIONS, put_in_place, run_jobs, sealed
from mmssl.stages.utterance_prepare import FOLDS, MANIFEST
from mmssl.types import Layers, UpstreamSpec

UNSEEN = "<unseen>"
COLUMNS = (("wer", "WER %", 100.0), ("cer", "CER %", 100.0))


@dataclass(frozen=True, kw_only=True)
class RecognitionJob(ViewJob):
    """One recogniser to train.

    Attributes:
        texts: id -> symbols, with spaces between.
        settings: of the section `recognition`.
    """

    texts: Mapping[str, str]
    settings: Mapping[str, Any]


class ClipFrames(Dataset[tuple[dict[str, Layers], Tensor]]):
    """Items are (streams of one clip, symbols), read from the store when they are asked for.

    Args:
        store: of an encoder, with frames.
        ids: of the clips.
        targets: id -> symbols.
        view: what of a clip is given.
    """

    def __init__(self, store: AvStore, ids: Sequence[str], targets: Mapping[str, Tensor], view: str) -> None:
        self.store, self.ids, self.targets, self.view = store, list(ids), targets, view

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[dict[str, Layers], Tensor]:
        clip = self.ids[index]
        return self.store.read(clip, self.view), self.targets[clip]


def train(context: Context) -> str:
    """Train a recogniser for every encoder and view, and decode the test clips.

    Raises:
        ConfigError: features are not frames.
        DataError: a clip has no symbol, or a part is empty.
    """
    config = context.config
    if config["features"]["statistics"] != "frames":
        raise ConfigError(f"Recognition needs features.statistics=frames, got {config['features']['statistics']}.")
    texts = {clip.id: str(clip.labels[config["label"]]) for clip in read_manifest(context.data / MANIFEST)}
    empty = [clip for clip, text in texts.items() if not text.split()]
    if empty:
        raise DataError(f"{len(empty)} clips have no symbol in {config['label']!r}, among them {empty[0]!r}.")
    jobs = []
    for fields in view_jobs(context):
        fold = fields["fold"]
        own = {clip: texts[clip] for clip in (*fold.train, *fold.dev, *fold.test)}
        jobs.append(sealed(RecognitionJob(**fields, texts=own, settings=config["recognition"])))
    done, kept = run_jobs(context, jobs, run_job)
    return f"{done} models trained, {kept} kept"


def run_job(job: RecognitionJob) -> None:
    """Train one recogniser, selected by the error rate of the development clips, and decode the test clips once."""
    from mmssl.downstream.ctc import padded_symbols
    from mmssl.training.batches import PassOnce

    store = job.store()
    symbols = sorted({symbol for clip in job.fold.train for symbol in job.texts[clip].split()})
    # what was never trained on is one more symbol, which nothing can get right
    known = {symbol: k for k, symbol in enumerate([*symbols, UNSEEN])}
    members = (*job.fold.train, *job.fold.dev, *job.fold.test)
    rows = padded_symbols([[known.get(s, known[UNSEEN]) for s in job.texts[clip].split()] for clip in members])
    targets = dict(zip(members, rows, strict=True))
    train, dev, test = (
        ClipFrames(store, ids, targets, job.view) for ids in (job.fold.train, job.fold.dev, job.fold.test)
    )
    chosen, record = job.fit(_builder(job, store, len(known)), train, dev, len(test))
    task: Any = chosen.to(job.device)
    found: list[Sequence[int]] = []
    for layers, _ in PassOnce(test, job.train["batch_size"]):
        found += task.decode(layers.to(job.device))
    names = [*symbols, UNSEEN]
    decoded = [
        {"id": clip, "reference": job.texts[clip], "hypothesis": " ".join(names[s] for s in row)}
        for clip, row in zip(test.ids, found, strict=True)
    ]
    metrics, intervals = scores_of(decoded)
    weights = task.interface.layer_weights()
    put_in_place(
        job,
        {
            **record,
            "frame_shift": task.interface.frame_shift,
            "metrics": metrics,
            "intervals": intervals,
            "layer_weights": {name: values.tolist() for name, values in weights.items()},
        },
        decoded,
    )


def scores_of(rows: Sequence[Mapping[str, str]]) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Word and character error rates of decoded clips, and their intervals over clips.

    Characters are the symbols, boundaries of words among them; words are what stands between boundaries.

    Args:
        rows: with "reference" and "hypothesis", symbols with spaces between.
    """
    metrics, intervals = {}, {}
    for name, split in (("wer", words_of), ("cer", str.split)):
        pairs = [(split(row["reference"]), split(row["hypothesis"])) for row in rows]
        numbers = {unit: k for k, unit in enumerate(sorted({u for pair in pairs for side in pair for u in side}))}
        edits = [edit_distance([numbers[u] for u in a], [numbers[u] for u in b]) for a, b in pairs]
        sizes = [len(reference) for reference, _ in pairs]
        metrics[name] = error_rate(edits, sizes)
        intervals[name] = error_rate_interval(edits, sizes)
    return metrics, intervals


def words_of(text: str) -> list[str]:
    """Words of symbols with spaces between: "A B | C" is AB and C."""
    return ["".join(word.split()) for word in text.split(BOUNDARY) if word.split()]


def _builder(job: RecognitionJob, store: AvStore, num_symbols: int) -> Any:
    from mmssl.downstream.ctc import SequenceRecognition
    from mmssl.interfaces.joined_frames import JoinedFrames

    spec = UpstreamSpec(
        ("waveforms", "video"), store.specs(job.view), job.record["sample_rate"], job.record["video_fps"]
    )
    moments = store.moments(job.fold.train, job.view) if job.standardize else {}
    settings = {key: job.settings[key] for key in ("network", "projection_size", "hidden_size")}

    def build() -> nn.Module:
        joined: Any = JoinedFrames(spec, job.interface, job.settings["rate"])
        for name, kept in joined.kept.items() if job.standardize else ():
            centres, spreads = moments[name]
            interface: Any = joined.interfaces[name]
            interface.set_statistics([centres[k] for k in kept], [spreads[k] for k in kept])
        return SequenceRecognition(joined, num_symbols, **settings)

    return build


def report(context: Context) -> str:
    """Write error_rates.json, RESULTS.md and report.html."""
    results = view_results(context)
    rows = [result.row() for result in results]
    notes = [note for fold in read_folds(context.data / FOLDS) for note in fold.notes]
    for result in results:
        absent = len(result.fold.test) - result.found["num_test"]
        if absent:
            notes.append(f"{result.record['title']}, {result.view}: {absent} test clips could not be used.")
    published = list(context.config["recognition"]["published"] or [])
    write_rates(
        context,
        rows,
        COLUMNS,
        "clips",
        notes,
        published,
        what="recognition by sound and pictures",
        how=_HOW,
        sections=_decoded(results),
    )
    best = min(rows, key=lambda row: row["metrics"]["wer"])
    return f"lowest WER {100 * best['metrics']['wer']:.2f} % ({best['system']}, {best['method']})"


_HOW = (
    "CTC on frozen frames: a weighted sum of each stream's layers, all streams on one clock, and a network that is "
    "trained on the training clips. Learning rate and step are those with the lowest error rate of symbols on the "
    "development clips. Test clips are decoded once, by the best symbol of each frame, without a language model."
)


def _decoded(results: Sequence[ViewResult]) -> list[Section]:
    """What the main encoder's models made of the test clips, a section for each view."""
    rows: dict[str, list[dict[str, str]]] = {}
    for result in results:
        if result.record is results[0].record:
            with (result.folder / PREDICTIONS).open(encoding="utf-8") as file:
                rows.setdefault(result.view, []).extend(json.loads(line) for line in file)
    return [decoded_section(f"Decoded clips: {view}", found) for view, found in rows.items()]
