"""What a store's features depend on, as data with one digest.

Features are a function of the audio, the upstream's weights and configuration, and of what is kept of them. A
fingerprint holds all of this but the audio, which has a key of its own per clip (`input_key`). Batch size, order,
number of workers and the machine are left out, because features do not depend on them.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mmssl
from mmssl.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from mmssl.upstreams.base import Upstream

SCHEMA = 1
"""Version of the store's layout on disk."""

STATISTICS = ("mean", "std", "max")
FRAME_TYPES = ("float32", "float16")
_PATH_ARGUMENTS = ("path", "folder", "dir", "file", "checkpoint", "weights")


@dataclass(frozen=True)
class Fingerprint:
    """Everything but the audio that features depend on.

    Attributes:
        fields: plain values (JSON): see `make_fingerprint`.
    """

    fields: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """64 hex digits: SHA-256 of the fields as canonical JSON."""
        return hashlib.sha256(canonical_json(self.fields).encode()).hexdigest()

    def differences(self, other: Fingerprint) -> list[str]:
        """One line "field: this one -> the other" per field whose value differs."""
        lines: list[str] = []
        for name in sorted({*self.fields, *other.fields}):
            mine, theirs = self.fields.get(name), other.fields.get(name)
            if canonical_json(mine) != canonical_json(theirs):
                lines.append(f"{name}: {_short(mine)} -> {_short(theirs)}")
        return lines


def make_fingerprint(
    upstream: Upstream,
    *,
    kwargs: Mapping[str, Any] | None = None,
    frames: bool = True,
    pooled: Sequence[str] = ("mean", "std"),
    layers: Sequence[int] | None = None,
    dtype: str = "float32",
    stride: int = 1,
    streams: Sequence[str] | None = None,
    **options: Any,
) -> Fingerprint:
    """Fingerprint of what `extract` writes with these settings.

    Args:
        upstream: the built upstream.
        kwargs: what it was built with; a value that names a file or folder is replaced by a hash of its content.
            None where they are not known: then the plain public attributes of all its modules stand for them
            (an attribute that changes while it runs, such as a counter, must begin with an underscore).
        frames: whether frames are kept.
        pooled: statistics over time that are kept: "mean", "std", "max".
        layers: numbers of the layers that are kept, of every stream, negative ones from the end; None keeps all.
        dtype: type of the frames on disk, "float32" or "float16". Pooled values are always float32.
        stride: of the frames, every `stride`-th is kept; pooled values are over all.
        streams: that are kept; None keeps all.
        options: further plain values that features depend on, such as the arithmetic.

    Raises:
        ConfigError: an unknown statistic or type, a layer that does not exist, a stride below 1, or nothing to keep.
    """
    wrong = [name for name in pooled if name not in STATISTICS]
    if wrong:
        hint = did_you_mean(wrong[0], STATISTICS)
        raise ConfigError(f"There is no pooled statistic {wrong[0]!r}.{hint} Known ones: {', '.join(STATISTICS)}.")
    if dtype not in FRAME_TYPES:
        raise ConfigError(f"dtype of the frames must be one of {', '.join(FRAME_TYPES)}, got {dtype!r}.")
    if isinstance(stride, bool) or not isinstance(stride, int) or stride < 1:
        raise ConfigError(f"stride must be a whole number of frames, 1 or more, got {stride!r}.")
    if not frames and not pooled:
        raise ConfigError("frames=False with no pooled statistic keeps nothing: ask for one of the two.")
    declared = {}
    for name, stream in upstream.spec.streams.items():
        if streams is not None and name not in streams:
            continue
        kept = resolve_layers(layers, stream.num_layers, name)
        declared[name] = {
            "num_layers": stream.num_layers,
            "layers": kept,
            "hidden_sizes": [stream.hidden_sizes[k] for k in kept],
            "hop_lengths": [stream.hop_lengths[k] * stride for k in kept],
            "tokens_per_frame": stream.tokens_per_frame,
        }
    fields = {
        "schema": SCHEMA,
        "mmssl": mmssl.__version__,
        "upstream": target_name(upstream),
        "weights": weights_hash(upstream),
        "sample_rate": upstream.spec.sample_rate,
        "streams": declared,
        "frames": bool(frames),
        "dtype": dtype,
        "pooled": [name for name in STATISTICS if name in pooled],
    }
    # only where they are used, so that stores of plain features keep their fingerprints
    fields |= {"stride": stride} if stride > 1 else {}
    fields |= {"video_fps": upstream.spec.video_fps} if upstream.spec.video_fps else {}
    fields |= options
    if kwargs is None:
        fields["attributes"] = _attributes_hash(upstream)
    else:
        fields["kwargs"] = {name: _argument(name, kwargs[name]) for name in sorted(kwargs)}
    return Fingerprint(fields)


