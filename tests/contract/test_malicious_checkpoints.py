"""No loader of any built-in upstream runs what a checkpoint carries."""

from __future__ import annotations

import builtins
import contextlib
import inspect
import json
import os
import pickle
import runpy
import subprocess
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmssl import load_upstream
from mmssl.errors import CheckpointError
from mmssl.registry import UPSTREAMS
from mmssl.upstreams.catalog import CATALOG
from mmssl.upstreams.checkpoints import read_checkpoint

TINY = runpy.run_path(str(Path(__file__).with_name("tiny.py")))["TINY"]

# not a complaint about sizes or names, which would mean that the file was read
REFUSAL = r"[Rr]efused|is not a readable|cannot be loaded"
CODE = "open({!r}, 'w').close()"
# arguments without which an upstream cannot be built at all
NEEDED: dict[str, dict[str, Any]] = {
    "torchvision": {"name": "resnet18"},
    "timm": {"name": "resnet18"},
    "torchaudio": {"bundle": "WAV2VEC2_BASE"},
    "hf_vision": {"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    "hf_av": {"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
}
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
# a tiny model of the wrapper's own kind, where it is not a speech model
CONFIGS: dict[str, dict[str, Any]] = {
    "hf_vision": {"model_type": "vit", "image_size": 16, "patch_size": 8} | SIZES,
    "hf_audio": {"model_type": "audio-spectrogram-transformer", "max_length": 64} | SIZES,
    "hf_av": TINY["hf_av"][0]["config"],
}
SPEECH = (
    {"model_type": "hubert", "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    | {"conv_dim": [8], "conv_kernel": [10], "conv_stride": [5], "num_feat_extract_layers": 1}
    | SIZES
)


class Runs:
    """Pickles into a call."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def payloads(trace: Path) -> dict[str, Runs]:
    """Calls that leave a file behind when they run."""
    return {
        "os.system": Runs(os.system, f"touch {trace}"),
        "subprocess": Runs(subprocess.check_call, ["touch", str(trace)]),
        "exec": Runs(builtins.exec, CODE.format(str(trace))),
        "eval": Runs(builtins.eval, CODE.format(str(trace))),
        "open": Runs(builtins.open, str(trace), "w"),
        "pathlib": Runs(Path.touch, trace),
        "pickle.loads": Runs(pickle.loads, pickle.dumps(Runs(os.system, f"touch {trace}"))),
    }


def contents(payload: Runs) -> dict[str, Any]:
    """Where a payload can sit in what looks like a checkpoint."""
    weight = torch.ones(2)
    return {
        "alone": payload,
        "beside the weights": {"model": OrderedDict(weight=weight), "args": payload},
        "as options": {"model": {"self_attn.weight": weight}, "cfg": {"model": payload}},
        "as a weight": {"state_dict": {"weight": weight, "other": payload}},
    }


def save(content: Any, path: Path, form: str) -> Path:
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    return path


def loaders(parameter: str, folders: bool) -> list[str]:
    """Built-in upstreams that load weights from a file or a folder given as this argument."""
    return [
        name
        for name in UPSTREAMS.builtins
        if parameter in inspect.signature(UPSTREAMS.resolve(name)).parameters
        and (not folders or any("folder" in form for form in CATALOG[name].checkpoints))
    ]


def refuses(load: Callable[[], Any], trace: Path) -> None:
    with pytest.raises(CheckpointError, match=REFUSAL):
        load()
    assert not trace.exists(), "what the checkpoint carries was run"


pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")
FORMS = pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])


@pytest.mark.parametrize("kind", payloads(Path("x")))
def test_the_payloads_work(kind: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    try:
        pickle.loads(pickle.dumps(payloads(trace)[kind]))
    finally:
        assert trace.exists()


@FORMS
@pytest.mark.parametrize("name", loaders("checkpoint", folders=False))
def test_a_file_that_carries_code_is_refused(name: str, form: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    for place, content in contents(payloads(trace)["os.system"]).items():
        for suffix in (".pt", ".bin", ".safetensors"):
            path = save(content, tmp_path / f"{place.replace(' ', '_')}{suffix}", form)
            refuses(lambda path=path: load_upstream(name, checkpoint=str(path), **NEEDED.get(name, {})), trace)  # type: ignore[misc]


@FORMS
@pytest.mark.parametrize("weights", ["pytorch_model.bin", "model.safetensors", "shard"])
@pytest.mark.parametrize(
    ("name", "parameter"), [(n, p) for p in ("checkpoint", "path") for n in loaders(p, folders=True)]
)
def test_a_folder_that_carries_code_is_refused(
    name: str, parameter: str, weights: str, form: str, tmp_path: Path
) -> None:
    trace, folder = tmp_path / "trace", tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIGS.get(name, SPEECH)))
    if weights == "shard":
        weights = "pytorch_model-00001-of-00001.bin"
        index = {"metadata": {"total_size": 8}, "weight_map": {"feature_projection.projection.weight": weights}}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    save({"feature_projection.projection.weight": payloads(trace)["os.system"]}, folder / weights, form)
    refuses(lambda: load_upstream(name, **{parameter: str(folder)}, **NEEDED.get(name, {})), trace)


@FORMS
@pytest.mark.parametrize("kind", payloads(Path("x")))
def test_the_reader_of_all_loaders_runs_nothing(kind: str, form: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    for place, content in contents(payloads(trace)[kind]).items():
        path = save(content, tmp_path / "model.pt", form)
        # names that cannot mean code are replaced by stand-ins, which a loader then refuses
        with (
            contextlib.nullcontext()
            if kind == "pathlib" and form != "pickle"
            else pytest.raises(CheckpointError, match=REFUSAL)
        ):
            read_checkpoint(path)
        assert not trace.exists(), place


def test_no_other_module_reads_pickles() -> None:
    """Reading goes through `mmssl.upstreams.checkpoints`, which the tests above try."""
    package = Path(inspect.getfile(load_upstream)).parents[1]
    for path in package.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "pickle.load" not in text, path
        assert path.name == "checkpoints.py" or "torch.load(" not in text, path
