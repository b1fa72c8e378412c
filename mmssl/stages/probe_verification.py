"""Stage 3 of a speaker verification recipe: embeddings of every upstream, scored on the corpus's trial list."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from mmssl.data.folds import read_folds
from mmssl.data.manifest import read_manifest
from mmssl.data.trials import Trials, check_trials, make_trials, read_trials
from mmssl.downstream.frame_heads import ProjectedEncoder
from mmssl.downstream.margin import MarginSoftmax
from mmssl.downstream.plda import Plda
from mmssl.downstream.scoring import cosine_scores
from mmssl.downstream.speaker import SpeakerEmbedding
from mmssl.features.store import FeatureStore
from mmssl.interfaces.standardized import Standardized
from mmssl.metrics.verification import eer
from mmssl.nn.tdnn import EcapaEncoder, XVectorEncoder
from mmssl.probing.frames import FrameData, FrameSplit, frame_spec
from mmssl.stages.context import Context, log
from mmssl.stages.files import read_json
from mmssl.stages.probe import ENCODERS
from mmssl.stages.probe_results import write_results
from mmssl.stages.trial_scores import (
    COLUMNS,
    TRIALS,
    check_methods,
    judged,
    speaker_numbers,
    speakers_of,
    trained_speakers,
)
from mmssl.stages.utterance_extract import FEATURES
from mmssl.stages.utterance_prepare import FOLDS, MANIFEST
from mmssl.training.fit import predict
from mmssl.training.sweep import sweep

METHODS = ("cosine", "plda", *ENCODERS)


@dataclass(frozen=True)
class _Corpus:
    """Clips by part, and trials: those of the development speakers, and the corpus's own."""

    parts: Mapping[str, list[str]]
    speakers: Mapping[str, str]
    dev_trials: Trials
    trials: Trials


Scores = tuple[np.ndarray, dict[str, Any]]


def verify(context: Context) -> str:
    """Score the trials with every method and upstream; write exp/NAME/error_rates.json and RESULTS.md.

    Raises:
        ConfigError: a method is unknown.
        DataError: the trial list does not fit the clips.
    """
    settings = context.config["verification"]
    check_methods("verification.methods", settings["methods"], METHODS)
    corpus, notes = _corpus(context)
    features = read_json(context.exp_dir / FEATURES)
    rows = []
    for system in context.systems:
        store = FeatureStore(context.folder / features[system.name]["folder"])
        for method in settings["methods"]:
            scores, chosen = _scores(method, store, corpus, settings, context)
            row = {"system": system.name, "method": method, "chosen": chosen}
            row |= judged(scores, corpus.trials, corpus.speakers, settings["bootstrap"])
            rows.append(row | {"scores": np.round(scores, 6).tolist()})
            log.info("   %s / %s: EER %.2f %%", system.name, method, 100 * row["metrics"]["eer"])
    published = list(settings["published"] or [])
    write_results(context, rows, COLUMNS, "speakers", notes, published)
    return f"{len(corpus.trials)} trials, {len(rows)} results, RESULTS.md"


def _corpus(context: Context) -> tuple[_Corpus, list[str]]:
    (fold,) = read_folds(context.data / FOLDS)
    speakers = speakers_of(read_manifest(context.data / MANIFEST))
    trials = read_trials(context.data / TRIALS)
    notes = [*check_trials(trials, speakers, speakers), *trained_speakers(trials, speakers, fold)]
    dev = make_trials({clip: speakers[clip] for clip in fold.dev}, per_speaker=50)
    asked = list(dict.fromkeys((*trials.enrol, *trials.test)))
    parts = {"train": list(fold.train), "dev": list(fold.dev), "test": asked}
    return _Corpus(parts, speakers, dev, trials), notes


def _scores(method: str, store: FeatureStore, corpus: _Corpus, settings: Mapping[str, Any], context: Context) -> Scores:
    if method in ENCODERS:
        return _trained(method, store, corpus, settings, context)
    best: tuple[Scores, float] | None = None
    stream = context.config["features"]["stream"]
    for place, layer in enumerate(store.streams[stream]["layers"]):
        rows = {part: _means(store, clips, stream, place) for part, clips in corpus.parts.items()}
        centre, scale = rows["train"].mean(0), np.maximum(rows["train"].std(0), 1e-6)
        rows = {part: (values - centre) / scale for part, values in rows.items()}
        score = _scorer(method, rows["train"], [corpus.speakers[clip] for clip in corpus.parts["train"]])
        on_dev = score(rows["dev"], *corpus.dev_trials.rows(corpus.parts["dev"]))
        dev = eer(on_dev, np.array(corpus.dev_trials.is_target))
        if best is None or dev < best[1]:
            on_test = score(rows["test"], *corpus.trials.rows(corpus.parts["test"]))
            best = ((on_test, {"layer": layer, "dev_eer": round(dev, 4)}), dev)
    assert best is not None  # a stream has layers
    return best[0]


def _scorer(method: str, train: np.ndarray, speakers: Sequence[str]) -> Callable[..., np.ndarray]:
    return cosine_scores if method == "cosine" else Plda().fit(train, speakers).scores


def _means(store: FeatureStore, clips: Sequence[str], stream: str, place: int) -> np.ndarray:
    layer = store.streams[stream]["layers"][place]
    return np.stack([store.pooled(c, stream, "mean", [layer]).hidden_states[0][0].numpy() for c in clips])


def _trained(
    method: str, store: FeatureStore, corpus: _Corpus, settings: Mapping[str, Any], context: Context
) -> Scores:
    """Embeddings of a network trained on the training speakers; the development speakers select."""
    ids = tuple(dict.fromkeys((*corpus.parts["train"], *corpus.parts["dev"], *corpus.parts["test"])))
    numbers, num_trained = speaker_numbers(corpus.speakers, corpus.parts["train"])
    stream = context.config["features"]["stream"]
    targets = torch.tensor([numbers[corpus.speakers[clip]] for clip in ids])
    layers = tuple(store.streams[stream]["layers"])
    data = FrameData(ids, (store,), stream, None, targets, tuple(numbers), layers)
    place = {clip: k for k, clip in enumerate(ids)}
    train, dev, test = (torch.tensor([place[c] for c in corpus.parts[p]]) for p in ("train", "dev", "test"))
    moments = data.moments(train)
    spec = frame_spec((store,), stream, None)
    size = {key: value for key, value in settings["encoder"].items() if value is not None}
    width = int(size.setdefault("channels", 512))

    def build() -> nn.Module:
        interface = Standardized(spec.hidden_sizes, spec.hop_lengths, context.config["interface"]["_target_"])
        interface.set_statistics(*moments)
        made: Any = (XVectorEncoder if method == "xvector" else EcapaEncoder)(width, **size)
        encoder = ProjectedEncoder(interface.output_size, made, width)
        loss = MarginSoftmax(encoder.output_size, num_trained, **dict(settings["loss"]))
        return SpeakerEmbedding(interface, encoder, loss)

    common = {"device": context.device(), **dict(settings["train"])}
    result = sweep(build, FrameSplit(data, train), FrameSplit(data, dev), **common)
    embeddings, _ = predict(
        result.task, FrameSplit(data, test), batch_size=common.get("batch_size", 32), device=common["device"]
    )
    chosen = {"learning_rate": result.learning_rate, "step": result.best.best_step}
    return cosine_scores(embeddings.numpy(), *corpus.trials.rows(corpus.parts["test"])), chosen
