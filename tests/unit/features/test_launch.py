from __future__ import annotations

import json

import pytest

from mmssl.errors import ConfigError, MmsslError
from mmssl.features.launch import launch
from mmssl.features.store import FeatureStore
from mmssl.stages.cli import main

submitit = pytest.importorskip("submitit")


@pytest.mark.slow
def test_local_ranks_fill_one_store(conv_upstream, make_clips, tmp_path, capsys):
    clips = make_clips(5)
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(json.dumps({"id": c.id, "audio": c.audio}) + "\n" for c in clips))
    words = ["extract", str(manifest), str(tmp_path / "s"), "--batch-seconds=0.5", "--pooled", "mean,max"]
    words += ["--launcher", "local", "--world-size", "2", "--upstream", conv_upstream, "width=4"]
    assert main(words) == 0
    output = capsys.readouterr().out
    assert "rank 0" in output
    assert "rank 1" in output
    store = FeatureStore(tmp_path / "s")
    assert store.ids == sorted(c.id for c in clips)
    assert store.stats == ("mean", "max")
    assert {name.split("-of-")[0] for name in store.parts} == {"shard-rank-0", "shard-rank-1"}
    with pytest.raises(MmsslError, match=r"1 of 1 ranks failed(.|\n)*nowhere"):
        launch(["nowhere.jsonl", str(tmp_path / "t"), "--upstream", "fbank"], tmp_path / "t", 1, "local", {})


def test_options_that_submitit_does_not_know(tmp_path):
    with pytest.raises(ConfigError, match="no_such_option"):
        launch(["m", "f", "--upstream", "fbank"], tmp_path / "s", 1, "local", {"no_such_option": 3})
    with pytest.raises(ConfigError, match="world_size"):
        launch(["m", "f", "--upstream", "fbank"], tmp_path / "s", 0, "local", {})
