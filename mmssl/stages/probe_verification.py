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
from mmssl.errors import ConfigError, StageError, did_you_mean
from mmssl.features.store import FeatureStore
from mmssl.interfaces.standardized import Standardized
from mmssl.metrics.speaker_bootstrap import DEFAULT_METRICS, speaker_bootstrap
from mmssl.metrics.verification import verification_metrics
from mmssl.nn.tdnn import EcapaEncoder, XVectorEncoder
from mmssl.probing.frames import FrameData, FrameSplit, frame_spec
from mmssl.stages.context import Context, log
from mmssl.stages.files import read_json
from mmssl.stages.probe import ENCODERS
from mmssl.stages.probe_results import write_results
from mmssl.stages.utterance_extract import FEATURES
from mmssl.stages.utterance_prepare import FOLDS, MANIFEST
from mmssl.training.fit import predict
from mmssl.training.sweep import sweep
from mmssl.types import Clip

TRIALS = "trials.txt"
METHODS = ("cosine", "plda", *ENCODERS)
COLUMNS = (("eer", "EER %", 100.0), ("min_dcf_p01", "minDCF (P .01)", 1.0), ("min_dcf_p05", "minDCF (P .05)", 1.0))


@dataclass(frozen=True)
class _Corpus:
    """Clips by part, and trials: those of the development speakers, and the corpus's own."""

    parts: Mapping[str, list[str]]
    speakers: Mapping[str, str]
    dev_trials: Trials
    trials: Trials

    def judge(self, part: str, scores: np.ndarray) -> dict[str, float]:
        """Metrics of scores of the development ("dev") or the corpus's own trials ("test")."""
        trials = self.dev_trials if part == "dev" else self.trials
        return verification_metrics(scores, np.array(trials.is_target))


Scores = tuple[np.ndarray, dict[str, Any]]


def verify(context: Context) -> str:
    """Score the trials with every method and upstream; write exp/NAME/error_rates.json and RESULTS.md.

    Raises:
        ConfigError: a method is unknown.
        DataError: the trial list does not fit the clips.
    """
    settings = context.config["verification"]
    for name in settings["methods"]:
        if name not in METHODS:
            raise ConfigError(
                f"verification.methods: there is no {name!r}.{did_you_mean(name, METHODS)} Known: {', '.join(METHODS)}."
            )
    corpus, notes = _corpus(context)
    features = read_json(context.exp_dir / FEATURES)
    rows = []
    for system in context.systems:
        store = FeatureStore(context.folder / features[system.name]["folder"])
        for method in settings["methods"]:
            scores, chosen = _scores(method, store, corpus, settings, context)
            metrics = corpus.judge("test", scores)
            rows.append(
                {
                    "system": system.name,
                    "method": method,
                    "chosen": chosen,
                    "metrics": metrics,
                    "intervals": _intervals(scores, corpus, settings["bootstrap"]),
                    "scores": np.round(scores, 6).tolist(),
                }
            )
            log.info("   %s / %s: EER %.2f %%", system.name, method, 100 * metrics["eer"])
    published = list(settings["published"] or [])
    write_results(context, rows, COLUMNS, "speakers", notes, published)
    return f"{len(corpus.trials)} trials, {len(rows)} results, RESULTS.md"


def _corpus(context: Context) -> tuple[_Corpus, list[str]]:
    clips = {clip.id: clip for clip in read_manifest(context.data / MANIFEST)}
    (fold,) = read_folds(context.data / FOLDS)
    speakers = {clip.id: _speaker(clip) for clip in clips.values()}
    trials = read_trials(context.data / TRIALS)
    notes = check_trials(trials, clips, speakers)
    known = {speakers[clip] for clip in (*fold.train, *fold.dev)}
    shared = sorted({speakers[c] for c in (*trials.enrol, *trials.test)} & known)
    if shared:
        notes = (*notes, f"{len(shared)} speakers of the trials were trained on, among them {shared[0]}.")
    dev = make_trials({clip: speakers[clip] for clip in fold.dev}, per_speaker=50)
    asked = list(dict.fromkeys((*trials.enrol, *trials.test)))
    parts = {"train": list(fold.train), "dev": list(fold.dev), "test": asked}
    return _Corpus(parts, speakers, dev, trials), list(notes)


def _speaker(clip: Clip) -> str:
    if clip.speaker is None:
        raise StageError(f"The clip {clip.id!r} has no speaker: local/prepare.py must name one for each.")
    return clip.speaker


def _intervals(scores: np.ndarray, corpus: _Corpus, samples: int) -> dict[str, tuple[float, float]]:
    trials = corpus.trials
    enrol, test = ([corpus.speakers[clip] for clip in side] for side in (trials.enrol, trials.test))
    if len({*enrol, *test}) < 3 or not samples:
        return {}
    return speaker_bootstrap(scores, np.array(trials.is_target), enrol, test, DEFAULT_METRICS, num_samples=samples)


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
        dev = corpus.judge("dev", on_dev)["eer"]
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
    trained = sorted({corpus.speakers[clip] for clip in corpus.parts["train"]})
    # training speakers first: the loss counts them from 0
    numbers = {name: k for k, name in enumerate(dict.fromkeys([*trained, *sorted(set(corpus.speakers.values()))]))}
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
        loss = MarginSoftmax(encoder.output_size, len(trained), **dict(settings["loss"]))
        return SpeakerEmbedding(interface, encoder, loss)

    common = {"device": context.device(), **dict(settings["train"])}
    result = sweep(build, FrameSplit(data, train), FrameSplit(data, dev), **common)
    embeddings, _ = predict(
        result.task, FrameSplit(data, test), batch_size=common.get("batch_size", 32), device=common["device"]
    )
    chosen = {"learning_rate": result.learning_rate, "step": result.best.best_step}
    return cosine_scores(embeddings.numpy(), *corpus.trials.rows(corpus.parts["test"])), chosen
