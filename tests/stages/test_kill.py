"""Kill -9 in any stage, run again: the results of an undisturbed run, nothing recomputed that was finished."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmssl.stages.recipe import main

ROOT = Path(__file__).parents[2]
WORDS = (
    "compare=[mel]",
    "data.options.num_speakers=6",
    "data.options.num_sentences=2",
    "data.options.sentences_per_speaker=2",
    "protocol.k=3",
    "protocol.dev_groups=1",
    "train=quick",
    "train.max_steps=40",
    "exp=x",
)


FAST = ("--nj", "1", "upstream=fbank")


def start(recipe: Path, *words: str, delay: dict[str, float] | None = None) -> subprocess.Popen[str]:
    """The recipe in a process of its own; `delay` slows functions down by seconds."""
    code = "import sys, time\nfrom mmssl.stages.recipe import main\n"
    for target, seconds in (delay or {}).items():
        module, _, name = target.rpartition(".")
        code += (
            f"import {module} as module\noriginal = module.{name}\n"
            f"def slowed(*args, **kwargs):\n    time.sleep({seconds})\n    return original(*args, **kwargs)\n"
            f"module.{name} = slowed\n"
        )
    code += "sys.exit(main(sys.argv[1:]))\n"
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            code,
            *words,
            *WORDS,
            *([] if any(w.startswith("upstream=") for w in words) else ["upstream=hubert_untrained"]),
        ],
        cwd=recipe,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MMSSL_CALLER_DIR": str(recipe)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return out


def kill_when(process: subprocess.Popen[str], happened: Callable[[], Any]) -> None:
    """Kill -9 the process itself as soon as something is on disk; its workers have to notice."""
    deadline = time.monotonic() + 200
    while not happened():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    # the pipe closes when the last worker has ended too
    process.communicate(timeout=30)


def outcome(recipe: Path) -> dict[str, Any]:
    """What must not depend on interruptions: all but times and the command."""
    results = json.loads((recipe / "exp" / "x" / "results.json").read_text())
    for key in ("created", "command", "versions"):
        del results[key]
    return results


def folds_done(recipe: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in (recipe / "exp" / "x").glob("systems/*/folds/[!.]*/result.json")}


def test_killed_while_training(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    delay = {"mmssl.stages.probe_training.fit_probe": 0.5}
    process = start(recipe, *FAST, "--stop_stage", "3", delay=delay)
    kill_when(process, lambda: len(folds_done(recipe)) >= 2)
    before = folds_done(recipe)
    assert 2 <= len(before) < 6
    # in this process, which has imported all that the recipe needs
    assert main([*FAST, *WORDS], recipe) == 0
    out = capsys.readouterr().out
    after = folds_done(recipe)
    assert len(after) == 6
    assert all(after[path] == when for path, when in before.items()), "a finished fold was trained again"
    assert f"{len(before)} of 6 folds are finished already" in out
    assert out.count("unchanged, skipped") == 2
    assert not list((recipe / "exp" / "x").glob("systems/*/folds/.*"))
    interrupted = outcome(recipe)
    shutil.rmtree(recipe / "exp" / "x")
    assert main([*FAST, *WORDS], recipe) == 0
    assert outcome(recipe) == interrupted


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["prepare", "extract", "train", "score", "report"])
def test_killed_in_any_stage_with_workers(stage: str, recipe: Path) -> None:
    slow = {
        "prepare": {"mmssl.stages.utterance_prepare.write_folds": 20.0},
        "extract": {"mmssl.features.extract.make_fingerprint": 0.0},
        "train": {},
        "score": {"mmssl.stages.utterance_score.write_json": 20.0},
        "report": {"mmssl.stages.utterance_score.write_report": 20.0},
    }[stage]
    exp = recipe / "exp" / "x"
    signs: dict[str, Callable[[], Any]] = {
        "prepare": (recipe / "data" / "manifest.jsonl").exists,
        "extract": lambda: list(recipe.glob("feats/hubert*/tmp-*")) or list(recipe.glob("feats/hubert*/shard-*.jsonl")),
        "train": lambda: len(folds_done(recipe)) >= 2,
        "score": (exp / "stamps" / "train.json").exists,
        "report": (exp / "stamps" / "score.json").exists,
    }
    process = start(recipe, "--nj", "2", delay=slow)
    kill_when(process, signs[stage])
    finished = folds_done(recipe)
    finish(start(recipe, "--nj", "2"))
    assert all(folds_done(recipe)[path] == when for path, when in finished.items())
    interrupted = outcome(recipe)
    for folder in ("exp", "feats"):
        shutil.rmtree(recipe / folder)
    finish(start(recipe, "--nj", "1"))
    assert outcome(recipe) == interrupted
