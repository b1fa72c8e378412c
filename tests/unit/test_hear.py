"""The rules of the HEAR 2021 common API, as its validator checks them, and where frames lie in time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmssl import hear, load_upstream
from mmssl.errors import ConfigError, InputError

TINY: list[tuple[str, dict[str, Any]]] = [
    ("fbank", {}),
    ("mel", {}),
    ("wav2vec2", {"preset": "wav2vec2_tiny"}),
    ("cpc", {"hidden_size": 8, "context_size": 8}),
    ("wav2vec1", {"channels": 8, "aggregator_kernels": [2]}),
    ("tera", {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "feed_forward_size": 16}),
    ("pase_plus", {"channels": [4] * 8, "recurrent_size": 6, "embedding_size": 6}),
    ("byol_a", {"hidden_size": 12, "num_mel_bins": 16}),
    ("xvector", {"channels": 8, "wide_size": 8}),
]
IDS = [name for name, _ in TINY]


@pytest.mark.parametrize(("name", "arguments"), TINY, ids=IDS)
def test_the_rules_of_the_validator(tmp_path: Path, name: str, arguments: dict[str, Any]) -> None:
    path = tmp_path / "model.json"
    hear.write_model_file(path, name, **arguments)
    model = hear.load_model(str(path))
    assert isinstance(model, torch.nn.Module)
    assert model.sample_rate in (16000, 22050, 44100, 48000)
    assert type(model.scene_embedding_size) is int
    assert type(model.timestamp_embedding_size) is int
    generator = torch.Generator().manual_seed(0)
    for seconds in (1.07, 1.98):
        audio = torch.rand(2, int(seconds * model.sample_rate), generator=generator) * 2 - 1
        embeddings, timestamps = hear.get_timestamp_embeddings(audio, model)
        assert embeddings.dtype == torch.float32
        assert embeddings.shape == (2, timestamps.shape[1], model.timestamp_embedding_size)
        times = timestamps.numpy()
        assert times.shape[0] == 2
        steps = np.diff(times)
        assert np.abs(steps - steps.mean()).max() < 1
        # the validator only warns of a first time above the step, which windows of 25 ms every 10 ms have
        assert 0 <= times.min() <= 50
        assert 1000 * seconds - 2 * steps.mean() <= times.max() <= 1000 * seconds
    audio = torch.rand(4, int(2.74 * model.sample_rate), generator=generator) * 2 - 1
    scenes = hear.get_scene_embeddings(audio, model)
    assert scenes.shape == (4, model.scene_embedding_size)
    assert scenes.dtype == torch.float32
    torch.testing.assert_close(scenes[2], hear.get_timestamp_embeddings(audio, model)[0][2].mean(0))


@pytest.mark.parametrize(
    ("name", "arguments", "first"),
    [
        ("fbank", {}, 12.5),  # windows of 25 ms inside the clip
        ("wav2vec2", {"preset": "wav2vec2_base", "conv_channels": 4, "hidden_size": 16, "num_layers": 1}, 12.5),
        ("tera", TINY[5][1], 0.0),  # windows centred on the clip's start
        ("byol_a", TINY[7][1], 35.0),  # eight frames centred on 0 to 70 ms
    ],
)
def test_frames_are_where_their_windows_are(name: str, arguments: dict[str, Any], first: float) -> None:
    if name == "wav2vec2":
        arguments = arguments | {"num_heads": 2, "feed_forward_size": 16}
    model = hear.HearModel(load_upstream(name, **arguments))
    for samples in (16000, 16100, 23456):
        times = hear.get_timestamp_embeddings(torch.zeros(1, samples), model)[1][0]
        assert float(times[0]) == pytest.approx(first, abs=0.1)
        shift = 1000 * model.hop_length / 16000
        assert float(times[-1]) == pytest.approx(first + (len(times) - 1) * shift, abs=0.1)


def test_a_click_is_found_at_its_time() -> None:
    model = hear.HearModel(load_upstream("fbank"))
    audio = torch.zeros(1, 16000)
    audio[0, 8000] = 1.0
    embeddings, times = hear.get_timestamp_embeddings(audio, model)
    loud = embeddings[0].mean(1) > embeddings[0].mean(1).min() + 1
    assert float(times[0, loud].mean()) == pytest.approx(500, abs=5)


def test_layers_can_be_chosen_and_joined() -> None:
    upstream = load_upstream("wav2vec2", preset="wav2vec2_tiny")
    size, count = upstream.spec.streams["audio"].hidden_sizes[0], upstream.spec.streams["audio"].num_layers
    audio = torch.randn(2, 8000, generator=torch.Generator().manual_seed(0)) * 0.1
    states = upstream(audio)["audio"].hidden_states
    for layers, expected in (
        (0, states[0]),
        (-1, states[-1]),
        ("last", states[-1]),
        ("mean", sum(states) / count),
        ("concat", torch.cat(states, dim=2)),
    ):
        model = hear.HearModel(upstream, layers)
        assert model.scene_embedding_size == (count * size if layers == "concat" else size)
        torch.testing.assert_close(hear.get_timestamp_embeddings(audio, model)[0], expected)


def test_short_sounds_are_filled_up() -> None:
    model = hear.load_model()
    embeddings, times = hear.get_timestamp_embeddings(torch.ones(1, 100), model)
    assert embeddings.shape == (1, 1, 80)
    torch.testing.assert_close(embeddings, model(torch.nn.functional.pad(torch.ones(1, 100), (0, 300)))[0])
    assert times.shape == (1, 1)


def test_a_module_stands_for_one_upstream(tmp_path: Path) -> None:
    module = hear.module_for("fbank", num_mel_bins=23)
    model = module.load_model()
    assert model.scene_embedding_size == 23
    assert module.get_scene_embeddings(torch.zeros(1, 8000), model).shape == (1, 23)
    hear.write_model_file(tmp_path / "m.json", "fbank", num_mel_bins=40)
    assert module.load_model(str(tmp_path / "m.json")).scene_embedding_size == 40


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no HEAR model file"),
        ("[]", "JSON object"),
        ('{"upstreem": "fbank"}', "JSON object"),
        (None, "no HEAR model"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "m.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        hear.load_model(str(path))


def test_wrong_upstreams_layers_and_audio_are_named() -> None:
    with pytest.raises(ConfigError, match="takes images"):
        hear.HearModel(load_upstream("mmssl.testing.dummies.DummyImage"))
    with pytest.raises(ConfigError, match="8000 Hz"):
        hear.HearModel(load_upstream("fbank", sample_rate=8000))
    upstream = load_upstream("byol_a", hidden_size=12, num_mel_bins=16)
    with pytest.raises(ConfigError, match="one width for a mean"):
        hear.HearModel(upstream, "mean")
    with pytest.raises(ConfigError, match="There are 3 layers, 3 was asked for"):
        hear.HearModel(upstream, 3)
    with pytest.raises(ConfigError, match="last, mean, concat"):
        hear.HearModel(upstream, "first")
    with pytest.raises(InputError, match="n_sounds, n_samples"):
        hear.HearModel(upstream)(torch.zeros(16000))


def test_the_file_is_plain_json(tmp_path: Path) -> None:
    hear.write_model_file(tmp_path / "m.json", "cpc", layers=-1, seed=4, hidden_size=8)
    content = json.loads((tmp_path / "m.json").read_text())
    assert content == {"upstream": "cpc", "arguments": {"hidden_size": 8}, "layers": -1, "seed": 4}


@pytest.mark.slow
def test_the_public_validator(tmp_path: Path) -> None:
    # hearvalidator needs TensorFlow: docs/how-to/hear.md says how to make an environment that has both
    pytest.importorskip("hearvalidator")
    for name, arguments in TINY:
        path = tmp_path / f"{name}.json"
        hear.write_model_file(path, name, **arguments)
        command = [sys.executable, "-m", "hearvalidator.validate", "mmssl.hear", "-m", str(path), "-d", "cpu"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{name}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
