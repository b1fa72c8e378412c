"""A predictor: what it says of files and waveforms, and which folders it refuses."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from mmssl.errors import CheckpointError, InputError, MediaError
from mmssl.stages.exporting import build_task, load_model, save_model
from mmssl.stages.predictor import load_predictor
from mmssl.upstreams.base import load_upstream

TONES = runpy.run_path(str(Path(__file__).with_name("tone_experiments.py")))
CLASSES, FREQUENCIES, describe, edit, tone, train = (
    TONES[name] for name in ("CLASSES", "FREQUENCIES", "describe", "edit", "tone", "train")
)
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


def test_files_and_waveforms_are_labelled_alike(experiment: Path, files: list[Path]) -> None:
    predictor = load_predictor(experiment)
    predictions = predictor.predict(files)
    assert [p.label for p in predictions] == list(CLASSES)
    assert [p.path for p in predictions] == [str(f) for f in files]
    for prediction, frequency in zip(predictions, FREQUENCIES, strict=True):
        assert list(prediction.probabilities) == list(CLASSES)
        assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-6)
        waveform = tone(frequency, seed=5)
        for given in (waveform, waveform.numpy(), waveform.numpy().astype(np.float64)):
            assert predictor.predict([given])[0].probabilities == pytest.approx(prediction.probabilities, abs=1e-6)


def test_probabilities_are_the_mean_over_the_models_of_the_folds(tmp_path: Path) -> None:
    tasks = make_experiment(tmp_path, folds=3)
    waveform = tone(500)
    layers = load_upstream("fbank")(waveform[None])["audio"]
    single = torch.cat([task.predict(layers) for task in tasks.values()])
    assert (single.max(0).values - single.min(0).values).max() > 1e-3, "the folds must differ for this test to tell"
    # what a stopped run left behind is no fold
    save_model(tmp_path / "systems" / "fbank" / "folds" / ".fold3.tmp", train(describe(), 9), describe())
    found = load_predictor(tmp_path).predict([waveform])[0]
    assert list(found.probabilities.values()) == pytest.approx(single.mean(0).tolist(), abs=1e-6)


def test_the_upstream_runs_once_per_clip(experiment: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = load_predictor(experiment)
    calls = []
    inner = predictor.upstream.extract
    monkeypatch.setattr(predictor.upstream, "extract", lambda inputs: calls.append(1) or inner(inputs))
    predictor.predict(files)
    assert len(calls) == len(files)
    assert len(predictor.models) == 2


def test_other_rates_are_resampled(experiment: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", tone(900, rate=44100).numpy(), 44100)
    assert load_predictor(experiment).predict([tmp_path / "a.flac"])[0].label == "mid"


def test_the_system_is_named_or_the_best_one(tmp_path: Path) -> None:
    make_experiment(tmp_path, systems=("first", "second"), folds=1)
    with pytest.raises(CheckpointError, match=r"several systems.*first, second"):
        load_predictor(tmp_path)
    assert load_predictor(tmp_path, "second").system.name == "second"
    with pytest.raises(CheckpointError, match="Did you mean 'second'"):
        load_predictor(tmp_path, "secnd")
    write_scores(tmp_path, {"first": 0.9, "second": 0.5})
    assert load_predictor(tmp_path).system.name == "first"
    write_scores(tmp_path, {"first": 0.5, "second": 0.9})
    assert load_predictor(tmp_path).system.name == "second"


@pytest.mark.parametrize("label", ["valence", ["valence"]])
def test_regression_gives_values(tmp_path: Path, label: Any) -> None:
    tasks = make_experiment(tmp_path, folds=2, task="regression", classes=[], label=label)
    found = load_predictor(tmp_path).predict([tone(900)])[0]
    layers = load_upstream("fbank")(tone(900)[None])["audio"]
    expected = torch.cat([task.predict(layers).reshape(1) for task in tasks.values()]).mean()
    assert found.label is None
    assert found.probabilities == {}
    assert found.values == {"valence": pytest.approx(float(expected), abs=1e-5)}


def test_class_weights_do_not_travel(tmp_path: Path) -> None:
    from mmssl.downstream.tasks import UtteranceClassification

    task = build_task(describe())
    weighted = UtteranceClassification(task.interface, task.head, [1.0, 2.0, 3.0])
    save_model(tmp_path, weighted, describe())
    loaded, description = load_model(tmp_path)
    assert description["classes"] == list(CLASSES)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert set(loaded.state_dict()) == set(task.state_dict())
    for name, value in task.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_a_standardized_interface_brings_its_statistics(tmp_path: Path) -> None:
    kwargs = {"interface": "weighted_sum", "statistics": "mean_std", "arguments": {}}
    description = describe(interface={"name": "mmssl.interfaces.standardized.Standardized", "kwargs": kwargs})
    task = build_task(description)
    width = description["hidden_sizes"][0]
    task.interface.set_statistics([torch.arange(2.0 * width)], [torch.full((2 * width,), 4.0)])
    save_model(tmp_path, task, description)
    waveform = tone(700)
    expected = task.predict(load_upstream("fbank")(waveform[None])["audio"])[0].tolist()
    found = load_predictor(tmp_path).predict([waveform])[0]
    assert list(found.probabilities.values()) == pytest.approx(expected, abs=1e-6)


def test_what_is_no_clip_is_refused(experiment: Path, tmp_path: Path) -> None:
    predictor = load_predictor(experiment)
    (tmp_path / "text.wav").write_text("hello")
    with pytest.raises(MediaError, match=r"text\.wav"):
        predictor.predict([tmp_path / "text.wav"])
    with pytest.raises(InputError, match="int16"):
        predictor.predict([torch.zeros(16000, dtype=torch.int16)])
    with pytest.raises(InputError, match=r"\(2, 16000\)"):
        predictor.predict([torch.zeros(2, 16000)])
    with pytest.raises(InputError, match="list"):
        predictor.predict("one.wav")


# ---- damaged, foreign and unsafe folders


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_model(tmp_path / "model", build_task(describe()), describe())
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": 99}, "schema 99"),
        ({"head": None}, "lacks head"),
        ({"task": "guess"}, "'guess'"),
        ({"hidden_sizes": "80"}, "hidden_sizes"),
        ({"hidden_sizes": [40]}, "cannot be rebuilt"),
        ({"classes": ["one"]}, "at least two"),
        ({"classes": ["a", "b"]}, "cannot be rebuilt"),
        ({"upstream": "fbank"}, "_target_"),
        ({"interface": {"name": "weighted_sum", "kwargs": {"no_such": 1}}}, "no_such"),
        ({"sample_rate": 8000}, "does not fit"),
        ({"upstream": {"_target_": "fbank", "no_such": 1}}, "no_such"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_description_that_does_not_fit_is_refused(model: Path, changes: dict[str, Any], words: str) -> None:
    edit(model, **changes)
    with pytest.raises(CheckpointError, match=words):
        load_predictor(model)


def test_missing_and_damaged_files_are_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_predictor(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="neither an experiment"):
        load_predictor(tmp_path / "empty")
    (tmp_path / "exp" / "systems" / "fbank" / "folds").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="no trained fold"):
        load_predictor(tmp_path / "exp")
    weights = model / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="sha256 differs"):
        load_predictor(model)
    edit(model, weights_sha256=None)
    weights.write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="not a readable safetensors"):
        load_predictor(model)
    weights.unlink()
    with pytest.raises(CheckpointError, match="are missing"):
        load_predictor(model)
    (model / "model.yaml").write_text("a: [")
    with pytest.raises(CheckpointError, match="not readable YAML"):
        load_predictor(model)


def test_folds_of_different_runs_are_not_mixed(tmp_path: Path) -> None:
    make_experiment(tmp_path, folds=2)
    edit(tmp_path / "systems" / "fbank" / "folds" / "fold1", classes=["high", "mid", "low"])
    with pytest.raises(CheckpointError, match="differ in classes"):
        load_predictor(tmp_path)


UNSAFE = (
    {"upstream": {"_target_": "evil_module.Upstream"}},
    {"upstream": {"_target_": "evil_module.py"}},
    {"upstream": {"_target_": "evil_module.py:Upstream"}},
    {"upstream": {"_target_": "mmssl.registry.Registry"}},
    {"upstream": {"_target_": "mmssl.registry.entry_points"}},
    {"upstream": {"_target_": "mmssl_evil.Upstream"}},
    {"interface": {"name": "evil_module.Interface"}},
    {"interface": {"name": "mmssl.interfaces.standardized.Standardized", "kwargs": {"interface": "evil_module.X"}}},
    {"head": {"name": "evil_module.py"}},
)


@pytest.mark.parametrize("changes", UNSAFE, ids=lambda value: json.dumps(value)[:60])
def test_no_code_of_the_folder_runs(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    (tmp_path / "mmssl_evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    edit(model, **changes)
    with pytest.raises(CheckpointError, match="--trust"):
        load_predictor(model)
    assert not (tmp_path / "ran").exists()


def test_yaml_tags_build_nothing(model: Path) -> None:
    (model / "model.yaml").write_text("schema: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(CheckpointError, match="not readable YAML"):
        load_predictor(model)


def test_trusted_parts_are_built(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_upstream.py").write_text("from mmssl.upstreams.spectral import Fbank\nclass Mine(Fbank): pass\n")
    monkeypatch.chdir(tmp_path)
    edit(model, upstream={"_target_": "my_upstream.py:Mine"})
    with pytest.raises(CheckpointError, match="neither part of mmssl nor an installed plug-in"):
        load_predictor(model)
    assert type(load_predictor(model, trust_targets=True).upstream).__name__ == "Mine"
