"""What a stage gets to work with: the experiment's folder, its configuration and the means to do the work."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

log = logging.getLogger("mmssl.stages")

_PACKAGES = ("mmssl", "torch", "torchaudio", "transformers", "lightning", "scikit-learn", "numpy", "hydra-core")


@dataclass(frozen=True)
class System:
    """One compared system: an upstream under the experiment's interface and head.

    Attributes:
        name: in tables and folder names.
        target: registry name, dotted path or .py file of the upstream.
        kwargs: of its constructor.
    """

    name: str
    target: str
    kwargs: Mapping[str, Any]


@dataclass(frozen=True)
class Context:
    """An experiment of a recipe.

    Attributes:
        folder: egs/<corpus>/<task>.
        exp: name of the experiment: results go to folder/exp/<name>.
        config: the composed configuration, plain values only.
        systems: what is compared, the main system first.
        nj: worker processes.
        ngpu: accelerators to use; 0 is the CPU.
        command: what the user typed.
    """

    folder: Path
    exp: str
    config: Mapping[str, Any]
    systems: tuple[System, ...]
    nj: int = 1
    ngpu: int = 0
    command: str = ""
    started: float = field(default_factory=time.time)

    @property
    def data(self) -> Path:
        """Folder of manifest.jsonl, folds.json and skipped.json; all experiments of the folder share it."""
        return self.folder / "data"

    @property
    def feats(self) -> Path:
        """Folder of the feature stores; all experiments of the folder share it."""
        return self.folder / "feats"

    @property
    def exp_dir(self) -> Path:
        """Folder of this experiment."""
        return self.folder / "exp" / self.exp

    @property
    def data_root(self) -> Path | None:
        """Folder of the corpus, or None where none was given."""
        root = self.config["data"]["root"]
        return None if root is None else (self.folder / Path(str(root)).expanduser()).resolve()

    def fold_dir(self, system: str, fold: str) -> Path:
        """Folder of one trained fold of one system."""
        return self.exp_dir / "systems" / system / "folds" / fold

    def device(self) -> str:
        """The torch device that the work runs on."""
        return "cuda" if self.ngpu > 0 else "cpu"

    def paths(self, pattern: str) -> list[Path]:
        """Files and folders that a pattern of a stage's `reads` or `writes` names and that exist.

        `{exp}` is the experiment's folder, `{root}` the corpus folder; `*` matches within one name.
        """
        if "{root}" in pattern:
            root = self.data_root
            return [root] if root is not None and root.exists() else []
        filled = pattern.replace("{exp}", f"exp/{self.exp}").rstrip("/")
        return sorted(self.folder.glob(filled))

    def shown(self, pattern: str) -> str:
        """A pattern as a person reads it."""
        return pattern.replace("{exp}", f"exp/{self.exp}").replace("{root}", "data.root")


def versions() -> dict[str, str]:
    """Versions of what results depend on, without importing any of it."""
    import platform

    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
