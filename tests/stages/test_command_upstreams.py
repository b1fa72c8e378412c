from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mmssl.registry import UPSTREAMS, register_upstream
from mmssl.stages.cli import main

BROKEN = """
import torch
from mmssl.testing.dummies import DummyAudio
from mmssl.types import Layers


class Padded(DummyAudio):
    def extract(self, inputs):
        layers = super().extract(inputs)["audio"]
        return {"audio": Layers(tuple(h - h.mean(1, keepdim=True) for h in layers.hidden_states), layers.lengths)}
"""


def test_the_list_names_every_builtin_with_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["upstreams"]) == 0
    out = capsys.readouterr().out
    for name, target in UPSTREAMS.builtins.items():
        assert any(line.startswith(name) and target in line for line in out.splitlines())


def test_json_and_modality(capsys: pytest.CaptureFixture[str]) -> None:
    register_upstream("mine_for_test", lambda: None)
    try:
        assert main(["upstreams", "--json", "--modality", "speech"]) == 0
        rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["upstreams"]}
        assert main(["upstreams", "--json", "--modality", "image"]) == 0
        images = {row["name"] for row in json.loads(capsys.readouterr().out)["upstreams"]}
    finally:
        UPSTREAMS.unregister("mine_for_test")
    assert rows["fbank"]["modalities"] == ["speech", "audio"]
    assert "wavlm" in rows["hf"]["families"]
    assert rows["mine_for_test"]["source"].startswith("this process")
    assert "fbank" not in images
    assert "mine_for_test" in images


def test_clashes_are_reported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(type(UPSTREAMS), "clashes", lambda self: {"fbank": "mmssl and package other"})
    assert main(["upstreams"]) == 0
    assert "'fbank' is offered by mmssl and package other" in capsys.readouterr().out


def test_listing_imports_no_torch() -> None:
    code = (
        "import sys; from mmssl.stages.cli import main; main(['upstreams']); "
        "bad = {'torch', 'transformers', 'numpy'} & set(sys.modules); sys.exit(f'imported {bad}' if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_check_upstream_passes_a_good_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-upstream", "fbank", "num_mel_bins=40", "normalize=mean", "--longest", "1"]) == 0
    out = capsys.readouterr().out
    assert "audio: 1 x 40" in out
    assert "0 failed" in out


def test_check_upstream_fails_a_broken_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    assert main(["check-upstream", str(tmp_path / "broken.py"), "hidden_size=4", "--longest", "1"]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert [line.split(":")[0] for line in lines] == ["FAIL  alone = padded = shuffled", "FAIL  garbage in the padding"]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["fbankk"], "Did you mean 'fbank'"),
        (["fbank", "bins=40"], "bins"),
        (["fbank", "40"], "KEY=VALUE"),
        (["fbank", "deltas=1", "deltas=2"], "given twice"),
        (["fbank", "deltas=[1"], "not YAML"),
    ],
)
def test_mistakes_are_one_message(words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-upstream", *words]) == 1
    captured = capsys.readouterr()
    assert part in captured.err
    assert captured.out == ""
