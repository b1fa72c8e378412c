"""The exported folder of a system: whole, on its own, and the same as what it was made from."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from mmssl.errors import CheckpointError
from mmssl.stages.export_folder import export_system
from mmssl.stages.exporting import build_task, save_model
from mmssl.stages.predictor import load_predictor
from mmssl.upstreams.base import load_upstream

TONES = runpy.run_path(str(Path(__file__).with_name("tone_experiments.py")))
describe, edit, tone = (TONES[name] for name in ("describe", "edit", "tone"))
make_experiment, write_scores, write_tones = (
    TONES[name] for name in ("make_experiment", "write_scores", "write_tones")
)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe") / "exp" / "tones"
    make_experiment(folder)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_tones(tmp_path_factory.mktemp("wav"))


def test_an_exported_folder_says_the_same_in_a_process_that_has_only_it(
    experiment: Path, files: list[Path], tmp_path: Path
) -> None:
    write_scores(experiment, {"fbank": 0.8123})
    export_system(experiment, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "README.md",
        "fold000.safetensors",
        "fold001.safetensors",
        "model.yaml",
    ]
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    code = (
        "import json, sys, mmssl\np = mmssl.load_predictor(sys.argv[1])\n"
        "print(json.dumps([x.probabilities for x in p.predict(sys.argv[2:])]))"
    )
    command = [sys.executable, "-c", code, str(moved), *map(str, files)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert json.loads(printed) == [p.probabilities for p in load_predictor(experiment).predict(files)]
    card = (moved / "README.md").read_text()
    for words in ("81.2 ± 1.0", "low, mid, high", "leave one tone out", "Chance: 33.3 %", "f00d", "Speaker-disjoint"):
        assert words in card, words


def test_an_export_can_be_exported_again(experiment: Path, tmp_path: Path) -> None:
    export_system(experiment, tmp_path / "one")
    export_system(tmp_path / "one", tmp_path / "two")
    waveform = tone(300)
    assert load_predictor(tmp_path / "two").predict([waveform]) == load_predictor(experiment).predict([waveform])
    assert load_predictor(tmp_path / "two").system.name == "fbank"


def test_export_never_overwrites_and_leaves_nothing_half_written(experiment: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(CheckpointError, match="not an empty folder"):
        export_system(experiment, tmp_path / "out")
    with pytest.raises(CheckpointError, match="no system 'other'"):
        export_system(experiment, tmp_path / "new", "other")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


@pytest.fixture
def hubert(tmp_path: Path) -> Path:
    from transformers import HubertConfig, HubertModel

    config = HubertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8, 8),
        conv_kernel=(10, 8),
        conv_stride=(20, 16),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    folder = tmp_path / "weights"
    HubertModel(config).save_pretrained(folder)
    (folder / "modeling_evil.py").write_text("raise SystemExit('ran')")
    return folder


def test_an_upstream_travels_with_the_export(hubert: Path, tmp_path: Path) -> None:
    spec = load_upstream("hf", path=str(hubert)).spec.streams["audio"]
    description = describe(
        upstream={"_target_": "mmssl.upstreams.hf.HFUpstream", "path": str(hubert)},
        hidden_sizes=list(spec.hidden_sizes),
        hop_lengths=list(spec.hop_lengths),
    )
    exp = tmp_path / "exp"
    save_model(exp / "systems" / "hubert" / "folds" / "a", build_task(description), description)
    waveform = tone(440)
    expected = load_predictor(exp).predict([waveform])
    export_system(exp, tmp_path / "without")
    export_system(exp, tmp_path / "with", with_upstream=True)
    assert not (tmp_path / "with" / "upstream" / "path" / "modeling_evil.py").exists()
    assert str(hubert) not in (tmp_path / "with" / "model.yaml").read_text()
    elsewhere = hubert.rename(tmp_path / "elsewhere")
    assert load_predictor((tmp_path / "with").rename(tmp_path / "moved")).predict([waveform]) == expected
    export_system(tmp_path / "moved", tmp_path / "again")
    assert load_predictor(tmp_path / "again").predict([waveform]) == expected
    with pytest.raises(CheckpointError, match="--upstream-path"):
        load_predictor(tmp_path / "without")
    assert load_predictor(tmp_path / "without", upstream_path=elsewhere).predict([waveform]) == expected
    edit(tmp_path / "again", upstream_files={"path": "../elsewhere"})
    with pytest.raises(CheckpointError, match="outside its folder"):
        load_predictor(tmp_path / "again")
