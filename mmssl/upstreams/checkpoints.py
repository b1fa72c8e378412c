"""Reading weights without running what a file carries.

Safetensors and `torch.load(weights_only=True)` come first. Files that hold more than tensors (fairseq pickles its
options and dictionaries) go through a reader that knows a short list of names: tensors, containers and option objects.
Any other name in the file becomes an inert stand-in, which is reported; a name that can only mean code is refused.
Nothing that a file names is ever imported or called.
"""

from __future__ import annotations

import io
import json
import logging
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from mmssl.errors import CheckpointError
from mmssl.files import replace_file

_LOG = logging.getLogger(__name__)

# a pickle that names one of these wants to run something
_CODE = (
    "os io _io posix nt posixpath ntpath sys subprocess shutil socket runpy importlib imp pty ctypes pickle _pickle "
    "marshal multiprocessing threading code codeop commands webbrowser urllib http ftplib asyncio signal platform "
    "site pip pdb bdb timeit cProfile profile trace doctest types operator "
    "builtins.eval builtins.exec builtins.compile builtins.open builtins.input builtins.__import__ "
    "builtins.breakpoint builtins.globals builtins.locals builtins.vars builtins.setattr builtins.delattr"
)
_BUILTINS = (set, frozenset, dict, list, tuple, int, float, bool, complex, str)
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}


class Options:
    """Option values of a file (`argparse.Namespace` and its like): attributes and nothing else."""

    def __setstate__(self, state: Any) -> None:
        """Take over the values."""
        if isinstance(state, Mapping):
            self.__dict__.update({str(k): v for k, v in state.items()})


class Stub:
    """Stand-in for an object of an unknown class; takes whatever is done to it and does nothing."""

    name = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> Stub:
        """Make one from any arguments."""
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # what an Enum member or a path was made from, so that plain values can still be read
        self.arguments = args

    def __call__(self, *args: Any, **kwargs: Any) -> Stub:
        """Whatever is called gives another stand-in."""
        return Stub()

    def __setstate__(self, state: Any) -> None:
        """Keep what would have been the object's attributes."""
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """Accept an element as a list would."""

    def extend(self, items: Any) -> None:
        """Accept elements as a list would."""

    def __str__(self) -> str:
        arguments: tuple[Any, ...] = getattr(self, "arguments", ())
        return str(arguments[0]) if len(arguments) == 1 else f"<{type(self).name}>"


class _Known:
    """A function that a pickle may call, in a shell whose attributes a pickle cannot set."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __setattr__(self, name: str, value: Any) -> None:
        raise CheckpointError("The checkpoint tries to change a function: refused.")

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return torch.as_strided(storage, tuple(size), tuple(stride), offset)


_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch._utils", "_rebuild_parameter_with_state"): lambda data, *_: data,
    ("torch", "Size"): lambda *items: tuple(*items),
    ("torch", "device"): lambda *_: "cpu",
    ("copyreg", "_reconstructor"): lambda kind, *_: kind.__new__(kind),
    ("copy_reg", "_reconstructor"): lambda kind, *_: kind.__new__(kind),
    ("_codecs", "encode"): lambda text, *_: text.encode("latin1"),
}


class _Reader(pickle.Unpickler):
    """Unpickler that imports nothing: every name is looked up in the tables above."""

    def __init__(self, file: BinaryIO, storage: Callable[[tuple[Any, ...]], Tensor], stubbed: set[str]) -> None:
        super().__init__(file)
        self._storage, self._stubbed = storage, stubbed

    def find_class(self, module: str, name: str) -> Any:
        """The object that stands for a name of the file."""
        module = "builtins" if module == "__builtin__" else module
        if (module, name) in _FUNCTIONS:
            return _Known(_FUNCTIONS[module, name])
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) in (("argparse", "Namespace"), ("types", "SimpleNamespace")):
            return type("Options", (Options,), {})
        if module in ("torch", "torch.storage", "torch.cuda") and name.endswith("Storage"):
            return name.removesuffix("Storage")
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module == "builtins":
            for allowed in _BUILTINS:
                if allowed.__name__ == name:
                    return _Known(allowed)
        if {module.split(".")[0], f"{module}.{name}"} & set(_CODE.split()):
            raise CheckpointError(f"the file carries code ({module}.{name}) and was not read any further")
        self._stubbed.add(f"{module}.{name}")
        return type("Stub", (Stub,), {"name": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> Any:
        """The flat tensor behind a storage reference."""
        if isinstance(pid, tuple) and len(pid) > 1 and pid[0] == "module":
            return pid[1]  # a class with its source code, which the legacy format adds: the stand-in
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise CheckpointError(f"unknown storage reference {pid!r}")
        return self._storage(pid)


def read_checkpoint(path: str | Path) -> Any:
    """Read a .safetensors, .pt, .pth, .bin or .ckpt file on the CPU.

    Args:
        path: of the file.

    Returns:
        What the file holds: a dict of tensors, or a dict with more around it. Objects of unknown classes are `Stub`s,
        option namespaces are `Options`.

    Raises:
        CheckpointError: there is no such file, it is damaged, or it carries code.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint file {str(path)!r} (seen from {Path.cwd()}).")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        _LOG.debug("torch.load(weights_only=True) cannot read %s: %s", path, error)
    content, stubbed = read_pickled(path)
    if stubbed:
        _LOG.warning(
            "%s holds objects of classes that were not loaded; inert stand-ins replace them: %s",
            path,
            ", ".join(stubbed),
        )
    return content


