"""What the models of one encoder, one kind of input and one fold have in common, whatever their task is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmssl.data.folds import Fold, read_folds
from mmssl.errors import ConfigError
from mmssl.stages.av_extract import FEATURES
from mmssl.stages.av_features import AvStore
from mmssl.stages.av_media import AUDIO, BOTH, VIDEO, VIEWS
from mmssl.stages.context import Context
from mmssl.stages.files import read_json
from mmssl.stages.fold_jobs import RESULT, kept_fold
from mmssl.stages.probe import STANDARDIZED, part
from mmssl.stages.utterance_prepare import FOLDS

if TYPE_CHECKING:
    from torch import nn

# a single stream is joined with nothing
_ALONE = {"name": "concat", "kwargs": {}}


@dataclass(frozen=True, kw_only=True)
class ViewJob:
    """One model to train: plain values, so that another process can do it.

    Attributes:
        folder: of the finished fold.
        root: of the recipe.
        record: of the encoder in av_features.json.
        view: what of a clip is given: "audio", "video" or "both".
        fold: ids.
        fusion: name and kwargs.
        interface: of each stream.
        standardize: with statistics of the training clips.
        train: the configuration's section.
        device: torch device.
        fingerprint: of all of the above.
    """

    folder: Path
    root: Path
    record: Mapping[str, Any]
    view: str
    fold: Fold
    fusion: Mapping[str, Any]
    interface: str
    standardize: bool
    train: Mapping[str, Any]
    device: str
    fingerprint: str = ""

    @property
    def name(self) -> str:
        """Encoder, view and fold, for messages."""
        return f"{self.record['title']}, {self.view}, {self.fold.name}"

    def store(self) -> AvStore:
        """Features of the encoder."""
        return AvStore(self.root, self.record)

    def fusion_builder(self, store: AvStore, train: Sequence[str]) -> Callable[[], Any]:
        """What builds the fusion, with statistics of these training clips."""
        from mmssl.interfaces.fusion import build_fusion

        specs = store.specs(self.view)
        moments = store.moments(train, self.view) if self.standardize else {}

        def build() -> Any:
            fusion: Any = build_fusion(self.fusion["name"], specs, interface=self.interface, **self.fusion["kwargs"])
            for name, values in moments.items():
                # HiCMAE's head takes its fusion stream as it is, and norms it
                if hasattr(fusion.interfaces[name], "set_statistics"):
                    fusion.interfaces[name].set_statistics(*values)
            return fusion

        return build

    def fit(
        self, build: Callable[[], nn.Module], train: Any, dev: Any, num_test: int
    ) -> tuple[nn.Module, dict[str, Any]]:
        """Try the learning rates on the training clips, and take what the development clips like best.

        Args:
            build: the untrained task.
            train, dev: clips or batches of them, see `mmssl.training.sweep.sweep`.
            num_test: test clips.

        Returns:
            The selected task, and what result.json says of all tasks.
        """
        from mmssl.training.sweep import sweep

        settings = {k: v for k, v in self.train.items() if k not in ("class_weights", "refit", "engine", "monitor")}
        result = sweep(build, train, dev, device=self.device, **settings)
        record = {
            "name": self.fold.name,
            "num_train": len(train),
            "num_dev": len(dev),
            "num_test": num_test,
            "learning_rate": result.learning_rate,
            "step": result.best.best_step,
        }
        return result.task, record


def view_jobs(context: Context) -> Iterator[dict[str, Any]]:
    """Arguments of a `ViewJob` for every encoder, view and fold.

    Raises:
        ConfigError: a view or fusion that an encoder does not allow.
        DataError: a fold has an empty part.
    """
    config = context.config
    folds = read_folds(context.data / FOLDS)
    interface = config["interface"]["_target_"] if not config["features"]["standardize"] else STANDARDIZED
    for encoder, record in read_json(context.exp_dir / FEATURES).items():
        store = AvStore(context.folder, record)
        for view in views_of(config, record):
            ids = store.ids(view)
            for fold in folds:
                yield {
                    "folder": context.fold_dir(system_name(encoder, view), fold.name),
                    "root": context.folder,
                    "record": record,
                    "view": view,
                    "fold": kept_fold(fold, ids, _lacking(f"{record['title']}, {view}")),
                    "fusion": _fusion_of(config, store, view, record),
                    "interface": interface,
                    "standardize": config["features"]["standardize"],
                    "train": config["train"],
                    "device": context.device(),
                }


@dataclass(frozen=True)
class ViewResult:
    """What a finished job left.

    Attributes:
        record: of the encoder in av_features.json.
        view: what of a clip was given.
        fold: of the protocol.
        method: the view, and the fold where there are several.
        folder: of the job.
        found: its result.json.
    """

    record: Mapping[str, Any]
    view: str
    fold: Fold
    method: str
    folder: Path
    found: Mapping[str, Any]

    def row(self, *more: str) -> dict[str, Any]:
        """A row of error_rates.json, with further entries of result.json."""
        chosen = {key: self.found[key] for key in ("learning_rate", "step")}
        row = {"system": self.record["title"], "method": self.method, "chosen": chosen}
        return row | {key: self.found[key] for key in ("metrics", "intervals", *more)}


def view_results(context: Context) -> list[ViewResult]:
    """What the jobs of `view_jobs` left, those of the main encoder first."""
    folds, results = read_folds(context.data / FOLDS), []
    for encoder, record in read_json(context.exp_dir / FEATURES).items():
        for view in views_of(context.config, record):
            for fold in folds:
                folder = context.fold_dir(system_name(encoder, view), fold.name)
                method = view if len(folds) == 1 else f"{view}, {fold.name}"
                results.append(ViewResult(record, view, fold, method, folder, read_json(folder / RESULT)))
    return results


def _lacking(what: str) -> Callable[[str, int], str]:
    def said(part: str, count: int) -> str:
        return f"for {what}: none of its {count} clips has that. Choose other streams=[...], or another protocol."

    return said


def views_of(config: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    """What is asked for and what an encoder takes."""
    wanted = config["streams"]
    wrong = [view for view in wanted if view not in VIEWS]
    if not wanted or wrong:
        raise ConfigError(f"streams must be a list of {', '.join(VIEWS)}, got {wanted}.")
    return [view for view in wanted if record["takes"] in (BOTH, view)]


def system_name(encoder: str, view: str) -> str:
    """Folder of the models of an encoder and a view."""
    return f"{encoder}-{view}"


def _fusion_of(config: Mapping[str, Any], store: AvStore, view: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """The fusion of a view: the configured one, or none of a single stream; HiCMAE's only where its streams are."""
    streams = set(store.specs(view))
    if view != BOTH or len(streams) == 1 or "fusion" not in config:
        return _ALONE
    if config["fusion"]["_target_"].endswith("HicmaeFusion") and streams != {AUDIO, VIDEO, "fusion"}:
        if record["role"] == "main":
            raise ConfigError(
                f"fusion=hicmae joins the streams audio, video and fusion; {record['title']} has "
                f"{', '.join(sorted(streams))}. Choose fusion=concat, gated, cross_attention or routed."
            )
        return _ALONE
    return part(config["fusion"])
