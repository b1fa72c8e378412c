"""The Hugging Face library itself reads what `mmssl features export --format parquet` writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmssl.features.export import export
from mmssl.features.extract import extract
from mmssl.features.store import FeatureStore

READ = """
import hashlib, json, sys
import datasets, numpy as np
rows = datasets.load_dataset("parquet", data_files=sys.argv[1], split="train", cache_dir=sys.argv[2])
rows = rows.with_format("numpy")
found = {}
for row in rows:
    array = np.asarray(row["features"], np.float32).reshape(row["shape"].astype(int))
    found[str(row["id"])] = [list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]
print(json.dumps(found))
"""


def python_with_datasets() -> str:
    """A Python that has `datasets`: the one that MMSSL_DATASETS_PYTHON names, or this one."""
    python = os.environ.get("MMSSL_DATASETS_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import datasets"], capture_output=True).returncode:
        pytest.skip("no Python with `datasets`: MMSSL_DATASETS_PYTHON may name one")
    return python


@pytest.mark.slow
@pytest.mark.parametrize("stat", [None, "mean"])
def test_datasets_reads_the_export(conv_upstream: str, make_clips, tmp_path: Path, stat: str | None) -> None:
    import hashlib

    python = python_with_datasets()
    extract(conv_upstream, make_clips(5), tmp_path / "s")
    store = FeatureStore(tmp_path / "s")
    assert export(store, tmp_path / "out", "parquet", stat=stat) == 5
    command = [python, "-c", READ, str(tmp_path / "out" / "features.parquet"), str(tmp_path / "cache")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert sorted(found) == store.ids
    for clip_id in store:
        read = store.read(clip_id).hidden_states if stat is None else store.pooled(clip_id, stat=stat).hidden_states
        array = np.stack([h.numpy() if stat is None else h[0].numpy() for h in read])
        assert found[clip_id] == [list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]
