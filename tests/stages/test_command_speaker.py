from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open

from mmssl.speaker import load_speaker
from mmssl.stages.cli import main
from mmssl.training.speaker_calibration import Calibration, weights_sha256, write_calibration
from mmssl.training.speaker_files import build_speaker_model, save_speaker_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    sizes = {"channels": 16, "wide_size": 24, "embedding_size": 6}
    built = build_speaker_model("fbank", "xvector", upstream_kwargs={"num_mel_bins": 20}, encoder_kwargs=sizes)
    save_speaker_model(tmp_path / "model", built)
    return tmp_path / "model"


@pytest.fixture
def wavs(tmp_path: Path) -> list[str]:
    paths = []
    for k, seconds in enumerate((0.5, 0.7, 0.005)):
        noise = 0.1 * torch.randn(int(16000 * seconds), generator=torch.Generator().manual_seed(k))
        soundfile.write(tmp_path / f"{k}.wav", noise.numpy(), 16000)
        paths.append(str(tmp_path / f"{k}.wav"))
    return paths


@pytest.mark.parametrize("ending", ["npz", "parquet", "safetensors"])
def test_embed_writes_every_format(
    model: Path, wavs: list[str], tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / f"out.{ending}"
    assert main(["embed", str(model), *wavs[:2], "--output", str(output)]) == 0
    assert "2 embeddings of width 6" in capsys.readouterr().out
    if ending == "npz":
        with np.load(output, allow_pickle=False) as file:
            ids, table = file["ids"].tolist(), file["embeddings"]
    elif ending == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        columns = parquet.read_table(output).to_pydict()
        ids, table = columns["id"], np.array(columns["embedding"], dtype=np.float32)
    else:
        with safe_open(output, "numpy") as file:
            ids, table = json.loads(file.metadata()["ids"]), file.get_tensor("embeddings")
    assert ids == wavs[:2]
    assert np.array_equal(table, load_speaker(model).embed(wavs[:2]).numpy())


def test_embed_takes_a_manifest_and_an_upstream(wavs: list[str], tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text(json.dumps({"id": "one", "audio": wavs[0]}) + "\n")
    output = tmp_path / "out.npz"
    words = ["embed", "fbank", wavs[1], "--manifest", str(manifest), "--output", str(output)]
    assert main([*words, "--argument", "num_mel_bins=12"]) == 0
    with np.load(output) as file:
        assert file["ids"].tolist() == [wavs[1], "one"]
        assert file["embeddings"].shape == (2, 12)


def test_a_clip_that_cannot_be_embedded_is_named_and_left_out(
    model: Path, wavs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.npz"
    gone = str(tmp_path / "gone.wav")
    assert main(["embed", str(model), *wavs, gone, "--output", str(output)]) == 1
    errors = capsys.readouterr().err
    assert wavs[2] in errors
    assert gone in errors
    assert "2 of 4 clips" in errors
    with np.load(output) as file:
        assert file["ids"].tolist() == wavs[:2]
    output.unlink()
    assert main(["embed", str(model), gone, "--output", str(output)]) == 1
    assert not output.exists()


def test_mistakes_of_embed(model: Path, wavs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "out.npz")
    for words, message in (
        (["embed", str(model), "--output", output], "nothing to embed"),
        (["embed", str(model), wavs[0], wavs[0], "--output", output], "given twice"),
        (["embed", str(model), wavs[0], "--output", str(tmp_path / "out.txt")], "must end in"),
        (["embed", str(model), wavs[0], "--output", str(tmp_path / "no" / "out.npz")], "does not exist"),
        (["embed", str(tmp_path), wavs[0], "--output", output], "no folder of a speaker model"),
        (["embed", str(model), wavs[0], "--output", output, "--argument", "a=1"], "for upstreams"),
    ):
        assert main(words) == 1, words
        assert message in capsys.readouterr().err


def test_verify_prints_the_score_and_the_decision(
    model: Path, wavs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["verify", str(model), *wavs[:2]]
    assert main(words) == 0
    shown = capsys.readouterr().out
    score = load_speaker(model).verify(*wavs[:2]).score
    assert shown.startswith(f"score {score:.4f} (no calibration.json")
    assert main([*words, "--require-same"]) == 1
    assert "needs a decision" in capsys.readouterr().err
    for threshold, code, verdict in ((score - 0.01, 0, "one speaker"), (score + 0.01, 3, "two speakers")):
        write_calibration(model, Calibration(threshold, 10.0, -1.0, weights_sha256(model)))
        assert main([*words, "--require-same"]) == code
        assert capsys.readouterr().out.startswith(verdict)
        assert main(words) == 0
        capsys.readouterr()
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["same"] is False
    assert found["llr"] == pytest.approx(10 * score - 1)
    assert (found["enrol"], found["test"]) == (wavs[0], wavs[1])


def test_mistakes_of_verify(model: Path, wavs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        ([str(model), wavs[0], wavs[2]], "2.wav"),
        ([str(model), wavs[0], str(tmp_path / "gone.wav")], "gone.wav"),
        ([str(tmp_path / "nothing"), *wavs[:2]], "does not exist"),
    ):
        assert main(["verify", *words]) == 1
        assert message in capsys.readouterr().err
