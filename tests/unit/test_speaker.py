from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import mmssl
from mmssl.errors import CheckpointError, ConfigError, InputError, MediaError
from mmssl.lengths import pad
from mmssl.speaker import LayerMean, Speaker, load_embedder, load_speaker
from mmssl.training.speaker_calibration import Calibration, weights_sha256, write_calibration
from mmssl.training.speaker_files import WEIGHTS, build_speaker_model, save_speaker_model
from mmssl.types import Clip, Padded
from mmssl.upstreams.base import load_upstream

ARGUMENTS: dict[str, Any] = {
    "upstream_kwargs": {"num_mel_bins": 20},
    "encoder_kwargs": {"channels": 16, "wide_size": 24, "embedding_size": 6},
}


def tiny() -> Any:
    return build_speaker_model("fbank", "xvector", **ARGUMENTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exp") / "model"
    save_speaker_model(path, tiny())
    return path


def wave(seed: int, seconds: float = 0.5) -> torch.Tensor:
    return 0.1 * torch.randn(int(16000 * seconds), generator=torch.Generator().manual_seed(seed))


def write(path: Path, samples: torch.Tensor) -> Path:
    soundfile.write(path, samples.numpy(), 16000, subtype="FLOAT")
    return path


def test_embeddings_are_those_of_the_model_whatever_a_clip_comes_as(folder: Path, tmp_path: Path) -> None:
    speaker = mmssl.load_speaker(folder)
    one, two = wave(0), wave(1, 0.8)
    expected = tiny().embed(Padded(*pad([one, two])))
    path = write(tmp_path / "two.wav", two)
    long = write(tmp_path / "long.wav", torch.cat([one, two]))
    segment = Clip("segment", audio=str(long), start=0.5, duration=0.8)
    for given in (two, two.numpy(), path, str(path), segment):
        torch.testing.assert_close(speaker.embed(given), expected[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(speaker.embed([one, path]), expected, rtol=1e-4, atol=1e-5)
    assert (speaker.output_size, speaker.sample_rate) == (6, 16000)


def test_a_model_of_clips_without_silence_cuts_it_off(tmp_path: Path) -> None:
    plain = tiny()
    save_speaker_model(tmp_path / "model", build_speaker_model("fbank", "xvector", **ARGUMENTS, trim_silence=30.0))
    speaker = mmssl.load_speaker(tmp_path / "model")
    assert speaker.model.trim_silence == 30.0
    silence = torch.zeros(8000)
    clip = torch.cat([silence, wave(0), silence])
    # 50 ms stay on both sides, and a frame of 10 ms that its loud neighbour is averaged into
    kept = clip[8000 - 960 : 16000 + 960]
    expected = plain.embed(Padded(kept[None], torch.tensor([len(kept)])))[0]
    torch.testing.assert_close(speaker.embed(clip), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(Speaker(plain).embed(clip), expected, atol=1e-2)
    with pytest.raises(ConfigError, match="above 0 dB"):
        build_speaker_model("fbank", "xvector", **ARGUMENTS, trim_silence=0)


def test_a_score_is_the_cosine_and_several_clips_count_as_their_mean(folder: Path) -> None:
    speaker = load_speaker(folder)
    a, b, c = (speaker.embed(wave(k)).double().numpy() for k in range(3))
    unit = [v / np.linalg.norm(v) for v in (a, b, c)]
    found = speaker.verify(wave(0), wave(1))
    assert found.score == pytest.approx(unit[0] @ unit[1], abs=1e-6)
    assert (found.same, found.llr, found.threshold) == (None, None, None)
    assert "no calibration.json" in found.note
    mean = (unit[0] + unit[1]) / 2
    together = speaker.verify([wave(0), wave(1)], wave(2)).score
    assert together == pytest.approx(mean @ unit[2] / np.linalg.norm(mean), abs=1e-6)
    assert speaker.verify(wave(2), [wave(0), wave(1)]).score == pytest.approx(together, abs=1e-12)


def test_a_calibration_gives_decisions(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    save_speaker_model(copy, tiny())
    score = load_speaker(copy).verify(wave(0), wave(1)).score
    for threshold, same in ((score - 0.01, True), (score + 0.01, False)):
        write_calibration(copy, Calibration(threshold, 20.0, -3.0, weights_sha256(copy)))
        found = load_speaker(copy).verify(wave(0), wave(1))
        assert found.same is same
        assert found.llr == pytest.approx(20 * score - 3)
        assert dataclasses.asdict(found)["note"] == ""
    other = build_speaker_model("fbank", "xvector", encoder_kwargs={"channels": 16, "wide_size": 24}, seed=9)
    save_speaker_model(copy, other)
    with pytest.raises(CheckpointError, match="fitted to other weights"):
        load_speaker(copy)


def test_the_mean_of_an_upstreams_layer(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "feed_forward_size": 32}
    embedder = load_embedder("hubert", layer=1, arguments=sizes)
    assert isinstance(embedder, LayerMean)
    expected = load_upstream("hubert", **sizes)(wave(0)[None])["audio"].hidden_states[1][0].mean(0)
    torch.testing.assert_close(embedder.embed(wave(0)), expected)
    assert embedder.output_size == 16
    with pytest.raises(InputError, match="no layer 7"):
        load_embedder("hubert", layer=7, arguments=sizes)


def test_a_folder_of_a_speaker_model_is_one(folder: Path) -> None:
    assert isinstance(load_embedder(folder), Speaker)


def test_user_mistakes(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_speaker(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"Did you mean .*model"):
        load_speaker(folder.parent)
    with pytest.raises(CheckpointError, match="no folder of a speaker model"):
        load_embedder("hubret")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "speaker.json").write_text("{}")
    with pytest.raises(CheckpointError, match="does not describe a speaker model"):
        load_speaker(tmp_path / "m")
    speaker = load_speaker(folder)
    with pytest.raises(MediaError, match=r"gone\.wav"):
        speaker.embed(tmp_path / "gone.wav")
    short = write(tmp_path / "short.wav", wave(0, 0.01))
    with pytest.raises(InputError, match=r"short\.wav: .*400 samples"):
        speaker.embed(short)
    with pytest.raises(InputError, match="empty list"):
        speaker.embed([])
    with pytest.raises(InputError, match="finite floats"):
        speaker.embed(np.zeros((2, 100), dtype=np.float32))
    with pytest.raises(InputError, match="finite floats"):
        speaker.embed(torch.full((8000,), torch.nan))
    assert (folder / WEIGHTS).is_file()
