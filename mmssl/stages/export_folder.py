"""A trained system as a folder that stands alone: `model.yaml`, one `foldNNN.safetensors` per fold, a README.md, and
where asked for the upstream's weights. It loads with `mmssl.load_predictor` and needs no file of the recipe."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmssl import __version__
from mmssl.errors import CheckpointError
from mmssl.report import summary
from mmssl.report.markdown import escape, table
from mmssl.stages.exporting import DESCRIPTION, SCHEMA, dump_yaml, pack_weights, write_atomic
from mmssl.stages.predictor import System, load_system, read_results, upstream_of

_WEIGHT_ARGUMENTS = ("path", "checkpoint")
_UPSTREAM_FOLDER = "upstream"


def export_system(
    folder: str | Path,
    out: str | Path,
    system: str | None = None,
    *,
    with_upstream: bool = False,
    trust_targets: bool = False,
) -> System:
    """Write one system of an experiment as a folder that stands alone; it appears whole or not at all.

    Args:
        folder: an experiment (exp/NAME) or another folder that `load_system` reads.
        out: the folder to write; it must be new or empty.
        system: which system; None as in `load_predictor`.
        with_upstream: copy the upstream's local weights into the folder. An upstream without weights of its own (drawn
            from a seed, or computed) is described by target, arguments and seed either way.
        trust_targets: also build parts that are neither mmssl's nor an installed plug-in's.

    Returns:
        The system that was written.

    Raises:
        CheckpointError: the experiment cannot be read, `out` holds something, or weights to copy are not there.
    """
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{str(target)!r} exists and is not an empty folder: name a new one, or remove it first.")
    found = load_system(folder, system, trust_targets=trust_targets)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        description = _write_models(found, scratch)
        # a folder that was exported with its upstream keeps it
        if with_upstream or description.get("upstream_files"):
            description = _copy_upstream(found, description, scratch)
        results = read_results(found.folder / "results.json") or {}
        measured = next((s for s in results.get("systems") or [] if s.get("name") == found.name), None)
        card = render_card(found, description, results, measured)
        write_atomic(scratch / "README.md", card.encode("utf-8"))
        write_atomic(scratch / DESCRIPTION, dump_yaml(description))
        scratch.chmod(0o755)
        scratch.replace(target)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return found


def _write_models(system: System, scratch: Path) -> dict[str, Any]:
    folds = []
    for k, (name, model) in enumerate(system.models.items()):
        weights = pack_weights(model)
        write_atomic(scratch / f"fold{k:03d}.safetensors", weights)
        folds.append({"name": name, "weights_sha256": hashlib.sha256(weights).hexdigest()})
    kept = {k: v for k, v in system.description.items() if k not in ("schema", "folds", "system", "weights_sha256")}
    return {"schema": SCHEMA, "mmssl_version": __version__, "system": system.name, **kept, "folds": folds}


def _copy_upstream(system: System, description: dict[str, Any], scratch: Path) -> dict[str, Any]:
    _, kwargs = upstream_of(system)
    files = {}
    for key in _WEIGHT_ARGUMENTS:
        if not isinstance(kwargs.get(key), str):
            continue
        source = Path(kwargs[key])
        if not source.exists():
            raise CheckpointError(
                f"The upstream's weights {str(source)!r} are not there to copy (seen from {Path.cwd()}). Export from "
                f"the folder where the recipe was run, or without --with-upstream."
            )
        copy = scratch / _UPSTREAM_FOLDER / key
        if source.is_dir():
            # code that lies beside weights is never run from here, so it is not handed on
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("*.py", "__pycache__", ".git", ".cache"))
        else:
            copy.mkdir(parents=True)
            copy = Path(shutil.copy2(source, copy / source.name))
        files[key] = copy.relative_to(scratch).as_posix()
    if not files:
        return description
    upstream = {k: v for k, v in description["upstream"].items() if k not in files}
    return {**description, "upstream": upstream, "upstream_files": files}


def render_card(
    system: System,
    description: Mapping[str, Any],
    results: Mapping[str, Any],
    measured: Mapping[str, Any] | None,
) -> str:
    """README.md of an exported folder: what it does, how good it is, how that was measured, how to use it.

    Args:
        system: what was exported.
        description: the fields of its `model.yaml`.
        results: the experiment's results.json; empty where there is none.
        measured: the system's entry of it, or None.
    """
    label, models = description["label"], len(system.models)
    labels = label if isinstance(label, str) else ", ".join(map(str, label))
    lines = [f"# {escape(results.get('corpus') or 'mmssl')}: {escape(labels)} from speech ({escape(system.name)})", ""]
    if description["task"] == "classification":
        lines += [f"Labels: {', '.join(escape(c) for c in description['classes'])}.", ""]
    else:
        lines += [f"Values: {escape(labels)}.", ""]
    averaged = "What it says is the mean over the models of all folds, each trained without its fold's test clips."
    lines += [f"{summary.counted(models, 'model')}, trained with mmssl {escape(description.get('mmssl_version', ''))}."]
    lines += [averaged] if models > 1 else []
    lines += ["", "## Use", "", "```python", "import mmssl", "", 'predictor = mmssl.load_predictor("this folder")']
    lines += ['predictor.predict(["file.wav"])', "```", ""]
    lines += ["Or `mmssl predict THIS_FOLDER file.wav`. " + _upstream_note(description), ""]
    lines += ["## Upstream, interface and head", ""]
    for part in ("upstream", "interface", "head"):
        lines.append(f"- {part.capitalize()}: {escape(json.dumps(description[part], ensure_ascii=False, default=str))}")
    lines += [f"- Seed of drawn upstream weights: {description.get('upstream_seed', 0)}", ""]
    lines += _measured(results, measured)
    return "\n".join(lines).rstrip() + "\n"


def _upstream_note(description: Mapping[str, Any]) -> str:
    if description.get("upstream_files"):
        return "The upstream's weights are in this folder."
    path = description["upstream"].get("path")
    if path:
        return f"The upstream's weights are not here: say where with `--upstream-path` (they were at {escape(path)})."
    return "The upstream needs no file: it is computed, or drawn from its seed."


def _measured(results: Mapping[str, Any], measured: Mapping[str, Any] | None) -> list[str]:
    lines = ["## How good it is", ""]
    if not measured or not measured.get("metrics"):
        return [*lines, "Not scored: no results.json was beside the models when they were exported."]
    metrics = list(measured["metrics"])
    rows = []
    for metric, entry in zip(metrics, summary.system_row(measured, metrics)["scores"], strict=True):
        shown = [entry["mean"], entry["fold_ci"], entry["pooled"], entry["ci"]]
        rows.append([escape(summary.metric_heading(metric)), *map(escape, shown)])
    lines += [table(["Metric", "Mean over folds", "95 % over folds", "All test clips", "95 % over clips"], rows), ""]
    chance = summary.number(results.get("chance"))
    lines += [f"Chance: {summary.score(chance, 'uar')}.", ""] if chance is not None else []
    lines += [
        "These are scores of the single models on test clips of their own folds, not of the mean of all models.",
        "",
    ]
    protocol = results.get("protocol") or {}
    described = [escape(protocol[k]) for k in ("name", "description") if protocol.get(k)]
    lines += [f"Protocol: {'. '.join(described) or summary.MISSING}", ""]
    lines += [summary.speaker_statement(results) + " " + summary.skipped_statement(results), ""]
    lines += [f"Fingerprint of the experiment: `{results.get('fingerprint') or summary.MISSING}`"]
    return lines
