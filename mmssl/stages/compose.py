"""From the files of a recipe and the words of a command line to one checked configuration of plain values.

Three places are searched, in this order: the corpus's conf/, the recipe's folder, and mmssl/conf. Overrides are
Hydra's: `group=choice` for upstream, interface, head, train, task and protocol, `key=value` for the rest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmssl.errors import ConfigError, did_you_mean
from mmssl.registry import HEADS, INTERFACES, OBJECTIVES, UPSTREAMS, Registry
from mmssl.stages.context import System

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

PACKAGED = Path(__file__).parents[1] / "conf"
REGISTRIES: dict[str, Registry] = {
    "upstream": UPSTREAMS,
    "interface": INTERFACES,
    "head": HEADS,
    "objective": OBJECTIVES,
}
# what stands below these is checked against the signature of what it configures, not against the yaml
_OPEN = ("upstream.", "interface.", "head.", "objective.", "data.options.")
# values of these on the command line are paths as the user's shell sees them
# the first are a path, the others a path or a name: of a model hub, or of an upstream
_PATHS = ("data.root", "init")
_PATHS_OR_NAMES = ("upstream.path", "upstream.checkpoint", "upstream.upstream")


@dataclass(frozen=True)
class Composed:
    """A composed configuration.

    Attributes:
        config: plain values.
        systems: what is compared, the main system first.
    """

    config: dict[str, Any]
    systems: tuple[System, ...]


def search_folders(folder: Path) -> list[Path]:
    """The three folders that are searched for yaml, for a recipe's corpus folder.

    Raises:
        ConfigError: the folder has no conf/config.yaml, or names no recipe.
    """
    primary = folder / "conf" / "config.yaml"
    if not primary.is_file():
        raise ConfigError(
            f"{folder} is not the folder of a recipe: it has no conf/config.yaml. Call the run.sh of egs/CORPUS/TASK."
        )
    match = re.search(r"^recipe:\s*([\w-]+)", primary.read_text(encoding="utf-8"), re.MULTILINE)
    if match is None:
        raise ConfigError(f"{primary} names no recipe: it needs a line such as 'recipe: ser' (a folder of recipes/).")
    for parent in (folder, *folder.parents):
        recipe = parent / "recipes" / match[1]
        if (recipe / "recipe.yaml").is_file():
            return [folder / "conf", recipe, PACKAGED]
    raise ConfigError(
        f"{primary} names the recipe {match[1]!r}, but no recipes/{match[1]}/recipe.yaml is above {folder}."
    )


def choices(folders: Sequence[Path], group: str) -> list[str]:
    """Names of the yaml files of a config group, and of the plug-ins that have none."""
    found = {p.stem for folder in folders for p in (folder / group).glob("*.yaml")}
    if group in REGISTRIES:
        found |= set(REGISTRIES[group].sources())
    return sorted(found)


def compose(folder: Path, overrides: Sequence[str] = (), caller: Path | None = None) -> Composed:
    """Compose the configuration of a recipe's corpus folder.

    Args:
        folder: egs/<corpus>/<task>.
        overrides: `key=value` words of the command line.
        caller: folder that relative paths among the overrides are seen from; None means `folder`.

    Raises:
        ConfigError: an override cannot be read, names nothing, or gives a value that is not allowed.
    """
    folders = search_folders(folder)
    parsed = [_absolute(_parse(text), caller or folder) for text in overrides]
    groups = {p.name for f in folders for p in f.iterdir() if p.is_dir() and any(p.glob("*.yaml"))} | set(REGISTRIES)
    # nano=null: sizes as the yaml files of the parts have them
    unsized = [o for o in parsed if o.key_or_group == "nano" and o.value() is None]
    parsed = [o for o in parsed if o not in unsized]
    chosen = [_choose(o, folders) for o in parsed if o.key_or_group in groups]
    values = [o for o in parsed if o.key_or_group not in groups]
    names = {o.key_or_group: _unquoted(o) for o in parsed if o.key_or_group in groups}
    sized = None if unsized else _by_objective(folders, names)
    if sized is not None:
        names["nano"] = sized
        chosen.append(_choose(_parse(f"nano={sized}"), folders))

    base = _hydra(folders, chosen)
    _check_keys(values, base, groups)
    words = [_reopened(o) for o in values]
    first = _hydra(folders, [*chosen, *words])
    main = names.get("upstream") or _default_choice(folders, "upstream", names.get("nano"))
    others = [str(name) for name in first.get("compare") or ()]
    more = [_choose(_parse(f"+upstream@_compared.s{i}={name}"), folders) for i, name in enumerate(others)]
    config = _hydra(folders, [*chosen, *words, *more]) if more else first
    compared = config.pop("_compared", {})

    systems = [_system(main, config["upstream"])]
    for index, name in enumerate(others):
        system = _system(name, compared[f"s{index}"])
        if all((system.target, system.kwargs) != (s.target, s.kwargs) for s in systems):
            systems.append(system)
    systems = _unique(systems)
    config["compare"] = [{"name": s.name, "_target_": s.target, **s.kwargs} for s in systems[1:]]
    picked = {g: names.get(g) or _default_choice(folders, g) for g in ("interface", "head")}
    if config.get("exp") in (None, "auto"):
        parts: tuple[str, ...] = (systems[0].name, picked["interface"], picked["head"])
        if "objective" in config:
            # what is pretrained, and under which objective
            parts = (names.get("objective") or _default_choice(folders, "objective"), systems[0].name)
        config["exp"] = "-".join(_slug(part) for part in parts)
    return Composed(config, tuple(systems))


def _parse(text: str) -> Override:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        raise ConfigError(
            f"The override {text!r} cannot be read. Write key=value, as in upstream=fbank or train.max_steps=500; "
            f"quote a value with spaces or brackets: 'data.root=\"my folder\"', 'train.learning_rates=[1e-3,1e-2]'."
        ) from error
    if override.is_sweep_override():
        raise ConfigError(f"The override {text!r} gives several values. One run takes one; write a list as key=[a,b].")
    return override


def _unquoted(override: Override) -> str:
    value = override.value()
    return str(value)


def _absolute(override: Override, caller: Path) -> Override:
    """The override with a relative path made absolute, as seen from the folder where the user called."""
    key, value = override.key_or_group, override.value()
    is_file = key.removesuffix("._target_") in REGISTRIES and re.search(r"\.py(:\w+)?$", str(value)) is not None
    if value is None or not (key in (*_PATHS, *_PATHS_OR_NAMES) or is_file):
        return override
    seen = Path(caller) / Path(str(value)).expanduser()
    looks_like_a_name = not str(value).startswith((".", "/", "~"))
    if key in _PATHS_OR_NAMES and looks_like_a_name and (value in UPSTREAMS.builtins or not seen.exists()):
        return override
    path = os.path.normpath(seen)
    return _parse(f"{(override.input_line or '').split('=', 1)[0]}={_quoted(path)}")


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _choose(override: Override, folders: Sequence[Path]) -> str:
    """A group override in Hydra's words; a plug-in without a yaml gets a config made on the fly.

    Raises:
        ConfigError: there is no such choice.
    """
    group, name = override.key_or_group, _unquoted(override)
    if any((folder / group / f"{name}.yaml").is_file() for folder in folders):
        return override.input_line or ""
    registry = REGISTRIES.get(group)
    if registry is None or not (name in registry.sources() or "." in name):
        known = choices(folders, group)
        also = (
            ""
            if registry is None
            else f" A dotted path (package.module.Name) or a path to a .py file works too: {group}=my_module.Name."
        )
        raise ConfigError(
            f"There is no {group} {name!r}.{did_you_mean(name, known)} Choices: {', '.join(known)}.{also}"
        )
    from hydra.core.config_store import ConfigStore

    alias = f"plugin_{_slug(name)}"
    ConfigStore.instance().store(group=group, name=alias, node={"_target_": name})
    before = (override.input_line or "").split("=", 1)[0]
    return f"{before}={alias}"


def _reopened(override: Override) -> str:
    """Hydra refuses a key that a yaml does not name; below an open section the signature decides instead."""
    line = override.input_line or ""
    return f"++{line.lstrip('+')}" if override.key_or_group.startswith(_OPEN) and not line.startswith("~") else line


def _hydra(folders: Sequence[Path], overrides: Sequence[str]) -> dict[str, Any]:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    search = ",".join(_quoted(f"file://{folder.resolve()}") for folder in folders[1:])
    try:
        with initialize_config_dir(config_dir=str(folders[0].resolve()), version_base="1.3"):
            composed = hydra_compose("config", [f"hydra.searchpath=[{search}]", *overrides])
        return OmegaConf.to_container(composed, resolve=True)  # type: ignore[return-value]
    except (HydraException, OmegaConfBaseException) as error:
        reason = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
        raise ConfigError(f"The configuration of {folders[0].parent} does not compose: {reason}") from error


def _check_keys(values: Sequence[Override], config: Mapping[str, Any], groups: set[str]) -> None:
    from mmssl.stages.files import flatten

    keys = flatten(config)
    sections = {".".join(key.split(".")[:n]) for key in keys for n in range(1, key.count(".") + 2)}
    faults = []
    for override in values:
        key = override.key_or_group
        if key in sections or key.startswith(_OPEN):
            continue
        shown = [k for k in keys if not k.startswith(("stages.", "_"))]
        hint = did_you_mean(key, [*shown, *groups])
        near = [k for k in shown if k.split(".")[0] == key.split(".")[0]] or sorted(
            {k.split(".")[0] for k in shown} | groups
        )
        faults.append(f"{override.input_line}: there is no key {key!r}.{hint} Keys: {', '.join(near)}.")
    if faults:
        raise ConfigError("\n".join(faults))


def _by_objective(folders: Sequence[Path], names: Mapping[str, str]) -> str | None:
    """The choice of the group `nano` where a corpus leaves it to the objective: `- nano: null` in its defaults."""
    asked = [value for key, value in _defaults(folders[0] / "config.yaml") if key == "nano"]
    if asked != [None] or "nano" in names:
        return None
    return names.get("objective") or _default_choice(folders, "objective")


def _defaults(path: Path) -> list[tuple[str, Any]]:
    """Groups, without words such as override, and choices of a defaults list."""
    from omegaconf import OmegaConf

    node: Any = OmegaConf.to_container(OmegaConf.load(path))
    entries = [entry for entry in node.get("defaults") or () if isinstance(entry, Mapping)]
    return [(str(key).split()[-1].lstrip("/"), name) for entry in entries for key, name in entry.items()]


def _default_choice(folders: Sequence[Path], group: str, nano: str | None = None) -> str:
    """The choice that the defaults lists make for a group; that of a choice of `nano` comes first."""
    sized = [folder / "nano" / f"{nano}.yaml" for folder in folders]
    paths = [path for path in sized if path.is_file()][:1]
    for path in (*paths, folders[0] / "config.yaml", folders[1] / "recipe.yaml"):
        for key, name in _defaults(path):
            if key == group and name is not None:
                return str(name)
    raise ConfigError(f"Neither {folders[0]}/config.yaml nor {folders[1]}/recipe.yaml chooses a default {group}.")


def _system(name: str, node: Mapping[str, Any]) -> System:
    kwargs = {k: v for k, v in node.items() if k not in ("_target_", "_convert_", "_recursive_")}
    target = str(node.get("_target_", "???"))
    if "." in name or name == "custom":
        name = Path(target.rpartition(".py")[0] or target.rpartition(".")[2]).name
    elif isinstance(kwargs.get("path"), str) and kwargs["path"] != "???":
        name = f"{name}-{Path(kwargs['path']).name}"
    return System(_slug(name), target, kwargs)


def _unique(systems: Sequence[System]) -> list[System]:
    named: dict[str, System] = {}
    for system in systems:
        name, count = system.name, 2
        while name in named:
            name, count = f"{system.name}-{count}", count + 1
        named[name] = System(name, system.target, system.kwargs)
    return list(named.values())


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "_", text.strip("/")).strip(".") or "unnamed"
