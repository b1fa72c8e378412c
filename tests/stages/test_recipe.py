"""The whole recipe on a corpus of 48 clips: results, what is skipped when called again, and what runs again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]
FAST = ("upstream=fbank", "compare=[mel]")


def test_from_nothing_to_a_report_and_again(run: Run, recipe: Path) -> None:
    code, out, err = run(*FAST)
    assert code == 0, err
    for stage in ("1 prepare", "2 extract", "3 train", "4 score", "5 report"):
        assert f"== {stage}: " in out
    assert re.search(r"^fbank .*weighted_sum", out, re.MULTILINE)
    assert re.search(r"^mel ", out, re.MULTILINE)
    exp = recipe / "exp" / "fbank-weighted_sum-linear"
    assert f"Report: {exp / 'RESULTS.md'}" in out
    results = json.loads((exp / "results.json").read_text())
    assert results["classes"] == ["angry", "happy", "neutral", "sad"]
    assert results["chance"] == 0.25
    assert results["protocol"]["speaker_overlap"] is False
    assert [s["name"] for s in results["systems"]] == ["fbank", "mel"]
    assert results["command"].startswith("./run.sh --nj 1 ")
    assert results["command"].endswith("upstream=fbank 'compare=[mel]'")
    for system in results["systems"]:
        assert system["pooled"] is True
        folds = system["folds"]
        assert len(folds) == 3
        assert sum(f["num_test"] for f in folds) == 48
        assert sum(map(sum, system["confusion"])) == 48
        tested = [g for f in folds for g in f["test_groups"]]
        assert len(tested) == len(set(tested)) == 6
        mean = sum(f["metrics"]["uar"] for f in folds) / 3
        assert system["metrics"]["uar"]["mean"] == pytest.approx(mean)
        assert len(system["map"]["x"]) == len(system["map"]["speaker"]) == 48
        for fold in folds:
            written = {p.name for p in (exp / "systems" / system["name"] / "folds" / fold["name"]).iterdir()}
            assert written == {"model.safetensors", "model.yaml", "result.json", "predictions.jsonl"}
    before = (exp / "results.json").read_bytes()

    code, out, err = run(*FAST)
    assert code == 0, err
    assert out.count("unchanged, skipped") == 5
    assert (exp / "results.json").read_bytes() == before

    code, out, err = run("--stage", "train", "--stop_stage", "3", *FAST)
    assert code == 0, err
    assert "6 of 6 folds are finished already" in out
    assert "0 folds trained, 6 kept" in out

    code, out, err = run("--stage", "2", "--stop_stage", "2", *FAST)
    assert code == 0, err
    assert out.count("nothing to compute, 48 were there") == 2

    code, out, err = run("--dry_run", *FAST)
    assert code == 0, err
    assert out.count("unchanged, would be skipped") == 5

    log = (exp / "log.txt").read_text()
    assert results["command"] in log
    assert "== 3 train" in log


def test_frames_and_statistics_of_a_linear_probe_agree(run: Run, recipe: Path) -> None:
    # "frames" with affine parts is trained on pooled means: the model must give the same on frames
    import torch

    from mmssl.features.store import FeatureStore
    from mmssl.media.audio import load_audio
    from mmssl.stages.exporting import load_model
    from mmssl.upstreams.base import load_upstream

    for statistics in ("frames", "mean_std"):
        code, _, err = run(
            "upstream=mel", "compare=[]", f"features.statistics={statistics}", f"exp={statistics}", "--stop_stage", "3"
        )
        assert code == 0, err
        exp = recipe / "exp" / statistics
        record = json.loads((exp / "features.json").read_text())["mel"]
        assert record["pooled"] is True
        assert not FeatureStore(recipe / record["folder"]).has_frames
        fold = next((exp / "systems" / "mel" / "folds").iterdir())
        task, description = load_model(fold)
        row = json.loads((fold / "predictions.jsonl").read_text().splitlines()[0])
        waveform, _ = load_audio(recipe / "data" / "mini" / "wav" / f"{row['id']}.wav", sample_rate=16000)
        layers = load_upstream("mel", **{k: v for k, v in description["upstream"].items() if k != "_target_"})(
            waveform[None]
        )
        probabilities = task.predict(layers["audio"])[0]
        expected = torch.tensor([row["probabilities"][c] for c in description["classes"]])
        assert torch.allclose(probabilities, expected, atol=2e-5)


def test_a_head_that_needs_frames_gets_them(run: Run, recipe: Path) -> None:
    code, _, err = run("upstream=mel", "compare=[]", "head=attentive_stats", "--stop_stage", "3")
    assert code == 0, err
    record = json.loads((recipe / "exp" / "mel-weighted_sum-attentive_stats" / "features.json").read_text())["mel"]
    assert record["statistics"] == "frames"
    assert record["pooled"] is False


def test_selection_never_sees_the_test_part(run: Run, recipe: Path) -> None:
    # other labels on the test clips of a fold must leave the trained weights of that fold as they are
    code, _, err = run("upstream=mel", "compare=[]", "--stop_stage", "3")
    assert code == 0, err
    fold_folder = recipe / "exp" / "mel-weighted_sum-linear" / "systems" / "mel" / "folds" / "fold1"
    weights = (fold_folder / "model.safetensors").read_bytes()
    fold = next(f for f in json.loads((recipe / "data" / "folds.json").read_text())["folds"] if f["name"] == "fold1")
    manifest = recipe / "data" / "manifest.jsonl"
    lines = []
    for line in manifest.read_text().splitlines():
        entry = json.loads(line)
        if entry["id"] in fold["test"]:
            entry["labels"]["emotion"] = {"angry": "sad", "sad": "angry"}.get(entry["labels"]["emotion"], "neutral")
        lines.append(json.dumps(entry))
    manifest.write_text("\n".join(lines) + "\n")
    code, out, err = run("upstream=mel", "compare=[]", "--stage", "3", "--stop_stage", "3")
    assert code == 0, err
    assert "3 folds trained" in out
    assert (fold_folder / "model.safetensors").read_bytes() == weights


def test_regression(run: Run, recipe: Path) -> None:
    prepare = recipe / "local" / "prepare.py"
    source = prepare.read_text().replace("    return make_mini(", "    clips = make_mini(")
    prepare.write_text(
        source
        + "    from dataclasses import replace\n"
        + "    level = {'sad': 0.0, 'neutral': 1.0, 'happy': 2.0, 'angry': 3.0}\n"
        + "    return [replace(c, labels={**c.labels, 'arousal': level[c.labels['emotion']]}) for c in clips]\n"
    )
    code, out, err = run("upstream=mel", "compare=[]", "task=regression", "label=arousal", "exp=arousal")
    assert code == 0, err
    results = json.loads((recipe / "exp" / "arousal" / "results.json").read_text())
    assert set(results["systems"][0]["metrics"]) == {"ccc", "pearson", "rmse"}
    assert results["primary_metric"] == "ccc"
    assert "CCC" in out


def test_list_and_help(run: Run) -> None:
    code, out, _ = run("--list", tiny=False)
    assert code == 0
    assert re.findall(r"^  (\d \w+)", out, re.MULTILINE) == ["1 prepare", "2 extract", "3 train", "4 score", "5 report"]
    code, out, _ = run("--help", tiny=False)
    assert code == 0
    for word in (
        "fbank",
        "weighted_sum",
        "attentive_stats",
        "data.root=FOLDER",
        "compare=",
        "--skip_stages",
        "exp=NAME",
    ):
        assert word in out
