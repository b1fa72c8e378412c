"""What a trained system is on disk, and how it is written and read back without running code from the folder.

A model folder holds `model.yaml` (plain values: what to build) and `model.safetensors` (the weights of the task
module: interface and head). An exported folder holds the same of all folds, see mmssl/stages/export_folder.py.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmssl import __version__
from mmssl.errors import CheckpointError, MmsslError
from mmssl.files import replace_file
from mmssl.registry import HEADS, INTERFACES, UPSTREAMS, Registry

if TYPE_CHECKING:
    from torch import Tensor, nn

SCHEMA = 1
DESCRIPTION = "model.yaml"
WEIGHTS = "model.safetensors"
TASKS = ("classification", "regression")
REQUIRED = ("upstream", "stream", "sample_rate", "interface", "hidden_sizes", "hop_lengths", "head", "task", "label")
# what a loss needs and a prediction does not: never part of a saved model
_TRAINING_ONLY = ("class_weights",)


def build_task(description: Mapping[str, Any], *, trust_targets: bool = False) -> nn.Module:
    """Build the untrained task module (interface and head) that a description names.

    Args:
        description: the fields of `model.yaml`.
        trust_targets: also accept parts that are neither mmssl's nor an installed plug-in's.

    Raises:
        CheckpointError: a field is missing or wrong, or a part is not trusted.
    """
    from mmssl.downstream.heads import build_head
    from mmssl.downstream.tasks import UtteranceClassification, UtteranceRegression
    from mmssl.interfaces.base import build_interface
    from mmssl.types import StreamSpec

    check_description(description)
    parts = {}
    for kind, registry in (("interface", INTERFACES), ("head", HEADS)):
        parts[kind] = (str(description[kind]["name"]), dict(description[kind].get("kwargs") or {}))
        check_target(parts[kind][0], registry, trust_targets)
        check_nested(parts[kind][1], trust_targets)
    name, kwargs = parts["interface"]
    layers = StreamSpec(tuple(description["hidden_sizes"]), tuple(description["hop_lengths"]))
    interface = build_interface(name, layers, **kwargs)
    name, kwargs = parts["head"]
    head = build_head(name, interface.output_size, num_outputs(description), **kwargs)
    if description["task"] == "classification":
        return UtteranceClassification(interface, head)
    return UtteranceRegression(interface, head)


def num_outputs(description: Mapping[str, Any]) -> int:
    """Number of outputs of the head: classes, or regressed values."""
    if description["task"] == "classification":
        return len(description["classes"])
    label = description["label"]
    return 1 if isinstance(label, str) else len(label)


def save_model(folder: str | Path, task_module: nn.Module, description: Mapping[str, Any]) -> None:
    """Write `model.safetensors` and `model.yaml` into a folder, each atomically, the description last.

    Args:
        folder: made if it does not exist.
        task_module: the trained task; its state dict is what is saved, on the CPU.
        description: the fields of `model.yaml`; `schema`, `mmssl_version` and `weights_sha256` are added.

    Raises:
        CheckpointError: the description misses a field, or a field is wrong.
    """
    check_description(description)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    weights = pack_weights(task_module)
    fields = {"schema": SCHEMA, "mmssl_version": __version__, **description, "weights_sha256": _sha256(weights)}
    write_atomic(target / WEIGHTS, weights)
    write_atomic(target / DESCRIPTION, dump_yaml(fields))


def load_model(folder: str | Path, *, trust_targets: bool = False) -> tuple[nn.Module, dict[str, Any]]:
    """Read a model folder back.

    Args:
        folder: as written by `save_model`.
        trust_targets: also accept parts that are neither mmssl's nor an installed plug-in's; importing such a part runs
            its code.

    Returns:
        The task module in eval mode, no parameter asking for gradients, and the fields of `model.yaml`.

    Raises:
        CheckpointError: a file is missing, damaged, of another version, not trusted, or the weights do not fit.
    """
    description = read_description(Path(folder) / DESCRIPTION)
    weights = read_weights(Path(folder) / WEIGHTS, description.get("weights_sha256"))
    return assemble(description, weights, Path(folder), trust_targets=trust_targets), description


def assemble(
    description: Mapping[str, Any], weights: Mapping[str, Tensor], origin: Path, *, trust_targets: bool = False
) -> nn.Module:
    """Build the task of a description and give it its weights; eval mode, no gradients.

    Raises:
        CheckpointError: names or shapes of the weights do not fit the described task; `origin` is named.
    """
    try:
        task = build_task(description, trust_targets=trust_targets)
        task.load_state_dict({k: v for k, v in weights.items() if k.split(".")[0] not in _TRAINING_ONLY})
    except CheckpointError:
        raise
    except (RuntimeError, TypeError, ValueError, MmsslError) as error:
        raise CheckpointError(
            f"The model in {origin} cannot be rebuilt from its {DESCRIPTION} (written by mmssl "
            f"{description.get('mmssl_version', 'unknown')}, this is {__version__}): {error} "
            f"Both files must come from one run; train again, or install that version."
        ) from error
    return task.eval().requires_grad_(False)


def read_description(path: Path) -> dict[str, Any]:
    """Read and check a `model.yaml`; plain values only, no object is ever built from it.

    Raises:
        CheckpointError: it is missing, not YAML, of another schema, or lacks a field.
    """
    import yaml

    if not path.is_file():
        raise CheckpointError(
            f"There is no {path.name} in {path.parent}: it is not the folder of a trained model. "
            f"Give an experiment folder (exp/NAME, after the train stage) or a folder written by `mmssl export`."
        )
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not readable YAML: {error}. Write it again with the train stage.") from error
    if not isinstance(fields, dict):
        raise CheckpointError(
            f"{path} must hold a mapping, got {type(fields).__name__}. Write it again with the train stage."
        )
    if fields.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{path} has schema {fields.get('schema')!r} (written by mmssl {fields.get('mmssl_version', 'unknown')}); "
            f"this mmssl {__version__} reads schema {SCHEMA}. Install the version that wrote it, or train again."
        )
    check_description(fields, str(path))
    return fields


def check_description(fields: Mapping[str, Any], origin: str = "The model description") -> None:
    """Refuse a description that lacks a field or has one of the wrong kind.

    Raises:
        CheckpointError: names the field and what it must be.
    """

    def wrong(message: str) -> CheckpointError:
        return CheckpointError(
            f"{origin}: {message}. Write it again with the train stage, or with this version of mmssl."
        )

    missing = [name for name in REQUIRED if name not in fields]
    if missing:
        raise wrong(f"it lacks {', '.join(missing)}; needed are {', '.join(REQUIRED)}")
    if fields["task"] not in TASKS:
        raise wrong(f"task is {fields['task']!r}, allowed are {' and '.join(TASKS)}")
    upstream = fields["upstream"]
    if not isinstance(upstream, Mapping) or not isinstance(upstream.get("_target_"), str):
        raise wrong(f"upstream must be a mapping with a _target_, got {upstream!r}")
    for part in ("interface", "head"):
        if not isinstance(fields[part], Mapping) or not isinstance(fields[part].get("name"), str):
            raise wrong(f"{part} must be a mapping with a name and kwargs, got {fields[part]!r}")
    for sizes in ("hidden_sizes", "hop_lengths"):
        value = fields[sizes]
        if not isinstance(value, Sequence) or not value or not all(isinstance(v, int) and v >= 0 for v in value):
            raise wrong(f"{sizes} must be a list of one whole number per layer, got {value!r}")
    classes = fields.get("classes")
    if fields["task"] == "classification" and (not isinstance(classes, Sequence) or len(classes) < 2):
        raise wrong(f"classes must list at least two class names, got {classes!r}")


def check_target(target: str, registry: Registry, trust_targets: bool) -> None:
    """Refuse a target whose import would run code that is neither mmssl's nor an installed plug-in's.

    Allowed are the names that the registry knows, dotted paths of parts in mmssl and dotted paths of entry points.

    Raises:
        CheckpointError: the target is none of these, and `trust_targets` is False.
    """
    if trust_targets or target in registry.builtins or target in registry.sources():
        return
    if target.startswith("mmssl.") and not target.endswith(".py") and ".py:" not in target:
        found = registry.resolve(target)
        # a function or a name imported into a module of mmssl could be anything: only mmssl's own parts pass
        if inspect.isclass(found) and found.__module__.startswith("mmssl.") and _is_part(found, registry):
            return
    elif target in {point.value.replace(":", ".") for points in registry._entry_points().values() for point in points}:
        return
    raise CheckpointError(
        f"The model asks for the {registry.kind} {target!r}, which is neither part of mmssl nor an installed plug-in; "
        f"importing it would run its code. If you trust who made the folder, pass --trust (trust_targets=True); "
        f"else get the model from someone you trust. Known {registry.kind}s: {', '.join(registry.names())}."
    )


def check_nested(kwargs: Mapping[str, Any], trust_targets: bool) -> None:
    """Refuse arguments that name, at any depth, a part which is not trusted: an interface around another one, say.

    Raises:
        CheckpointError: see `check_target`.
    """
    registries = {"interface": INTERFACES, "head": HEADS, "upstream": UPSTREAMS, "_target_": UPSTREAMS}
    for key, value in kwargs.items():
        if key in registries and isinstance(value, str):
            check_target(value, registries[key], trust_targets)
        for item in value if isinstance(value, list | tuple) else [value]:
            if isinstance(item, Mapping):
                check_nested(item, trust_targets)


def _is_part(found: type, registry: Registry) -> bool:
    return registry.file_base is None or any(
        f"{base.__module__}.{base.__qualname__}" == registry.file_base for base in inspect.getmro(found)
    )


def pack_weights(task_module: nn.Module) -> bytes:
    """The task's state dict as safetensors bytes, without what only training needs."""
    from safetensors.torch import save

    state = task_module.state_dict()
    kept = {k: v.detach().cpu().contiguous().clone() for k, v in state.items() if k.split(".")[0] not in _TRAINING_ONLY}
    return save(kept)


