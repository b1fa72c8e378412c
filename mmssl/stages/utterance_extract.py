"""Stage 2 of a recipe on utterances: every layer of every upstream, once per clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmssl.data.manifest import read_manifest
from mmssl.features.extract import ExtractOptions
from mmssl.features.extract import extract as extract_features
from mmssl.features.fingerprint import make_fingerprint
from mmssl.stages.context import Context, System, log
from mmssl.stages.files import write_json
from mmssl.stages.probe import stream_of, view
from mmssl.stages.utterance_prepare import MANIFEST
from mmssl.types import Clip
from mmssl.upstreams.base import Upstream, load_upstream

FEATURES = "features.json"
POOLED = ("mean", "std")


def extract(context: Context) -> str:
    """Fill feats/<system>-<fingerprint>/ for every system, and record in exp/NAME/features.json which is whose.

    What a store holds already is kept: a killed run goes on, and other experiments share it. Frames are stored only
    where the probe needs them.

    Raises:
        MediaError: a clip cannot be used and data.on_error is "raise".
        StoreError: a store is damaged or in use.
    """
    clips = read_manifest(context.data / MANIFEST)
    records = {system.name: _extract_one(context, system, clips) for system in context.systems}
    write_json(context.exp_dir / FEATURES, records)
    skipped = sum(len(record["skipped"]) for record in records.values())
    left_out = f"; {skipped} clips skipped" if skipped else ""
    return f"{len(clips)} clips x {len(records)} systems{left_out}"


def _extract_one(context: Context, system: System, clips: list[Clip]) -> dict[str, Any]:
    config = context.config
    seed, device = config["features"]["seed"], context.device()
    upstream = load_upstream(system.target, seed=seed, device=device, **system.kwargs)
    stream = config["features"]["stream"]
    spec = stream_of(upstream.spec.streams, stream, system.name)
    statistics, pooled_only = view(config, spec.hidden_sizes, spec.hop_lengths)
    fingerprint = make_fingerprint(
        upstream, kwargs=dict(system.kwargs), frames=not pooled_only, pooled=list(POOLED), layers=None, dtype="float32"
    )
    folder = context.feats / f"{system.name}-{fingerprint.digest[:12]}"
    # an upstream without weights is done before another process has started
    jobs = context.nj if device == "cpu" and _has_weights(upstream) else 1
    summary = extract_features(
        system.target,
        clips,
        folder,
        upstream_kwargs=dict(system.kwargs),
        seed=seed,
        frames=not pooled_only,
        pooled=POOLED,
        on_error=config["data"]["on_error"],
        options=ExtractOptions(device=device, jobs=jobs, num_workers=1 if jobs > 1 else 2),
    )
    log.info("   %s: %d layers, %s", system.name, spec.num_layers, _counts(summary))
    return {
        "folder": _relative(folder, context.folder),
        "fingerprint": summary.fingerprint,
        "target": system.target,
        "statistics": statistics,
        "pooled": pooled_only,
        "sample_rate": upstream.spec.sample_rate,
        "frame_shift": upstream.spec.frame_shift(stream),
        "hidden_sizes": list(spec.hidden_sizes),
        "hop_lengths": list(spec.hop_lengths),
        "skipped": [{"id": s.id, "path": s.path, "reason": s.reason} for s in summary.skipped],
    }


def _counts(summary: Any) -> str:
    parts = [f"{summary.done} clips computed" if summary.done else "nothing to compute"]
    if summary.reused:
        parts.append(f"{summary.reused} were there")
    if summary.skipped:
        parts.append(f"{len(summary.skipped)} skipped")
    return ", ".join(parts)


def _has_weights(upstream: Upstream) -> bool:
    return any(True for _ in upstream.parameters())


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
