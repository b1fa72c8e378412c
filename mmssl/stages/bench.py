"""Run protocols on upstreams and corpora, keeping each result in a file of its own, so that a killed run goes on."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from mmssl.data.folds import Fold
from mmssl.errors import StageError
from mmssl.features.store import FeatureStore
from mmssl.probing.choice import HeadChoice
from mmssl.probing.compare import kendall_tau, mcnemar, permutation_test
from mmssl.probing.data import ProbeData, load_data
from mmssl.probing.evaluate import ProbeResult, probe, probe_head
from mmssl.probing.frames import FrameData, frame_spec, load_frames, require_frames
from mmssl.probing.protocols import check_protocol
from mmssl.stages.files import digest, read_json, write_json
from mmssl.types import Clip

SCHEMA = 1


@dataclass(frozen=True)
class Protocols:
    """What is run on every corpus and upstream.

    Attributes:
        names: protocols of `mmssl.probing.protocols`.
        heads: pairs of interface and head; where a pair is affine up to the mean over time it is trained on the mean
            of each layer, otherwise on frames.
        statistics: over time: "mean" or "mean_std".
        stream: of the upstreams.
        layers: numbers of the layers to use; None for all.
        scan: also run each layer alone.
        fractions: shares of the training clips.
        seeds: number of seeds of linear and mlp.
        settings: of linear and mlp: learning_rates, weight_decays, max_steps ...
    """

    names: Sequence[str] = ("linear", "knn", "logreg")
    heads: Sequence[HeadChoice] = ()
    statistics: str = "mean_std"
    stream: str = "audio"
    layers: Sequence[int] | None = None
    scan: bool = False
    fractions: Sequence[float] = (1.0,)
    seeds: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Corpus:
    """A corpus with labels and folds.

    Attributes:
        name: in tables and folders.
        clips: all of them.
        folds: by clip id.
        label: name of the label.
        values: whether it is a number.
        note: what a reader of scores should know.
    """

    name: str
    clips: Sequence[Clip]
    folds: Sequence[Fold]
    label: str
    values: bool = False
    note: str = ""


def run_protocols(
    corpus: Corpus,
    system: str,
    stores: Sequence[FeatureStore],
    protocols: Protocols,
    folder: Path | None,
    *,
    device: str = "cpu",
    say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """All protocols on one upstream (or on several, fused) and one corpus.

    Args:
        corpus: with labels and folds.
        system: name of the upstream.
        stores: of its features; several are fused.
        protocols: what to run.
        folder: results are kept in folder/<corpus>/<system>/<protocol>.json, and taken from there if they were made
            from the same features, labels, folds and settings; None keeps nothing.
        device: for linear and mlp.
        say: told what was done, one line at a time.

    Returns:
        Records, as `mmssl.probing.evaluate.ProbeResult.record` gives them, with "corpus" and "system".
    """
    for name in protocols.names:
        check_protocol(name, not corpus.values)
    loaded = _Loaded(corpus, stores, protocols)
    records = []
    depends = {
        "schema": SCHEMA,
        "features": [store.fingerprint.digest for store in stores],
        "labels": {clip.id: str(clip.labels.get(corpus.label)) for clip in corpus.clips},
        "folds": [[f.name, f.train, f.dev, f.test] for f in corpus.folds],
    }
    for job in _jobs(protocols, stores):
        described = {key: value for key, value in job.items() if key != "choice"}
        fingerprint = digest({**depends, **described, **_settings(protocols), "values": corpus.values})
        path = None if folder is None else folder / _slug(corpus.name) / _slug(system) / f"{_file_name(job)}.json"
        if path is not None and path.is_file():
            kept = read_json(path)
            if kept.get("fingerprint") == fingerprint:
                records.append(kept)
                say(f"{corpus.name} / {system} / {kept['name']}: was there")
                continue
        result = _run(job, loaded, protocols, device)
        record = {"fingerprint": fingerprint, "corpus": corpus.name, "system": system, **result.record()}
        if path is not None:
            write_json(path, record)
        records.append(record)
        metric = primary(record)
        say(f"{corpus.name} / {system} / {result.name}: {metric} {result.metrics[metric]['mean']:.4f}")
    return records


def primary(record: Mapping[str, Any]) -> str:
    """Name of the metric that ranks: the first one."""
    return next(iter(record["metrics"]))


def leaderboard(name: str, records: Sequence[Mapping[str, Any]], **more: Any) -> dict[str, Any]:
    """What a leaderboard shows, from the records of all corpora, upstreams and protocols.

    Returns:
        "rows": corpus, system, protocol (with layer and fraction), metric, its summary, other metrics; "tests": per
        corpus and protocol two systems, their difference, and the p values of McNemar's test (classes) and of the
        permutation test; "stability": per corpus Kendall's tau of the rankings by two protocols.

    Raises:
        StageError: there is no record.
    """
    if not records:
        raise StageError("There is no result to make a leaderboard of.")
    rows = []
    for record in records:
        metric = primary(record)
        rows.append(
            {
                "corpus": record["corpus"],
                "system": record["system"],
                "protocol": record["name"],
                "head": record["protocol"],
                "layer": record["layer"],
                "fraction": record["fraction"],
                "metric": metric,
                "metrics": record["metrics"],
                "folds": [
                    [f["name"], float(np.mean([s["metrics"][metric] for s in f["seeds"].values()]))]
                    for f in record["folds"]
                ],
            }
        )
    return {
        "schema": SCHEMA,
        "name": name,
        "rows": rows,
        "tests": _tests(records),
        "stability": _stability(rows),
        **more,
    }


def _settings(protocols: Protocols) -> dict[str, Any]:
    return {
        "statistics": protocols.statistics,
        "stream": protocols.stream,
        "layers": None if protocols.layers is None else list(protocols.layers),
        "seeds": protocols.seeds,
        "settings": dict(protocols.settings),
    }


def needs_frames(choice: HeadChoice, stores: Sequence[FeatureStore], stream: str) -> bool:
    """Whether a pair of interface and head cannot be trained on pooled features of these stores.

    Raises:
        StoreError: a store lacks the stream.
        RegistryError: there is no such head or interface.
        ConfigError: an argument does not fit.
    """
    return not choice.affine(frame_spec(stores, stream, None))


@dataclass
class _Loaded:
    """What the jobs of one upstream read, each kind once."""

    corpus: Corpus
    stores: Sequence[FeatureStore]
    protocols: Protocols
    pooled: dict[str, ProbeData] = field(default_factory=dict)

    def statistics(self, kind: str) -> ProbeData:
        """Pooled features."""
        if kind not in self.pooled:
            self.pooled[kind] = load_data(
                self.stores,
                self.corpus.clips,
                self.corpus.label,
                stream=self.protocols.stream,
                statistics=kind,
                layers=self.protocols.layers,
                values=self.corpus.values,
            )
        return self.pooled[kind]

    def frames(self, layers: Sequence[int] | None) -> FrameData:
        """Frames; nothing of them is in memory."""
        corpus = self.corpus
        return load_frames(
            self.stores, corpus.clips, corpus.label, stream=self.protocols.stream, layers=layers, values=corpus.values
        )


def _run(job: Mapping[str, Any], loaded: _Loaded, protocols: Protocols, device: str) -> ProbeResult:
    choice, layer = job["choice"], job["layer"]
    data: ProbeData | FrameData
    common: dict[str, Any] = {
        "fraction": job["fraction"],
        "seeds": range(protocols.seeds),
        "settings": dict(protocols.settings),
        "device": device,
    }
    if choice is None:
        data = loaded.statistics(protocols.statistics)
        place = None if layer is None else data.numbers.index(layer)
        return probe(data, data.parts(loaded.corpus.folds), job["protocol"], layer=place, **common)
    if job["frames"]:
        data = loaded.frames(protocols.layers if layer is None else [layer])
    else:
        data = loaded.statistics("mean")
        if layer is not None:
            choice = replace(choice, interface="layer", interface_arguments={"layer": data.numbers.index(layer)})
    result = probe_head(data, data.parts(loaded.corpus.folds), choice, layer=layer, **common)
    return replace(result, protocol=job["choice"].name)


def _jobs(protocols: Protocols, stores: Sequence[FeatureStore]) -> list[dict[str, Any]]:
    alone: list[int | None] = [None]
    if protocols.scan and len(stores) == 1:
        stream = stores[0].streams[protocols.stream]
        kept = stream["layers"] if protocols.layers is None else [k % stream["num_layers"] for k in protocols.layers]
        # a single layer alone is what the others show already
        alone += list(kept) if len(kept) > 1 else []
    jobs: list[dict[str, Any]] = [
        {"protocol": name, "layer": layer, "fraction": float(fraction), "choice": None}
        for name in protocols.names
        for layer in alone
        for fraction in protocols.fractions
    ]
    for choice in protocols.heads:
        frames = needs_frames(choice, stores, protocols.stream)
        if frames:
            require_frames(stores)
        for layer in alone:
            for fraction in protocols.fractions:
                job = {"protocol": choice.name, "layer": layer, "fraction": float(fraction), "choice": choice}
                jobs.append({**job, "frames": frames, "pair": asdict(choice)})
    return jobs


def _file_name(job: Mapping[str, Any]) -> str:
    layer = "" if job["layer"] is None else f"-layer{job['layer']}"
    share = "" if job["fraction"] == 1 else f"-{100 * job['fraction']:g}percent"
    return _slug(f"{job['protocol']}{layer}{share}")


def _slug(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", text).strip(".") or "unnamed"


def _tests(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Paired tests between every two systems, protocol by protocol, all layers and all labels."""
    found = []
    whole = [r for r in records if r["layer"] is None and r["fraction"] == 1]
    for one, other in combinations(whole, 2):
        if (one["corpus"], one["protocol"]) != (other["corpus"], other["protocol"]) or one["ids"] != other["ids"]:
            continue
        metric = primary(one)
        classes = metric == "uar"
        truth = np.asarray(one["truth"])
        first, second = (np.asarray(next(iter(r["predictions"].values()))) for r in (one, other))
        found.append(
            {
                "corpus": one["corpus"],
                "protocol": one["protocol"],
                "systems": [one["system"], other["system"]],
                "metric": metric,
                "difference": one["metrics"][metric]["pooled"] - other["metrics"][metric]["pooled"],
                "mcnemar": mcnemar(truth, first, second) if classes else None,
                "permutation": permutation_test(truth, first, second, classes=classes, num_samples=2000),
            }
        )
    return found


def _stability(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for corpus in dict.fromkeys(row["corpus"] for row in rows):
        scores: dict[str, dict[str, float]] = {}
        for row in rows:
            if row["corpus"] == corpus and row["layer"] is None and row["fraction"] == 1:
                scores.setdefault(row["protocol"], {})[row["system"]] = row["metrics"][row["metric"]]["mean"]
        for one, other in combinations(scores, 2):
            common = [s for s in scores[one] if s in scores[other]]
            if len(common) < 2:
                continue
            tau = kendall_tau([scores[one][s] for s in common], [scores[other][s] for s in common])
            found.append(
                {
                    "corpus": corpus,
                    "protocols": [one, other],
                    "systems": len(common),
                    "tau": None if tau != tau else tau,
                }
            )
    return found
