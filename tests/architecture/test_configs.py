"""Every yaml is read, and every `_target_` in it exists and takes the arguments that stand beside it."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from mmssl.registry import HEADS, INTERFACES, UPSTREAMS, Registry

ROOT = Path(__file__).parents[2]
PACKAGED = sorted((ROOT / "mmssl" / "conf").rglob("*.yaml"))
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
CORPORA = sorted(p for p in (ROOT / "egs").rglob("*.yaml") if "conf" in p.relative_to(ROOT / "egs").parts)
# for mmssl bench, beside a recipe
SUITES = sorted((ROOT / "egs").glob("*/*/*.yaml"))
META = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}


def nodes_with_target(node: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield node
        for value in node.values():
            yield from nodes_with_target(value)
    elif isinstance(node, list):
        for value in node:
            yield from nodes_with_target(value)


def load(path: Path) -> Any:
    return OmegaConf.to_container(OmegaConf.load(path), resolve=False)


def test_no_yaml_is_overlooked() -> None:
    # a glob that lists only the top folder would silently check almost nothing
    everything = {p for p in ROOT.rglob("*.yaml") if not {".venv", "build", "exp", "feats", "data"} & set(p.parts)}
    checked = {*PACKAGED, *RECIPES, *CORPORA, *SUITES}
    assert {p for p in everything if p.relative_to(ROOT).parts[0] in ("mmssl", "recipes", "egs")} == checked
    assert len(PACKAGED) >= 20
    assert len(CORPORA) >= 5


@pytest.mark.parametrize("path", [*PACKAGED, *RECIPES, *CORPORA, *SUITES], ids=lambda p: str(p.relative_to(ROOT)))
def test_targets_exist_and_bind(path: Path) -> None:
    for node in nodes_with_target(load(path)):
        target = node["_target_"]
        if target == "???":
            continue
        module, _, name = target.rpartition(".")
        part = getattr(importlib.import_module(module), name)
        given = {k: v for k, v in node.items() if k not in META and not (k == "name" and path in SUITES)}
        signature = inspect.signature(part)
        unknown = set(given) - set(signature.parameters)
        takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
        assert takes_any or not unknown, f"{path}: {target} takes {signature}, not {sorted(unknown)}"


@pytest.mark.parametrize(
    ("group", "registry"),
    [("upstream", UPSTREAMS), ("interface", INTERFACES), ("head", HEADS)],
    ids=lambda x: str(x)[:20],
)
def test_every_builtin_has_a_config_and_its_target(group: str, registry: Registry) -> None:
    for name, target in registry.builtins.items():
        path = ROOT / "mmssl" / "conf" / group / f"{name}.yaml"
        assert path.is_file(), f"{group} {name} has no {path}"
        assert load(path)["_target_"] == target
        first = path.read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith("# "), f"{path} does not say in its first line what it is"