def resolve_layers(layers: Iterable[int] | None, num_layers: int, stream: str) -> list[int]:
    """Layer numbers as 0 ... num_layers - 1, in the order given; None means all.

    Raises:
        ConfigError: a layer does not exist or is named twice.
    """
    if layers is None:
        return list(range(num_layers))
    given = list(layers)
    resolved = [k + num_layers if k < 0 else k for k in given]
    if not resolved or len(set(resolved)) < len(resolved) or not all(0 <= k < num_layers for k in resolved):
        raise ConfigError(
            f"layers must be different numbers from {-num_layers} to {num_layers - 1} for the stream {stream!r}, "
            f"which has {num_layers} layers; got {given}."
        )
    return resolved


def target_name(upstream: nn.Module) -> str:
    """Dotted path of the class; with a hash of its source file where the class does not come with mmssl."""
    kind = type(upstream)
    if kind.__module__.split(".")[0] == "mmssl":
        return f"{kind.__module__}.{kind.__qualname__}"
    source = inspect.getsourcefile(sys.modules[kind.__module__]) if kind.__module__ in sys.modules else None
    if source is None or not Path(source).is_file():
        return f"{kind.__module__}.{kind.__qualname__}"
    # a plug-in file's module name depends on where the file lies, which must not matter
    module = Path(source).stem if kind.__module__.startswith("mmssl_plugin_") else kind.__module__
    return f"{module}.{kind.__qualname__} (source {file_hash(source)[:16]})"


def weights_hash(module: nn.Module) -> str:
    """SHA-256 over name, type, shape and bytes of all parameters and buffers, saved with the state or not."""
    import torch

    digest = hashlib.sha256()
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name in sorted(named):
        tensor = named[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def input_key(content: str, start: float, duration: float | None) -> str:
    """Key of what one clip is computed from: hash of the file's bytes, and the stretch of it in seconds."""
    return f"{content}:{float(start)!r}:{None if duration is None else float(duration)!r}"


def canonical_json(value: Any) -> str:
    """One spelling per value: sorted keys, no spaces, tuples as lists."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _argument(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _argument(str(k), v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_argument(name, item) for item in value]
    is_path = name.lower().endswith(_PATH_ARGUMENTS)
    if (isinstance(value, Path) or (isinstance(value, str) and is_path)) and Path(value).exists():
        return {"content": _content_hash(Path(value))}
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ConfigError(
        f"The upstream's argument {name!r} is a {type(value).__name__}, which cannot be part of a fingerprint: "
        f"use numbers, strings, lists and paths, or hand over the built upstream itself."
    )


def _content_hash(path: Path) -> str:
    """Of a file: its bytes. Of a folder: its configuration files, since the weights are hashed as loaded."""
    if path.is_file():
        return file_hash(path)
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.suffix in (".json", ".yaml", ".yml") and p.is_file()):
        if not file.name.endswith(".index.json"):
            digest.update(f"{file.relative_to(path).as_posix()}\0{file_hash(file)}\0".encode())
    return digest.hexdigest()


def _attributes_hash(module: nn.Module) -> str:
    """Hash of the plain public attributes of a module and all modules in it."""
    found = {
        f"{path}.{name}": value
        for path, part in module.named_modules()
        for name, value in vars(part).items()
        if not name.startswith("_") and name != "training" and _is_plain(value)
    }
    return hashlib.sha256(canonical_json(found).encode()).hexdigest()


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _short(value: Any) -> str:
    text = "absent" if value is None else canonical_json(value)
    return text if len(text) <= 90 else f"{text[:60]}... ({len(text)} characters)"
