"""Augmentations from what a configuration says of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmssl.augment.base import Augmentation
from mmssl.errors import ConfigError
from mmssl.registry import AUGMENTATIONS


def build_augmentation(described: Mapping[str, Any]) -> Augmentation:
    """Build an augmentation, and those that it is made of.

    Args:
        described: `_target_`, a name of `mmssl.registry.AUGMENTATIONS` or a dotted path, and arguments; mappings with a
            `_target_` among the arguments, or in lists of them, are built first.

    Raises:
        ConfigError: no `_target_`, arguments that do not fit, or what is built is no augmentation.
        RegistryError: nothing has that name.
    """
    target = described.get("_target_")
    if not isinstance(target, str):
        raise ConfigError(f"An augmentation is {{_target_: NAME, ...}}, got {dict(described)!r}.")
    arguments = {name: _built(value) for name, value in described.items() if name != "_target_"}
    found = AUGMENTATIONS.build(target, **arguments)
    if not isinstance(found, Augmentation):
        raise ConfigError(f"{target} gives a {type(found).__name__}, not a mmssl.augment.base.Augmentation.")
    return found


def _built(value: Any) -> Any:
    if isinstance(value, Mapping) and "_target_" in value:
        return build_augmentation(value)
    if isinstance(value, list):
        return [_built(entry) for entry in value]
    return value
