"""What the values of a composed configuration may be. All faults are reported at once, before anything runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmssl.errors import ConfigError, RegistryError, did_you_mean
from mmssl.stages.compose import REGISTRIES, Composed
from mmssl.stages.context import System
from mmssl.stages.engine import Stage, section

Check = Callable[[Any], bool]


def _whole(minimum: int) -> tuple[Check, str]:
    return lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= minimum, f"a whole number >= {minimum}"


def _one_of(*allowed: str) -> tuple[Check, str]:
    return lambda v: v in allowed, f"one of {', '.join(allowed)}"


def _optional(check: tuple[Check, str]) -> tuple[Check, str]:
    return lambda v: v is None or check[0](v), f"{check[1]}, or null"


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


_TRUTH: tuple[Check, str] = (lambda v: isinstance(v, bool), "true or false")
_TEXT: tuple[Check, str] = (lambda v: isinstance(v, str) and bool(v), "a name")
_MAPPING: tuple[Check, str] = (lambda v: isinstance(v, Mapping), "a mapping of options")

_RULES: dict[str, tuple[Check, str]] = {
    "corpus": _TEXT,
    "label": _TEXT,
    "exp": (
        lambda v: isinstance(v, str) and bool(v) and "/" not in v and not v.startswith("."),
        "a folder name without /",
    ),
    "compare": (lambda v: isinstance(v, list), "a list of upstream names, such as [fbank,mel]"),
    "data.root": _optional(_TEXT),
    "data.on_error": _one_of("raise", "skip"),
    "data.options": _MAPPING,
    "protocol.scheme": _one_of("leave_one_group_out", "group_kfold", "groups_per_fold", "predefined"),
    "protocol.group": _TEXT,
    "protocol.k": _optional(_whole(2)),
    "protocol.dev_groups": (
        lambda v: _whole(1)[0](v) or (isinstance(v, float) and 0 < v < 1),
        "a number of groups, or their share between 0 and 1",
    ),
    "protocol.groups_per_fold": _optional(_MAPPING),
    "protocol.seed": _whole(0),
    "task.kind": _one_of("classification", "multilabel", "regression", "sequence", "verification"),
    "features.stream": _TEXT,
    "features.statistics": _one_of("auto", "mean", "mean_std", "frames"),
    "features.standardize": _TRUTH,
    "features.seed": _whole(0),
    "train.learning_rates": (
        lambda v: isinstance(v, list) and bool(v) and all(_positive(x) for x in v) and len(set(v)) == len(v),
        "a list of different positive numbers, such as [1e-4,1e-3]",
    ),
    "train.max_steps": _whole(1),
    "train.batch_size": _whole(1),
    "train.patience": _whole(1),
    "train.eval_every": _whole(1),
    "train.monitor": _optional(
        _one_of(
            "dev_loss", "dev_uar", "dev_wa", "dev_macro_f1", "dev_map", "dev_auc", "dev_ccc", "dev_pearson", "dev_rmse"
        )
    ),
    "train.optimizer": _one_of("adam", "adamw"),
    "train.weight_decay": (lambda v: v == 0 or _positive(v), "a number >= 0"),
    "train.engine": _one_of("batched", "lightning"),
    "train.refit": _TRUTH,
    "train.class_weights": _TRUTH,
    "train.seed": _whole(0),
}

# what recipes that pretrain one objective have beside these, or instead of them
_PRETRAIN_RULES: dict[str, tuple[Check, str]] = {
    "label": _optional(_TEXT),
    "init": _optional(_TEXT),
    "held_out": (lambda v: isinstance(v, list) and "test" in v and not {*v} - {"dev", "test"}, "[test] or [dev, test]"),
    "reader": _MAPPING,
    "pretrain": _MAPPING,
    "probing.protocol": _one_of("linear", "mlp", "knn", "logreg", "ridge"),
    "targets.iterations": _optional((lambda v: isinstance(v, list) and bool(v), "a list of iterations")),
}


def check(composed: Composed, targets: bool = True) -> None:
    """Check every value, and bind the arguments of every part to its signature.

    Args:
        composed: the configuration.
        targets: also import the parts (upstreams, interface, head) and bind; takes seconds, as torch is imported.

    Raises:
        ConfigError: lists all faults.
    """
    faults = []
    pretrains = "objective" in composed.config
    for key, (allowed, description) in (_RULES | _PRETRAIN_RULES if pretrains else _RULES).items():
        value = section(composed.config, key)
        if value == "???":
            faults.append(f"{key} is not set: give {key}=VALUE, {description}.")
        elif not allowed(value):
            faults.append(f"{key} must be {description}; got {value!r}.")
    faults += [
        f"train.{key}: there is no such key.{did_you_mean(f'train.{key}', _RULES)}"
        for key in composed.config["train"]
        if f"train.{key}" not in _RULES
    ]
    for kind in ("interface", "head"):
        faults += _missing(kind, composed.config[kind])
    for index, system in enumerate(composed.systems):
        label = "upstream" if index == 0 else f"compare: {system.name}"
        faults += _missing(label, {"_target_": system.target, **system.kwargs})
    if targets and not faults:
        faults += _binding_faults(composed.systems, composed.config)
        if pretrains:
            node = {k: v for k, v in composed.config["objective"].items() if not k.startswith("_")}
            faults += bind("objective", composed.config["objective"]["_target_"], node, positional=1)
    if faults:
        raise ConfigError("\n".join(faults))


def stages_of(config: Mapping[str, Any]) -> list[Stage]:
    """The recipe's ordered plan.

    Raises:
        ConfigError: a stage is incomplete, or numbers do not increase.
    """
    stages = []
    for name, node in config["stages"].items():
        arguments = {"name": name, **{k: v for k, v in node.items() if k != "_target_"}}
        try:
            inspect.signature(Stage).bind(**arguments)
        except TypeError as error:
            raise ConfigError(
                f"recipe.yaml: stage {name!r}: {error}; a stage takes {inspect.signature(Stage)}."
            ) from error
        stages.append(Stage(**arguments))
    numbers = [stage.number for stage in stages]
    if not stages or numbers != sorted(set(numbers)):
        raise ConfigError(f"recipe.yaml: the numbers of the stages must increase, got {numbers}.")
    return stages


def _missing(label: str, node: Mapping[str, Any]) -> list[str]:
    # a mandatory value that a yaml leaves open
    where = label if label in ("upstream", "interface", "head") else None
    return [
        f"{label}.{key} is not set: give {where}.{key}=VALUE."
        if where
        else f"{label} needs {key}, which cannot be given there: make it the main upstream."
        for key, value in node.items()
        if value == "???"
    ]


def _binding_faults(systems: Sequence[System], config: Mapping[str, Any]) -> list[str]:
    faults = []
    for system in systems:
        faults += bind("upstream", system.target, system.kwargs)
    for kind, given in (("interface", 2), ("head", 2)):
        node = config[kind]
        faults += bind(
            kind, node["_target_"], {k: v for k, v in node.items() if not k.startswith("_")}, positional=given
        )
    return faults


def bind(kind: str, target: str, kwargs: Mapping[str, Any], positional: int = 0) -> list[str]:
    """Faults of the arguments of one part: unknown names, missing ones, or a target that does not load."""
    try:
        build = REGISTRIES[kind].resolve(target)
    except RegistryError as error:
        return [str(error)]
    try:
        signature = inspect.signature(build)
    except (TypeError, ValueError):
        return []
    parameters = signature.parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    unknown = [] if takes_any else [name for name in kwargs if name not in parameters]
    own = [name for name, p in list(parameters.items())[positional:] if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    faults = [
        f"{kind}.{name}: {target} has no such argument.{did_you_mean(name, own)} It takes: {', '.join(own) or 'none'}."
        for name in unknown
    ]
    if not faults:
        try:
            signature.bind(*([None] * positional), **kwargs)
        except TypeError as error:
            faults.append(f"{kind} {target}: {error}; it takes: {', '.join(own) or 'none'}.")
    return faults
