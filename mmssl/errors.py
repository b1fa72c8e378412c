"""Exceptions of mmssl.

Every message says what is wrong, what was given, what is allowed and what to do. All of them derive from
`MmsslError`, so that a command line can print them without a traceback and a caller can catch them as one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MmsslError(Exception):
    """Base class of the errors that a user can cause and mend."""


class ConfigError(MmsslError):
    """A configuration value, override or constructor argument is wrong."""


class RegistryError(MmsslError):
    """A plug-in name is unknown, taken, or does not load."""


class InputError(MmsslError):
    """A tensor handed to an upstream, interface or head has a wrong shape, type, length or value."""


class MediaError(MmsslError):
    """An audio, video or image file cannot be read, or holds no usable data."""


class DataError(MmsslError):
    """A manifest, corpus folder or split is wrong."""


class StoreError(MmsslError):
    """A feature store is damaged, incomplete, in use, or belongs to another configuration."""


class CheckpointError(MmsslError):
    """A checkpoint is missing, unreadable, unsafe, or does not fit the model."""


class StageError(MmsslError):
    """A stage cannot run: unknown, out of order, or its inputs or outputs are missing."""


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """Return ' Did you mean X?' for the closest allowed name, or an empty string where none is close."""
    close = difflib.get_close_matches(given, list(allowed), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""
