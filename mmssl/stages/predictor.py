"""Use a trained system: label files or waveforms with it.

An experiment has one model per fold, each trained without that fold's test speakers. A prediction is the mean of what
all of them say (of probabilities, or of values), which is not what the experiment scored: there each clip was labelled
by the one model that had not heard its speaker.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmssl.errors import CheckpointError, InputError, MmsslError, did_you_mean
from mmssl.registry import UPSTREAMS
from mmssl.stages.exporting import (
    DESCRIPTION,
    assemble,
    check_nested,
    check_target,
    load_model,
    read_description,
    read_weights,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from mmssl.types import Layers
    from mmssl.upstreams.base import Upstream

_SAME_FOR_ALL_FOLDS = (
    "upstream",
    "upstream_seed",
    "stream",
    "sample_rate",
    "interface",
    "hidden_sizes",
    "hop_lengths",
    "head",
    "task",
    "classes",
    "label",
)


@dataclass(frozen=True)
class Prediction:
    """What a system says about one clip.

    Attributes:
        path: of the file; None for a waveform.
        label: the most probable class; None for regression.
        probabilities: class -> probability, in the order of the classes, sum 1; empty for regression.
        values: label name -> value, for regression; else empty.
    """

    path: str | None
    label: str | None
    probabilities: dict[str, float]
    values: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class System:
    """One trained system on disk: a description and the models of its folds.

    Attributes:
        name: of the system.
        description: the fields of `model.yaml` that all folds share.
        models: fold name -> task module in eval mode.
        folder: where it was read from.
    """

    name: str
    description: Mapping[str, Any]
    models: Mapping[str, nn.Module]
    folder: Path


class Predictor:
    """An upstream and the trained models on top of it.

    The upstream runs once per clip, alone and unpadded; the models of all folds share its features.
    """

    def __init__(self, system: System, upstream: Upstream) -> None:
        """Join a system with the upstream it was trained on.

        Args:
            system: as `load_system` reads it.
            upstream: must have the layers that the system was trained with; decides the device.

        Raises:
            CheckpointError: the upstream gives other layers than the system was trained on, or takes no waveforms.
        """
        self.system = system
        self.upstream = upstream
        self.description = system.description
        self.stream = str(system.description["stream"])
        _check_fit(upstream, system)
        self.models = [model.to(upstream.device) for model in system.models.values()]

    @property
    def sample_rate(self) -> int:
        """Of the waveforms that `predict` takes, in Hz."""
        return int(self.description["sample_rate"])

    @property
    def classes(self) -> list[str]:
        """Class names in the order of the probabilities; empty for regression."""
        return [str(c) for c in self.description.get("classes") or []]

    def predict(self, paths_or_waveforms: Sequence[Any]) -> list[Prediction]:
        """Predict for several clips, one after the other.

        Args:
            paths_or_waveforms: paths of media files of any kind and rate, or waveforms (T,) float in [-1, 1] at
                `sample_rate` as tensors or arrays.

        Returns:
            One prediction per clip, in order: the mean over the models of the folds.

        Raises:
            MediaError: a file cannot be read.
            InputError: a waveform has a wrong shape or type, or a clip is too short for the upstream.
        """
        if isinstance(paths_or_waveforms, str | Path):
            raise InputError(
                f"predict takes a list of files or waveforms, got one: write [{str(paths_or_waveforms)!r}]."
            )
        return [self.predict_one(item) for item in paths_or_waveforms]

    def predict_one(self, item: Any) -> Prediction:
        """Predict for one path or waveform; see `predict`."""
        path = str(item) if isinstance(item, str | Path) else None
        return self._prediction(path, self._outputs(self.features(item)))

    def features(self, item: Any) -> Layers:
        """All layers of one clip (B = 1), the same as those the system was trained on."""
        import torch

        waveform = self._waveform(item).to(self.upstream.device)
        with torch.inference_mode():
            return self.upstream(waveform[None].to(self.upstream.dtype))[self.stream].to(torch.float32)

    def _outputs(self, layers: Layers) -> Tensor:
        """(C,) probabilities or values: the mean over folds, in float64 so that its order does not matter."""
        import torch

        with torch.inference_mode():
            outputs = [model.predict(layers)[0].double().reshape(-1).cpu() for model in self.models]  # type: ignore[operator]
        return torch.stack(outputs).mean(dim=0)

    def _prediction(self, path: str | None, outputs: Tensor) -> Prediction:
        if self.description["task"] == "classification":
            probabilities = dict(zip(self.classes, outputs.tolist(), strict=True))
            return Prediction(path, max(probabilities, key=probabilities.__getitem__), probabilities)
        label = self.description["label"]
        names = [label] if isinstance(label, str) else [str(name) for name in label]
        return Prediction(path, None, {}, dict(zip(names, outputs.tolist(), strict=True)))

    def _waveform(self, item: Any) -> Tensor:
        import torch

        if isinstance(item, str | Path):
            from mmssl.media.audio import load_audio

            return load_audio(item, sample_rate=self.sample_rate)[0]
        waveform = torch.as_tensor(item)
        if waveform.dim() != 1 or not waveform.is_floating_point():
            raise InputError(
                f"A waveform must be (T,) float in [-1, 1] at {self.sample_rate} Hz, got {waveform.dtype} "
                f"{tuple(waveform.shape)}: mix the channels down and scale integers first, or give the path of a file."
            )
        return waveform.float()


def load_predictor(
    folder: str | Path,
    system: str | None = None,
    device: str | torch.device = "cpu",
    *,
    upstream_path: str | Path | None = None,
    trust_targets: bool = False,
) -> Predictor:
    """Load what a recipe trained, or what `mmssl export` wrote.

    Args:
        folder: an experiment (exp/NAME), an exported folder, or the folder of one fold's model.
        system: which system of an experiment that compares several; None takes the one with the best score in
            results.json, or the only one.
        device: where the upstream and the models run.
        upstream_path: replaces the upstream's `path`, for weights that lie elsewhere now.
        trust_targets: also build parts that are neither mmssl's nor an installed plug-in's; this runs their code.

    Raises:
        CheckpointError: the folder is not one of these, is damaged, of another version, not trusted, or the upstream
            does not fit.
    """
    from mmssl.upstreams.base import load_upstream

    found = load_system(folder, system, trust_targets=trust_targets)
    target, kwargs = upstream_of(found, upstream_path)
    check_target(target, UPSTREAMS, trust_targets)
    check_nested(kwargs, trust_targets)
    seed = int(found.description.get("upstream_seed") or 0)
    try:
        upstream = load_upstream(target, seed=seed, device=device, **kwargs)
    except MmsslError as error:
        path = kwargs.get("path")
        moved = isinstance(path, str) and not Path(path).exists()
        hint = (
            " If its weights were moved, say where they are now (--upstream-path, upstream_path=...)." if moved else ""
        )
        raise CheckpointError(f"The upstream of {found.folder} cannot be built: {error}{hint}") from error
    return Predictor(found, upstream)


def upstream_of(system: System, upstream_path: str | Path | None = None) -> tuple[str, dict[str, Any]]:
    """Target and arguments of a system's upstream; weights that came along in the folder become absolute paths.

    Raises:
        CheckpointError: the folder names weights outside itself.
    """
    kwargs = {k: v for k, v in system.description["upstream"].items() if k != "_target_"}
    root = system.folder.resolve()
    for key, relative in (system.description.get("upstream_files") or {}).items():
        inside = (root / str(relative)).resolve()
        if not inside.is_relative_to(root):
            raise CheckpointError(
                f"{root / DESCRIPTION} names upstream weights outside its folder: {relative!r}. Export it again."
            )
        kwargs[key] = str(inside)
    if upstream_path is not None:
        kwargs["path"] = str(upstream_path)
    return str(system.description["upstream"]["_target_"]), kwargs


def load_system(folder: str | Path, system: str | None = None, *, trust_targets: bool = False) -> System:
    """Read the models of one system; the folder is an experiment, an exported folder or that of one model.

    Raises:
        CheckpointError: see `load_predictor`.
    """
    root = Path(folder)
    if not root.is_dir():
        raise CheckpointError(
            f"The folder {str(root)!r} does not exist (seen from {Path.cwd()}). Give exp/NAME or an exported folder."
        )
    if (root / DESCRIPTION).is_file():
        found = _read_single(root, trust_targets)
        if system is not None and system != found.name:
            raise CheckpointError(f"{root} holds the system {found.name!r} alone, not {system!r}.")
        return found
    if not (root / "systems").is_dir():
        raise CheckpointError(
            f"{root} is neither an experiment (no systems/) nor an exported folder (no {DESCRIPTION}). "
            f"Give exp/NAME after the train stage, or a folder written by `mmssl export`."
        )
    name = _choose(root, system)
    # a name that begins with a dot is a fold that was being written when its run was stopped
    written = (root / "systems" / name / "folds").glob(f"[!.]*/{DESCRIPTION}")
    folds = sorted(path.parent for path in written)
    if not folds:
        raise CheckpointError(f"The system {name!r} of {root} has no trained fold. Run the train stage to its end.")
    loaded = {fold.name: load_model(fold, trust_targets=trust_targets) for fold in folds}
    first = loaded[folds[0].name][1]
    for fold, (_, description) in loaded.items():
        differing = [k for k in _SAME_FOR_ALL_FOLDS if description.get(k) != first.get(k)]
        if differing:
            raise CheckpointError(
                f"The folds {folds[0].name} and {fold} of system {name!r} differ in {', '.join(differing)}: they are "
                f"of different runs. Run the train stage again."
            )
    shared = {k: v for k, v in first.items() if k != "weights_sha256"}
    return System(name, shared, {fold: model for fold, (model, _) in loaded.items()}, root)


def _read_single(root: Path, trust_targets: bool) -> System:
    description = read_description(root / DESCRIPTION)
    folds = description.get("folds")
    if folds is None:
        model, _ = load_model(root, trust_targets=trust_targets)
        return System(root.name, description, {root.name: model}, root)
    models = {}
    for k, entry in enumerate(folds):
        weights = read_weights(root / f"fold{k:03d}.safetensors", entry["weights_sha256"])
        models[str(entry["name"])] = assemble(description, weights, root, trust_targets=trust_targets)
    return System(str(description.get("system") or root.name), description, models, root)


def _choose(root: Path, system: str | None) -> str:
    """The system asked for; the only one; or the one that results.json ranks first."""
    names = sorted(p.name for p in (root / "systems").iterdir() if p.is_dir())
    listed = ", ".join(names) or "none"
    if system is not None:
        if system not in names:
            raise CheckpointError(f"{root} has no system {system!r}.{did_you_mean(system, names)} It has: {listed}.")
        return system
    if len(names) == 1:
        return names[0]
    best = _best_system(root / "results.json")
    if best not in names:
        raise CheckpointError(
            f"{root} has several systems and no score to choose by: name one (--system). It has: {listed}."
        )
    return str(best)


def _best_system(results_path: Path) -> str | None:
    results = read_results(results_path)
    if not results or not results.get("systems"):
        return None
    from mmssl.report.summary import ranked

    return str(ranked(results)[0]["name"])


def read_results(path: Path) -> dict[str, Any] | None:
    """The content of a results.json; None where there is none that can be read."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return results if isinstance(results, dict) else None


def _check_fit(upstream: Upstream, system: System) -> None:
    description, stream = system.description, str(system.description["stream"])
    spec = upstream.spec
    if "waveforms" not in spec.inputs or stream not in spec.streams:
        raise CheckpointError(
            f"The system {system.name!r} reads the stream {stream!r} of an upstream of waveforms; its upstream takes "
            f"{' and '.join(spec.inputs)} and gives {', '.join(spec.streams)}."
        )
    trained = (list(description["hidden_sizes"]), list(description["hop_lengths"]), description["sample_rate"])
    given = (list(spec.streams[stream].hidden_sizes), list(spec.streams[stream].hop_lengths), spec.sample_rate)
    if trained != given:
        raise CheckpointError(
            f"The upstream does not fit the system {system.name!r}: trained with hidden sizes {trained[0]}, hop "
            f"lengths {trained[1]} at {trained[2]} Hz, the upstream has {given[0]}, {given[1]} at {given[2]} Hz. "
            f"Use the weights and arguments that the experiment was run with."
        )
