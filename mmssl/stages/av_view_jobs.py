"""What the models of one encoder, one kind of input and one fold have in common, whatever their task is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmssl.data.folds import Fold, read_folds
from mmssl.errors import ConfigError
from mmssl.stages.av_extract import FEATURES
from mmssl.stages.av_features import AvStore
from mmssl.stages.av_media import AUDIO, BOTH, VIDEO, VIEWS
from mmssl.stages.context import Context
from mmssl.stages.files import read_json
from mmssl.stages.fold_jobs import kept_fold
from mmssl.stages.probe import STANDARDIZED, part
from mmssl.stages.utterance_prepare import FOLDS

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
