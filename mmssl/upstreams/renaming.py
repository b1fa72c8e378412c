"""Loading weights that others have named, with a report of everything that does not fit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from mmssl.errors import CheckpointError

Value = TypeVar("Value")


def load_renamed(
    module: nn.Module,
    state: Mapping[str, Any],
    rules: Sequence[tuple[str, str]] = (),
    *,
    source: str,
    ignore: str | None = None,
) -> None:
    """Copy weights into a module: every parameter must be found, and everything that is found must have a place.

    Args:
        module: takes the weights.
        state: their name -> tensor; other values are passed over.
        rules: (regular expression, replacement); the first whose expression matches a whole name renames it, and a name
            that none matches stays as it is.
        source: where the weights come from, for messages.
        ignore: regular expression of whole names that are no part of the module, such as heads of pretraining.

    Raises:
        CheckpointError: weights are missing, left over, doubled or of another shape.
    """
    wanted = module.state_dict()
    found: dict[str, Tensor] = {}
    for theirs, tensor in state.items():
        if not isinstance(tensor, Tensor) or (ignore is not None and re.fullmatch(ignore, theirs)):
            continue
        ours = _renamed(theirs, rules)
        if ours in found:
            raise CheckpointError(f"{source}: two weights are called {ours!r}, the second is {theirs!r} in the file.")
        # a layer's vector may come with axes of one, as (1, C, 1)
        fits = ours in wanted and [n for n in tensor.shape if n != 1] == [n for n in wanted[ours].shape if n != 1]
        found[ours] = tensor.reshape(wanted[ours].shape) if fits else tensor
    # a counter that inference never reads, which older files lack
    counters = {name: value for name, value in wanted.items() if name.endswith("num_batches_tracked")}
    found = counters | found
    problems = [
        f"{kind} {', '.join(sorted(names)[:5])}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        for kind, names in (
            ("missing:", set(wanted) - set(found)),
            ("left over:", set(found) - set(wanted)),
            ("of another shape:", {n for n in set(found) & set(wanted) if found[n].shape != wanted[n].shape}),
        )
        if names
    ]
    if problems:
        raise CheckpointError(f"{source} does not fit {type(module).__name__}: weights {'; '.join(problems)}.")
    module.load_state_dict(found)


def _renamed(name: str, rules: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    return name


def settled(name: str, given: Value | None, stated: Value | None, default: Value, source: str | None) -> Value:
    """The value of a size: what the checkpoint states, else what was given, else the default.

    Raises:
        CheckpointError: a value was given and the checkpoint states another.
    """
    if stated is None:
        return default if given is None else given
    if given is not None and given != stated:
        raise CheckpointError(
            f"{source} has {name} = {stated}, {given} was asked for. Leave {name} out: it comes from the checkpoint."
        )
    return stated


def options(value: Any) -> dict[str, Any]:
    """Entries of a dict or of an option object of a checkpoint; empty for anything else."""
    return dict(value) if isinstance(value, Mapping) else dict(getattr(value, "__dict__", {}))


def weights(content: Any, source: str, *entries: str) -> dict[str, Any]:
    """The weights of a checkpoint: below the first of `entries` that it has, or the content itself.

    Raises:
        CheckpointError: no weights are there.
    """
    outer = options(content)
    state = next((options(outer[entry]) for entry in entries if entry in outer), outer)
    if not any(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(
            f"{source} holds no weights: expected a state dict, bare or under {' or '.join(map(repr, entries))}; "
            f"found the entries {', '.join(map(str, list(outer)[:10])) or 'none'}."
        )
    return state


def count(state: Mapping[str, Any], pattern: str) -> int:
    """One more than the largest number that the group of `pattern` takes among the names; 0 where none matches."""
    return max((int(m[1]) + 1 for name in state if (m := re.fullmatch(pattern, name))), default=0)
