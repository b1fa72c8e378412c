from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml

from mmssl.errors import CheckpointError, InputError, MediaError
from mmssl.stages.export_folder import export_system
from mmssl.stages.exporting import build_task, load_model, save_model
from mmssl.stages.predictor import load_predictor
from mmssl.upstreams.base import load_upstream

RATE = 16000
CLASSES = ("low", "mid", "high")
FREQUENCIES = (200.0, 900.0, 3000.0)


def tone(frequency: float, seconds: float = 0.4, seed: int = 0, rate: int = RATE) -> torch.Tensor:
    time = torch.arange(int(seconds * rate)) / rate
    noise = 0.01 * torch.randn(len(time), generator=torch.Generator().manual_seed(seed))
    return 0.3 * torch.sin(2 * math.pi * frequency * time) + noise


def describe(**changes: Any) -> dict[str, Any]:
    spec = load_upstream("fbank").spec
    return {
        "upstream": {"_target_": "fbank"},
        "upstream_seed": 0,
        "stream": "audio",
        "sample_rate": RATE,
        "interface": {"name": "weighted_sum", "kwargs": {}},
        "hidden_sizes": list(spec.streams["audio"].hidden_sizes),
        "hop_lengths": list(spec.streams["audio"].hop_lengths),
        "head": {"name": "linear", "kwargs": {}},
        "task": "classification",
        "classes": list(CLASSES),
        "label": "pitch",
        **changes,
    }


def train(description: dict[str, Any], seed: int) -> torch.nn.Module:
    """A few steps on the three tones, each fold with its own start and noise."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        task = build_task(description)
    upstream = load_upstream("fbank")
    waveforms = torch.stack([tone(f * d, seed=seed + k) for k, d in enumerate((0.9, 1.0, 1.1)) for f in FREQUENCIES])
    layers = upstream(waveforms)["audio"]
    classes = torch.arange(3).repeat(3)
    targets = classes if description["task"] == "classification" else classes.float()[:, None]
    optimizer = torch.optim.Adam(task.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        task(layers, targets).loss.backward()
        optimizer.step()
    return task


def make_experiment(
    folder: Path, systems: Sequence[str] = ("fbank",), folds: int = 2, **changes: Any
) -> dict[tuple[str, str], torch.nn.Module]:
    made = {}
    for s, system in enumerate(systems):
        for k in range(folds):
            task = train(describe(**changes), seed=10 * s + k)
            save_model(folder / "systems" / system / "folds" / f"fold{k}", task, describe(**changes))
            made[system, f"fold{k}"] = task.eval()
    return made


def write_scores(folder: Path, scores: dict[str, float]) -> None:
    systems = [
        {"name": name, "metrics": {"uar": {"mean": uar, "std": 0.01, "pooled": uar}}, "folds": [{}, {}]}
        for name, uar in scores.items()
    ]
    protocol = {"name": "leave one tone out", "speaker_overlap": False}
    results = {"schema": 1, "corpus": "tones", "primary_metric": "uar", "systems": systems, "protocol": protocol}
    (folder / "results.json").write_text(json.dumps(results | {"chance": 1 / 3, "fingerprint": "f00d"}))


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe") / "exp" / "tones"
    make_experiment(folder)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("wav")
    paths = [folder / f"{name}.wav" for name in CLASSES]
    for path, frequency in zip(paths, FREQUENCIES, strict=True):
        soundfile.write(path, tone(frequency, seed=5).numpy(), RATE, subtype="FLOAT")
    return paths


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


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "model.yaml"
    fields = yaml.safe_load(path.read_text()) | changes
    path.write_text(yaml.safe_dump({k: v for k, v in fields.items() if v is not None}))


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


# ---- export


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