def read_pickled(path: str | Path) -> tuple[Any, list[str]]:
    """Read a file of `torch.save`, zip or legacy format, through the table of known names.

    Returns:
        The content, and the sorted names that stand-ins replace.

    Raises:
        CheckpointError: the file is damaged or carries code.
    """
    path, stubbed = Path(path), set[str]()
    try:
        content = _read_zip(path, stubbed) if zipfile.is_zipfile(path) else _read_legacy(path, stubbed)
    except CheckpointError as error:
        raise CheckpointError(f"Refused to load {path}: {error}. Use a file from a source that you trust.") from None
    except Exception as error:
        raise CheckpointError(
            f"{path} is not a readable checkpoint: {type(error).__name__}: {error}. It may be damaged or incomplete."
        ) from error
    return content, sorted(stubbed)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}.") from error


def _read_zip(path: Path, stubbed: set[str]) -> Any:
    with zipfile.ZipFile(path) as archive:
        names = [n for n in archive.namelist() if n == "data.pkl" or n.endswith("/data.pkl")]
        if len(names) != 1:
            raise CheckpointError("the archive holds no data.pkl")
        root = names[0].removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise CheckpointError("it was written on a big-endian machine")
        storages: dict[str, Tensor] = {}

        def storage(pid: tuple[Any, ...]) -> Tensor:
            key = str(pid[2])
            if key not in storages:
                storages[key] = _flat(archive.read(f"{root}data/{key}"), _dtype(pid[1]))
            return storages[key]

        return _Reader(io.BytesIO(archive.read(names[0])), storage, stubbed).load()


def _read_legacy(path: Path, stubbed: set[str]) -> Any:
    """The format before PyTorch 1.6: four pickles, the storages' keys, then each storage's size and bytes."""
    storages: dict[str, Tensor] = {}

    def storage(pid: tuple[Any, ...]) -> Tensor:
        key, dtype = str(pid[2]), _dtype(pid[1])
        if key not in storages:
            storages[key] = torch.empty(int(pid[4]), dtype=dtype)
        view = pid[5] if len(pid) > 5 else None
        return storages[key] if view is None else storages[key][view[1] : view[1] + view[2]]

    with path.open("rb") as file:
        size = path.stat().st_size
        if _Reader(file, storage, stubbed).load() != _LEGACY_MAGIC:
            raise CheckpointError("it is not a file of torch.save")
        _Reader(file, storage, stubbed).load()
        _Reader(file, storage, stubbed).load()
        content = _Reader(file, storage, stubbed).load()
        for key in _Reader(file, storage, stubbed).load():
            count = int.from_bytes(file.read(8), "little")
            target = storages[str(key)]
            if count != target.numel() or count * target.element_size() > size:
                raise CheckpointError("a storage has another size than its tensors")
            target.copy_(_flat(file.read(count * target.element_size()), target.dtype))
    return content


def _dtype(kind: Any) -> torch.dtype:
    if isinstance(kind, torch.dtype):
        return kind
    if kind not in _DTYPES:
        raise CheckpointError(f"unknown storage type {kind!r}")
    return _DTYPES[kind]


def _flat(data: bytes, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)


def read_transformers_folder(folder: str | Path) -> tuple[dict[str, Any], dict[str, Any] | None, dict[str, Tensor]]:
    """Read a folder in `save_pretrained` layout: safetensors or .bin, whole or in shards.

    Returns:
        config.json, preprocessor_config.json (None where absent), and the weights by transformers' names.

    Raises:
        CheckpointError: the folder lacks a file, or one cannot be read.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    preprocessor = folder / "preprocessor_config.json"
    for stem in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{stem}.index.json"
        if (folder / stem).is_file():
            shards = [stem]
        elif index.is_file():
            shards = sorted(set(read_json(index)["weight_map"].values()))
        else:
            continue
        state: dict[str, Tensor] = {}
        for shard in shards:
            if Path(shard).name != shard:
                raise CheckpointError(f"{index} names a file outside of its folder: {shard!r}.")
            state |= read_checkpoint(folder / shard)
        return config, read_json(preprocessor) if preprocessor.is_file() else None, state
    raise CheckpointError(f"{folder} holds neither model.safetensors nor pytorch_model.bin, nor an index of shards.")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file as a dict, or raise a CheckpointError that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"There is no readable {path}: {error.strerror}.") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}.") from error


def write_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    with replace_file(path) as file:
        file.write(data)
