from __future__ import annotations

import argparse
import collections
import enum
import os
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from mmssl.errors import CheckpointError
from mmssl.upstreams.checkpoints import (
    Options,
    Stub,
    read_checkpoint,
    read_pickled,
    read_transformers_folder,
    write_file,
)

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def save(content: Any, path: Path, zipped: bool) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


class Runs:
    """Pickles into a call of any function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module that can be imported while a file is written and not when it is read."""
    module = types.ModuleType("foreign_toolkit")

    class Dictionary:
        def __init__(self) -> None:
            self.symbols = ["a", "b"]

    class Mode(enum.Enum):
        LAYER = "layer_norm"

    class Bag(list):
        pass

    for kind in (Dictionary, Mode, Bag):
        kind.__module__, kind.__qualname__ = "foreign_toolkit", kind.__name__
        setattr(module, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, "foreign_toolkit", module)
    return module


@FORMATS
def test_tensors_options_and_strangers(
    tmp_path: Path, zipped: bool, foreign: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = torch.arange(12.0)
    state = collections.OrderedDict(
        whole=base,
        view=base.view(3, 4)[1:, ::2],
        half=torch.ones(3).half(),
        counts=torch.tensor([1, 2]),
        flags=torch.tensor([True, False]),
        empty=torch.empty(0, 4),
        parameter=torch.nn.Parameter(torch.ones(2, 2)),
    )
    state._metadata = {"": {"version": 1}}
    content = {
        "args": argparse.Namespace(layers=12, name="base", nested={"a": (1, {2})}),
        "model": state,
        "task_state": {"dictionary": foreign.Dictionary(), "bag": foreign.Bag([1, 2])},
        "mode": foreign.Mode.LAYER,
    }
    path = save(content, tmp_path / "model.pt", zipped)
    monkeypatch.delitem(sys.modules, "foreign_toolkit")
    read, stubbed = read_pickled(path)
    assert stubbed == ["foreign_toolkit.Bag", "foreign_toolkit.Dictionary", "foreign_toolkit.Mode"]
    assert "foreign_toolkit" not in sys.modules
    assert list(read["model"]) == list(state)
    for name, tensor in state.items():
        assert torch.equal(read["model"][name], tensor)
        assert read["model"][name].dtype == tensor.dtype
    assert isinstance(read["args"], Options)
    assert vars(read["args"]) == {"layers": 12, "name": "base", "nested": {"a": (1, {2})}}
    assert isinstance(read["task_state"]["dictionary"], Stub)
    assert str(read["mode"]) == "layer_norm"


@FORMATS
def test_what_was_stubbed_is_logged(
    tmp_path: Path,
    zipped: bool,
    foreign: types.ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = save({"model": {"w": torch.ones(2)}, "d": foreign.Dictionary()}, tmp_path / "model.pt", zipped)
    monkeypatch.delitem(sys.modules, "foreign_toolkit")
    assert torch.equal(read_checkpoint(path)["model"]["w"], torch.ones(2))
    assert "foreign_toolkit.Dictionary" in caplog.text


@FORMATS
@pytest.mark.parametrize("nested", [False, True])
def test_a_file_with_code_is_refused_and_nothing_runs(tmp_path: Path, zipped: bool, nested: bool) -> None:
    witness = tmp_path / "witness"
    bomb: Any = Runs(os.system, f"touch {witness}")
    if nested:
        bomb = {"cfg": argparse.Namespace(inner=[{"deep": (bomb,)}])}
    path = save({"model": {"w": torch.ones(2)}, "x": bomb}, tmp_path / "model.pt", zipped)
    with pytest.raises(CheckpointError, match=r"carries code .*system"):
        read_checkpoint(path)
    assert not witness.exists()


@FORMATS
@pytest.mark.parametrize("function", [eval, exec, open, __import__])
def test_builtins_that_run_code_are_refused(tmp_path: Path, zipped: bool, function: Any) -> None:
    witness = tmp_path / "witness"
    code = f"open({str(witness)!r}, 'w')" if function in (eval, exec) else str(witness)
    with pytest.raises(CheckpointError, match="carries code"):
        read_checkpoint(save({"x": Runs(function, code)}, tmp_path / "model.pt", zipped))
    assert not witness.exists()


@FORMATS
def test_detours_to_code_give_stand_ins(tmp_path: Path, zipped: bool) -> None:
    read, stubbed = read_pickled(save({"x": Runs(getattr, torch.nn.Linear, "__init__")}, tmp_path / "m.pt", zipped))
    assert isinstance(read["x"], Stub)
    assert stubbed == ["builtins.getattr", "torch.nn.modules.linear.Linear"]


def _pickle_of(opcodes: bytes, tmp_path: Path) -> Path:
    """A legacy file whose fourth pickle is given opcode by opcode."""
    path = tmp_path / "crafted.pt"
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    path.write_bytes(magic + pickle.dumps(1001, 2) + pickle.dumps({}, 2) + opcodes + pickle.dumps([], 2))
    return path


def test_a_pickle_cannot_change_the_reader_itself(tmp_path: Path) -> None:
    # BUILD with a pair of states sets attributes on whatever is on the stack: here a known function and a class
    change = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}(X\x09\x00\x00\x00_functionI1\nu\x86b."
    with pytest.raises(CheckpointError):
        read_pickled(_pickle_of(change.replace(b"}(X", b"N}(X", 1), tmp_path))
    on_class = b"\x80\x02cargparse\nNamespace\nN}(X\x04\x00\x00\x00evilI1\nu\x86b."
    with pytest.raises(CheckpointError):
        read_pickled(_pickle_of(on_class, tmp_path))
    assert not hasattr(argparse.Namespace, "evil")
    assert not hasattr(Options, "evil")


@FORMATS
def test_a_truncated_file_is_a_clear_error(tmp_path: Path, zipped: bool) -> None:
    path = save({"model": {"w": torch.ones(4000)}, "args": argparse.Namespace(a=1)}, tmp_path / "model.pt", zipped)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(CheckpointError, match=r"model\.pt"):
        read_checkpoint(path)


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no checkpoint file"):
        read_checkpoint(tmp_path / "absent.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(CheckpointError, match=r"text\.pt"):
        read_checkpoint(tmp_path / "text.pt")
    (tmp_path / "bad.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(CheckpointError, match="safetensors"):
        read_checkpoint(tmp_path / "bad.safetensors")


def test_a_tensor_outside_of_its_storage_is_refused(tmp_path: Path) -> None:
    storage = torch.ones(2).untyped_storage()
    bad = Runs(
        torch._utils._rebuild_tensor_v2,
        torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True),
        0,
        (1000,),
        (1,),
        False,
        collections.OrderedDict(),
    )
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        read_pickled(save({"w": bad}, tmp_path / "model.pt", True))


def test_a_folder_in_shards_is_read_whole_and_stays_in_its_folder(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / "config.json").write_text('{"model_type": "hubert"}')
    save_file({"a": torch.ones(2)}, tmp_path / "model-1.safetensors")
    save_file({"b": torch.zeros(3)}, tmp_path / "model-2.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}')
    config, preprocessor, state = read_transformers_folder(tmp_path)
    assert config == {"model_type": "hubert"}
    assert preprocessor is None
    assert set(state) == {"a", "b"}
    index.write_text('{"weight_map": {"a": "../elsewhere.safetensors"}}')
    with pytest.raises(CheckpointError, match="outside of its folder"):
        read_transformers_folder(tmp_path)
    index.unlink()
    with pytest.raises(CheckpointError, match="neither"):
        read_transformers_folder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        read_transformers_folder(tmp_path)


def test_writing_leaves_the_old_file_if_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_file(path, b"old")

    def fails(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="No space"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
