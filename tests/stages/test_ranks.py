"""Ranks of one extraction, started by submitit or torchrun: killed at any moment and started again, the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from mmssl.errors import MmsslError
from mmssl.features.extract import ExtractOptions, extract
from mmssl.features.launch import launch
from mmssl.features.maintain import verify
from mmssl.features.store import FeatureStore

UPSTREAM = str(Path(__file__).parents[1] / "unit" / "features" / "conv_upstream.py")


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """24 clips of noise."""
    rng = np.random.default_rng(0)
    lines = []
    for i in range(24):
        path = tmp_path / "wav" / f"{i}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, 0.1 * rng.standard_normal(4000 + 100 * i), 16000, subtype="FLOAT")
        lines.append(json.dumps({"id": f"clip-{i:02d}", "audio": str(path)}) + "\n")
    target = tmp_path / "m.jsonl"
    target.write_text("".join(lines))
    return target


def words(manifest: Path, folder: Path, delay: float = 0.0) -> list[str]:
    own = ["--batch-seconds=0.5", "--shard-seconds=0", "--quiet"]
    return ["extract", str(manifest), str(folder), *own, "--upstream", UPSTREAM, f"delay={delay}"]


def processes(folder: Path) -> list[int]:
    """Ids of the processes that extract into a folder: the ranks, not what has started them."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            started_by = "--launcher" in command or "torch.distributed.run" in command
            if str(folder) in command and "extract" in command and not started_by:
                found.append(int(entry.name))
    return found


def content(folder: Path) -> dict[str, list[torch.Tensor]]:
    store = FeatureStore(folder)
    return {c: [*store.read(c).hidden_states, *store.pooled(c).hidden_states] for c in store}


def equal(one: Path, two: Path) -> bool:
    a, b = content(one), content(two)
    return a.keys() == b.keys() and all(torch.equal(x, y) for c in a for x, y in zip(a[c], b[c], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["launcher", "torchrun"])
def test_a_killed_rank_and_another_start(way: str, manifest: Path, tmp_path: Path) -> None:
    folder, generator = tmp_path / "killed", random.Random(1)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = words(manifest, folder, delay=0.15)
    if way == "launcher":
        place = arguments.index("--upstream")
        start = ["-m", "mmssl", *arguments[:place], "--launcher", "local", "--world-size", "2", *arguments[place:]]
    else:
        start = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "mmssl", *arguments]
    command = [sys.executable, *start]
    counts = []
    for _ in range(4):
        before = len(FeatureStore(folder)) if (folder / "store.json").exists() else 0
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path
        )
        until = time.monotonic() + 120
        # when one more shard is there, and a moment later
        while process.poll() is None and time.monotonic() < until:
            if (folder / "store.json").exists() and len(FeatureStore(folder)) > before:
                break
            time.sleep(0.02)
        time.sleep(generator.uniform(0.0, 0.2))
        ranks = processes(folder)
        if ranks:
            os.kill(generator.choice(ranks), signal.SIGKILL)
        process.wait(timeout=120)
        if (folder / "store.json").exists():
            assert verify(FeatureStore(folder)).ok
            counts.append(len(FeatureStore(folder)))
    assert counts == sorted(counts)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    how = ExtractOptions(batch_seconds=0.5, progress=False)
    extract(UPSTREAM, manifest, tmp_path / "whole", upstream_kwargs={"delay": 0.15}, options=how)
    assert equal(folder, tmp_path / "whole")
    assert not list(folder.glob("tmp-*"))


SBATCH = """#!{python}
# Runs every task of an array at once, as Slurm would on its nodes, and prints what sbatch prints.
import os, re, subprocess, sys
script = open(sys.argv[1]).read()
with open(os.environ["FAKE_SLURM"], "a") as file:
    file.write(script)
array = re.search(r"#SBATCH --array=0-([0-9]+)", script)
for task in range(int(array[1]) + 1 if array else 1):
    own = {{"SLURM_JOB_ID": "77", "SLURM_NODEID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "1"}}
    own |= {{"SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "localhost"}}
    if array:
        own |= {{"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": str(task)}}
    nowhere = subprocess.DEVNULL
    subprocess.Popen(["bash", sys.argv[1]], env={{**os.environ, **own}}, stdin=nowhere, stdout=nowhere, stderr=nowhere)
print("Submitted batch job 77")
"""
SRUN = """#!{python}
# Runs a command with its output where --output says.
import os, subprocess, sys
words, options = sys.argv[1:], {{}}
while words[0].startswith("--"):
    name = words.pop(0)
    if name != "--unbuffered":
        options[name] = words.pop(0)
task = os.environ.get("SLURM_ARRAY_TASK_ID", "")
path = options["--output"].replace("%A", "77").replace("%a", task).replace("%j", "77").replace("%t", "0")
with open(path, "a") as out:
    sys.exit(subprocess.run(words, stdout=out, stderr=out).returncode)
"""
SACCT = """#!{python}
print("JobID|State|NodeList")
for job in ("77", *(f"77_{{task}}" for task in range(8))):
    print(f"{{job}}|RUNNING|node")
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for Slurm's commands; returns the file in which scripts that were submitted are."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("sacct", SACCT), ("scancel", ""), ("squeue", "")):
        path = binaries / name
        path.write_text(text.format(python=sys.executable) if text else "#!/bin/sh\nexit 0\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{binaries}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(tmp_path / "submitted"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path / "submitted"


@pytest.mark.slow
def test_slurm_gets_an_array_and_its_options(slurm: Path, manifest: Path, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    options = {"slurm_partition": "gpu", "timeout_min": 90, "gpus_per_node": 1, "cpus_per_task": 4}
    lines = launch(words(manifest, folder)[1:], folder, 2, "slurm", options)
    assert [line.split(":")[0] for line in lines] == ["rank 0", "rank 1"]
    script = slurm.read_text()
    for directive in ("array=0-1", "partition=gpu", "time=90", "gpus-per-node=1", "cpus-per-task=4"):
        assert f"#SBATCH --{directive}" in script, script
    assert "#SBATCH --job-name=mmssl-extract" in script
    how = ExtractOptions(batch_seconds=0.5, progress=False)
    extract(UPSTREAM, manifest, tmp_path / "whole", upstream_kwargs={"delay": 0.0}, options=how)
    assert equal(folder, tmp_path / "whole")
    assert {name.split("-of-")[0] for name in FeatureStore(folder).parts} == {"shard-rank-0", "shard-rank-1"}


@pytest.mark.slow
def test_a_failed_slurm_job_is_named(slurm: Path, tmp_path: Path) -> None:
    with pytest.raises(MmsslError, match=r"1 of 1 ranks failed(.|\n)*nowhere"):
        launch(["nowhere.jsonl", str(tmp_path / "s"), "--upstream", "fbank"], tmp_path / "s", 1, "slurm", {})
