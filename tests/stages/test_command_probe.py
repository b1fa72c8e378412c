"""`mmssl probe` and `mmssl bench`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmssl.data.manifest import read_manifest, write_manifest
from mmssl.data.splits import make_folds, write_folds
from mmssl.stages.cli import main

SUITE = """
name: two upstreams
folder: out
corpora:
  - {name: tiny, manifest: manifest.jsonl, label: emotion, note: A & B,
     protocol: {scheme: group_kfold, k: 3, dev_groups: 1}}
upstreams: [fbank, {name: "small|mel", _target_: mel, num_mel_bins: 20}]
protocols: [linear, knn]
probe: {max_steps: 20, learning_rates: [1e-2], fractions: [0.5, 1]}
published:
  - {corpus: tiny, system: "<b>paper</b>", metric: accuracy, value: 50.0, source: a paper}
"""


@pytest.fixture
def folder(tmp_path: Path, tiny_corpus: Path) -> Path:
    """A manifest and folds of the mini corpus."""
    from mmssl.media.mini import make_mini

    clips = make_mini(tiny_corpus, num_speakers=6, num_sentences=2, sentences_per_speaker=2)
    write_manifest(tmp_path / "manifest.jsonl", clips)
    folds = make_folds(clips, scheme="group_kfold", k=3, dev_groups=1, label="emotion")
    write_folds(tmp_path / "folds.json", folds)
    return tmp_path


def test_probe(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("fbank", "mel"):
        words = ["extract", folder / "manifest.jsonl", folder / name, "--no-frames", "--quiet", "--upstream", name]
        assert main([str(w) for w in words]) == 0
    given = ["--manifest", str(folder / "manifest.jsonl"), "--folds", str(folder / "folds.json"), "--label", "emotion"]
    words = ["probe", str(folder / "fbank"), str(folder / "mel"), *given, "--protocol", "linear,logreg"]
    words += ["--fuse", "--max-steps", "20", "--learning-rates", "1e-2", "--output", str(folder / "probes")]
    assert main(words) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "| fbank + mel" in out
    assert "McNemar" in out
    board = json.loads((folder / "probes" / "leaderboard.json").read_text())
    assert len(board["rows"]) == 6
    assert len(board["tests"]) == 6
    assert main(words) == 0
    assert capsys.readouterr().out.count("was there") == 6


def test_probe_explains_mistakes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--manifest", str(folder / "manifest.jsonl"), "--folds", str(folder / "folds.json"), "--label", "emotion"]
    assert main(["probe", str(folder / "nothing"), *given]) == 1
    assert "no feature store" in capsys.readouterr().err
    assert main(["probe", str(folder / "nothing"), "--fuse", *given]) == 1
    assert "at least two" in capsys.readouterr().err
    assert main(["probe", str(folder / "nothing"), "--fractions", "half", *given]) == 1
    assert "--fractions takes numbers" in capsys.readouterr().err


def test_probe_of_heads(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, kept in (("whole", "--frames"), ("means", "--no-frames")):
        words = ["extract", folder / "manifest.jsonl", folder / name, kept, "--quiet", "--upstream", "fbank"]
        assert main([str(w) for w in words]) == 0
    given = ["--manifest", str(folder / "manifest.jsonl"), "--k", "3", "--label", "emotion", "--max-steps", "4"]
    given += ["--learning-rates", "1e-2"]
    # affine up to the mean: pooled features are enough
    assert main(["probe", str(folder / "means"), *given, "--head", "linear"]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "Folds: 3, no speaker in two parts of the same one" in out
    assert "| linear head" in out
    words = [*given, "--head", "attentive_stats", "--interface", "hierarchical_conv"]
    assert main(["probe", str(folder / "means"), *words]) == 1
    assert "without --no-frames" in capsys.readouterr().err
    words += ["--head-option", "attention_size=4", "--interface-option", "kernel_size=3"]
    words += ["--output", str(folder / "kept")]
    assert main(["probe", str(folder / "whole"), *words]) == 0, capsys.readouterr().err
    assert "attentive_stats(attention_size=4) head on hierarchical_conv(kernel_size=3)" in capsys.readouterr().out
    assert main(["probe", str(folder / "whole"), *words]) == 0
    assert "was there" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--interface", "concat"], "go with --head"),
        (["--head", "linear", "--head-option", "hidden_size"], "KEY=VALUE"),
        (["--head", "attentive_stat"], "Did you mean 'attentive_stats'"),
        (["--head", "linear", "--head-option", "hiden_size=3"], "Did you mean 'hidden_size'"),
        (["--k", "30"], "30"),
    ],
)
def test_probe_of_heads_explains_mistakes(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    store = folder / "means"
    made = ["extract", folder / "manifest.jsonl", store, "--no-frames", "--quiet", "--upstream", "fbank"]
    assert main([str(w) for w in made]) == 0
    given = ["--manifest", str(folder / "manifest.jsonl"), "--label", "emotion", *words]
    assert main(["probe", str(store), *given]) == 1
    assert message in capsys.readouterr().err


def test_bench_runs_heads_on_frames(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = SUITE.replace(
        "protocols: [linear, knn]", "protocols: [knn]\nheads: [{head: mlp, head_arguments: {hidden_size: 8}}]"
    )
    (folder / "suite.yaml").write_text(text.replace("max_steps: 20", "max_steps: 4").replace("[0.5, 1]", "[1]"))
    assert main(["bench", str(folder / "suite.yaml")]) == 0, capsys.readouterr().err
    capsys.readouterr()
    board = json.loads((folder / "out" / "leaderboard.json").read_text())
    assert {row["protocol"] for row in board["rows"]} == {"knn", "mlp(hidden_size=8) head"}
    (folder / "suite.yaml").write_text(text.replace("head: mlp", "heed: mlp"))
    assert main(["bench", str(folder / "suite.yaml")]) == 1
    assert "no key 'heed'" in capsys.readouterr().err


def test_bench_runs_resumes_and_renders(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "suite.yaml").write_text(SUITE)
    assert main(["bench", str(folder / "suite.yaml")]) == 0, capsys.readouterr().err
    assert "was there" not in capsys.readouterr().out
    results = sorted((folder / "out" / "results").rglob("*.json"))
    assert len(results) == 8
    page = (folder / "out" / "leaderboard.html").read_text()
    assert "&lt;b&gt;paper&lt;/b&gt;" in page
    assert "<script" not in page
    markdown = (folder / "out" / "leaderboard.md").read_text()
    assert "small\\|mel" in markdown
    assert "Published numbers" in markdown
    assert "A & B" in markdown
    assert "small|mel" in (folder / "out" / "leaderboard.tex").read_text()
    # what was lost is made again, to the same numbers; the rest is taken as it is
    lost = json.loads(results[0].read_text())
    results[0].unlink()
    assert main(["bench", str(folder / "suite.yaml")]) == 0
    assert capsys.readouterr().out.count("was there") == 7
    assert json.loads(results[0].read_text()) == lost
    # other labels are another experiment
    clips = read_manifest(folder / "manifest.jsonl")
    write_manifest(folder / "manifest.jsonl", [c for c in clips if c.labels["emotion"] != "sad"])
    assert main(["bench", str(folder / "suite.yaml")]) == 0
    assert "was there" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("protocols:", "protocol:", "Did you mean 'protocols'"),
        ("[linear, knn]", "[linear, ridge]", "'ridge' is for values"),
        ("max_steps", "steps", "no key 'steps'"),
        ("label: emotion,", "label: feeling,", "feeling"),
        ("[1e-2]", "[fast]", "probe.learning_rates must be numbers"),
        ("upstreams: [fbank,", "upstreams: [3,", "an upstream is a name"),
        ("name: tiny, manifest: manifest.jsonl", "name: tiny, manifest: no.jsonl", "no.jsonl"),
        ("corpora:", "corpora: [", "cannot be read"),
    ],
)
def test_bench_explains_mistakes(
    folder: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str
) -> None:
    (folder / "suite.yaml").write_text(SUITE.replace(old, new))
    assert main(["bench", str(folder / "suite.yaml"), "--quiet"]) == 1
    assert message in capsys.readouterr().err
