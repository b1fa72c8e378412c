"""recipes/ssl from a corpus to a report, at tiny size; what is kept, what goes on, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import mmssl
from mmssl.data.manifest import read_manifest
from mmssl.errors import ConfigError
from mmssl.objectives.targets.units import read_units
from mmssl.report.pretraining_table import read_results, render_table
from mmssl.stages.compose import compose
from mmssl.stages.recipe import main
from mmssl.stages.settings import check
from mmssl.stages.ssl_setup import iterations

ROOT = Path(__file__).parents[2]
TINY = (
    "data.options.num_speakers=6",
    "data.options.num_sentences=2",
    "data.options.sentences_per_speaker=2",
    "protocol.k=3",
    "protocol.dev_groups=1",
    "nano=null",
    "upstream.preset=hubert_tiny",
    "pretrain.max_steps=4",
    "pretrain.warmup_steps=1",
    "pretrain.log_every=1",
    "pretrain.batch_seconds=4",
    "pretrain.save_every=2",
    "reader.max_seconds=0.5",
    "targets.init_frames=500",
)
TWO = "targets.iterations=[{source: mfcc, clusters: 5, steps: 3},{source: previous, layer: 1, clusters: 7, steps: 4}]"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path, tiny_corpus: Path) -> Path:
    """A copy of egs/mini/ssl with its corpus made already."""
    target = tmp_path / "egs" / "mini" / "ssl"
    for part in ("conf", "local"):
        shutil.copytree(
            ROOT / "egs" / "mini" / "ssl" / part, target / part, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    shutil.copytree(tiny_corpus, target / "data" / "mini")
    return target


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("MMSSL_CALLER_DIR", str(folder))

    def call(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["--nj", "1", *TINY, *words], folder)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_every_objective_with_a_nano_file_composes_and_binds() -> None:
    names = sorted(path.stem for path in (ROOT / "recipes" / "ssl" / "nano").glob("*.yaml"))
    assert {"wav2vec2", "hubert", "data2vec", "best_rq", "tera", "mae"} <= set(names)
    for name in names:
        composed = compose(ROOT / "egs" / "mini" / "ssl", [f"objective={name}"])
        check(composed)
        assert composed.config["exp"].startswith(f"{name}-")
        assert iterations(composed.config)


def test_the_command_line_wins_over_a_nano_file() -> None:
    folder = ROOT / "egs" / "mini" / "ssl"
    composed = compose(folder, ["objective=wav2vec2", "upstream=hubert", "pretrain.max_steps=7"])
    assert composed.systems[0].name == "hubert"
    assert composed.config["pretrain"]["max_steps"] == 7
    assert composed.config["exp"] == "wav2vec2-hubert"
    assert compose(folder, ["objective=mae"]).config["label"] == "shape"
    with pytest.raises(ConfigError, match=r"There is no objective 'hubbert'\. Did you mean"):
        compose(folder, ["objective=hubbert"])


@pytest.mark.slow
def test_two_iterations_of_hubert_from_corpus_to_report(run: Run, folder: Path) -> None:
    code, out, err = run("objective=hubert", "exp=a", TWO)
    assert code == 0, err
    exp = folder / "exp" / "a"
    results = json.loads((exp / "results.json").read_text())
    assert [it["steps"] for it in results["iterations"]] == [3, 4]
    assert [it["targets"]["clusters"] for it in results["iterations"]] == [5, 7]
    assert 0 < results["iterations"][0]["targets"]["quality"]["pnmi"] < 1
    assert {(s["system"], s["stream"]) for s in results["probe"]["scores"]} == {
        ("trained", "audio"),
        ("untrained", "audio"),
        ("log-mel", "audio"),
    }
    # speakers of the test part are not trained on
    fold = json.loads((exp / "folds.json").read_text())["folds"][0]
    held = {clip.split("-")[0] for clip in fold["test"]}
    trained = read_manifest(exp / "manifest.jsonl")
    assert held
    assert not held & {clip.speaker for clip in trained}
    # one label for each frame of MFCC, then for each frame of the encoder
    units = [read_units(exp / "iterations" / str(k) / "units") for k in (1, 2)]
    assert set(units[0]) == set(units[1]) == {clip.id for clip in trained}
    assert max(int(u.max()) for u in units[0].values()) <= 4
    page = (exp / "report.html").read_text()
    assert "hidden/loss" in page
    assert "Curves of iteration 2" in page
    assert "| trained | audio |" in (exp / "RESULTS.md").read_text()
    assert "| hubert | mini, emotion |" in render_table(read_results([folder]))
    # what was exported is what was trained, not what it began as
    waveforms = 0.1 * torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
    features = [
        mmssl.load_upstream(str(exp / name))(waveforms)["audio"].hidden_states[-1] for name in ("upstream", "untrained")
    ]
    assert not torch.allclose(*features)
    last = mmssl.load_upstream(str(exp / "iterations" / "2" / "upstream"))(waveforms)["audio"].hidden_states[-1]
    assert torch.equal(features[0], last)

    code, out, err = run("objective=hubert", "exp=a", TWO)
    assert code == 0, err
    assert out.count("unchanged, skipped") == 6
    # a longer run goes on from nothing that was made for another one, and says that it would replace results
    code, out, err = run("objective=hubert", "exp=a", TWO, "pretrain.learning_rate=1e-2")
    assert code == 1
    assert "--overwrite" in err
    # going on from what was exported
    words = ("objective=wav2vec2", "objective.size=16", "exp=b", "--stop_stage", "3")
    code, out, err = run(*words, f"init={exp / 'upstream'}")
    assert code == 0, err
    begun = mmssl.load_upstream(str(folder / "exp" / "b" / "untrained"))(waveforms)["audio"].hidden_states[-1]
    assert torch.equal(begun, features[0])


@pytest.mark.slow
def test_an_interrupted_run_ends_as_an_undisturbed_one(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("objective=hubert", "targets.iterations=[{source: mfcc, clusters: 5, steps: 4}]", "--stop_stage", "3")
    code, _, err = run(*words, "exp=whole")
    assert code == 0, err
    from mmssl.objectives.objective import Objective

    forward, calls = Objective.forward, []

    def killed(self: Objective, *args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("killed")
        return forward(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Objective, "forward", killed)
    with pytest.raises(RuntimeError, match="killed"):
        run(*words, "exp=cut")
    assert not (folder / "exp" / "cut" / "iterations" / "1" / "run.json").exists()
    monkeypatch.setattr(Objective, "forward", forward)
    code, _, err = run(*words, "exp=cut")
    assert code == 0, err
    paths = [folder / "exp" / name / "iterations" / "1" / "run.json" for name in ("whole", "cut")]
    runs = [json.loads(path.read_text()) for path in paths]
    assert runs[1]["resumed_from"] == 2
    assert [row["loss"] for row in runs[0]["history"]] == [row["loss"] for row in runs[1]["history"]]


def test_what_does_not_fit_stops_before_any_work(run: Run) -> None:
    cases = [
        (("objective=tera",), "trains a transformer on frames (tera), got Hubert"),
        (("objective=mae", "upstream=mae", "~upstream.preset"), "none of the 48 clips has images"),
        (("objective=hubert", "targets.iterations=[{source: previous}]"), "there is no previous iteration"),
        (("objective=hubert", "targets.iterations=[{sauce: mfcc}]"), "Did you mean"),
        (("objective=wav2vec2", "targets.iterations=[{source: mfcc}]"), "objectives that read label files"),
        (("objective=hubert", "label=emotoin"), "No clip has the label 'emotoin'"),
        (("objective=hubert", "held_out=[train]"), "held_out must be"),
        (("objective=hubert", "probing.protocol=cnn"), "probing.protocol must be one of"),
        (("objective=hubert", "init=/nowhere"), "/nowhere"),
        (("objective=hubert", "objective.num_unit=3"), "num_unit"),
        (("objective=hubert", "augment=voice"), "Did you mean 'voices'?"),
        (("objective=hubert", "augment=voices", "augment.stepps=[]"), "steps"),
        (("objective=hubert", "augment=speech"), "augment changes the length of clips"),
    ]
    for words, message in cases:
        code, _, err = run(*words, "--stop_stage", "1", "exp=x", "--overwrite")
        assert code == 1, words
        assert message in err, (words, err)


def test_an_unknown_setting_of_the_training_is_refused(run: Run) -> None:
    code, _, err = run("objective=hubert", "pretrain.lerning_rate=1")
    assert code == 1
    assert "Did you mean 'pretrain.learning_rate'?" in err


def test_settings_of_the_training_are_arguments_of_it() -> None:
    import inspect

    import yaml

    from mmssl.training.pretrain import pretrain

    conf = ROOT / "mmssl" / "conf" / "pretrain"
    parameters = inspect.signature(pretrain).parameters
    default = yaml.safe_load((conf / "default.yaml").read_text())
    for path in conf.glob("*.yaml"):
        assert set(yaml.safe_load(path.read_text())) - {"defaults"} <= set(default), path
    assert set(default) <= set(parameters)