def read_weights(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Read safetensors; where a sha256 is given, the file must have it.

    Raises:
        CheckpointError: the file is missing, damaged or another one than the description was written with.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    if not path.is_file():
        raise CheckpointError(
            f"The weights {path} are missing. Copy the whole folder, or write it again with the train stage."
        )
    data = path.read_bytes()
    if sha256 is not None and _sha256(data) != sha256:
        raise CheckpointError(
            f"{path} is not the file that its {DESCRIPTION} was written with (sha256 differs): it is damaged, or the "
            f"two come from different runs. Copy the folder again, or run the train stage again."
        )
    try:
        return load(data)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}. Copy or train it again.") from error


def dump_yaml(fields: Mapping[str, Any]) -> bytes:
    """Plain YAML in the order of the fields.

    Raises:
        CheckpointError: a value is not a plain one (number, text, list, mapping).
    """
    import yaml

    try:
        text = yaml.safe_dump(_plain(fields), sort_keys=False, allow_unicode=True, width=120)
    except yaml.YAMLError as error:
        raise CheckpointError(f"A model description holds a value that YAML cannot write: {error}") from error
    return text.encode("utf-8")


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all: temporary name, fsync, replace."""
    with replace_file(path) as file:
        file.write(data)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _plain(value: Any) -> Any:
    """Tuples, paths and other sequences as YAML's own kinds."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value
