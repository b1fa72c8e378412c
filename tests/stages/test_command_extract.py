from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mmssl.errors import ConfigError
from mmssl.features.store import FeatureStore
from mmssl.stages.cli import main
from mmssl.stages.commands.extract import parse_pairs

CONV = str(Path(__file__).parents[1] / "unit" / "features" / "conv_upstream.py")


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    lines = []
    for i in range(4):
        soundfile.write(tmp_path / f"{i}.wav", 0.1 * rng.standard_normal(3000 + 500 * i), 16000)
        lines.append(json.dumps({"id": f"clip{i}", "audio": f"{i}.wav"}))
    path = tmp_path / "manifest.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def run(*words: object) -> int:
    return main([str(word) for word in words])


def test_extract_then_info_and_verify(manifest, tmp_path, capsys):
    store = tmp_path / "store"
    words = ["extract", manifest, store, "--layers", "0,-1", "--pooled", "mean,max", "--dtype", "float16"]
    words += ["--upstream", CONV, "width=4", "scale=0.5"]
    assert run(*words) == 0
    assert "4 clips computed, 0 were there, 0 skipped" in capsys.readouterr().out
    assert run(*words) == 0
    assert "nothing to compute" in capsys.readouterr().out
    opened = FeatureStore(store)
    assert opened.fingerprint.fields["kwargs"] == {"width": 4, "scale": 0.5}
    assert opened.read("clip2").hidden_sizes == (4, 4)
    assert opened.stats == ("mean", "max")
    assert run("features", "info", store) == 0
    text = capsys.readouterr().out
    for expected in ("4 clips", "float16", "mean, max", "2 of 3 layers, width 4, hop 160", opened.fingerprint.digest):
        assert expected in text
    assert run("features", "verify", store) == 0
    assert "4 clips, all whole" in capsys.readouterr().out


def test_verify_names_damage_and_remove_mends_it(manifest, tmp_path, capsys):
    store = tmp_path / "store"
    words = ["extract", manifest, store, "--no-frames", "--quiet", "--upstream", CONV]
    assert run(*words) == 0
    assert capsys.readouterr() == ("", "")
    shard = next(store.glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert run("features", "verify", store) == 1
    first = capsys.readouterr()
    assert "damaged clip" in first.err
    assert "1 of 4 clips" in first.out
    assert run("features", "verify", store, "--remove") == 1
    assert len(FeatureStore(store)) == 3
    assert run(*words) == 0
    assert run("features", "verify", store) == 0
    assert run("features", "gc", store) == 0


def test_skipped_files_are_listed_and_errors_are_one_message(manifest, tmp_path, capsys):
    (tmp_path / "1.wav").write_text("no sound")
    words = ["extract", manifest, tmp_path / "store", "--upstream", CONV]
    assert run(*words) == 1
    captured = capsys.readouterr()
    assert "1.wav" in captured.err
    assert "Traceback" not in captured.err
    assert run(*words, "--on-error", "skip") == 0
    captured = capsys.readouterr()
    assert "skipped clip1: " in captured.err
    assert "1 skipped" in captured.out
    assert run(*words, "scale=3") == 1
    assert "kwargs: {} -> " in capsys.readouterr().err


def test_torchrun_environment_gives_the_share(manifest, tmp_path, monkeypatch, capsys):
    words = ["extract", manifest, tmp_path / "store", "--batch-seconds", "0.1", "--upstream", CONV]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        assert run(*words) == 0
        assert "2 clips computed" in capsys.readouterr().out
    assert len(FeatureStore(tmp_path / "store")) == 4
    assert run(*words, "--rank", "1") == 1
    assert "go together" in capsys.readouterr().err


def test_pairs_are_json_or_text():
    parsed = parse_pairs(["a=1", "b=1e-3", "c=true", "d=False", "e=None", "path=x/y=z", "g=[1, 2]", 'h="1"'])
    assert parsed == {"a": 1, "b": 1e-3, "c": True, "d": False, "e": None, "path": "x/y=z", "g": [1, 2], "h": "1"}
    with pytest.raises(ConfigError, match="key=value"):
        parse_pairs(["manifest.jsonl"])
    with pytest.raises(ConfigError, match="twice"):
        parse_pairs(["a=1", "a=2"])


def test_layers_must_be_numbers(manifest, tmp_path, capsys):
    assert run("extract", manifest, tmp_path / "store", "--layers", "one", "--upstream", CONV) == 1
    assert "0,6,-1" in capsys.readouterr().err


def test_video_of_an_audio_visual_upstream(tmp_path, capsys):
    from mmssl.faces.write import write_video

    rng = np.random.default_rng(0)
    for name, sound in (("both", 0.1 * rng.standard_normal((1, 9600)).astype(np.float32)), ("silent", None)):
        write_video(tmp_path / f"{name}.mkv", rng.integers(0, 256, (15, 16, 16, 3), np.uint8), 25.0, sound, 16000)
    lines = [json.dumps({"id": name, "video": f"{name}.mkv"}) for name in ("both", "silent")]
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines))
    upstream = ["--upstream", "mmssl.testing.dummies.DummyAudioVisual"]
    words = ["extract", tmp_path / "manifest.jsonl", "--quiet"]
    assert run(*words, tmp_path / "all", *upstream) == 1
    assert "'silent' has no sound" in capsys.readouterr().err
    assert run(*words, tmp_path / "partial", "--partial", "--streams", "audio,video", *upstream) == 0
    store = FeatureStore(tmp_path / "partial")
    assert [store.streams_of(clip) for clip in store.ids] == [["audio", "video"], ["video"]]
    assert run(*words, tmp_path / "video", "--inputs", "video", *upstream) == 0
    assert FeatureStore(tmp_path / "video").streams_of("both") == ["video"]
    assert run("features", "info", tmp_path / "partial") == 0
    assert "width 8, hop 1 at 25 Hz" in capsys.readouterr().out
