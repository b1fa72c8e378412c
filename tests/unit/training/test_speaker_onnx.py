"""ONNX graphs of speaker models: what onnxruntime computes equals the model, over lengths and batch sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmssl.errors import ConfigError, InputError
from mmssl.stages.cli import main
from mmssl.training.speaker_files import build_speaker_model, save_speaker_model
from mmssl.training.speaker_onnx import OnnxGraph, compare_onnx, export_onnx
from mmssl.types import Padded

TINY: dict[str, dict[str, Any]] = {
    "xvector": {"channels": 16, "wide_size": 24, "embedding_size": 6},
    "ecapa_tdnn": {"channels": 16, "joined_size": 24, "embedding_size": 6, "scale": 2},
    "resnet": {"depth": 18, "width": 2, "embedding_size": 6},
    "rawnet3": {"channels": 16, "joined_size": 24, "embedding_size": 6, "scale": 2},
    "ska_tdnn": {"channels": 8, "front_channels": 4, "joined_size": 24, "embedding_size": 6, "scale": 2},
}
HUBERT = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "feed_forward_size": 32}
NEEDS_RUNTIME = "needs onnx, onnxscript and onnxruntime: pip install 'mmssl[export]'"


@pytest.fixture(autouse=True)
def packages() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=NEEDS_RUNTIME)


def build(encoder: str = "xvector", upstream: str | None = "fbank", **kwargs: Any) -> Any:
    model = build_speaker_model(upstream, encoder, encoder_kwargs=TINY[encoder], **kwargs)
    # running statistics other than 0 and 1, so that a norm that is left out shows
    generator = torch.Generator().manual_seed(0)
    for name, buffer in model.encoder.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model


def check(model: Any, path: Path) -> OnnxGraph:
    import onnxruntime

    state = torch.get_rng_state()
    graph = export_onnx(model, path)
    assert torch.equal(torch.get_rng_state(), state)
    metadata = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    assert metadata == graph.metadata()
    least = graph.min_length
    lengths = (least, least + 1, 2 * least + 3, 9999, 40001) if graph.input == "waveforms" else (1, 2, 49, 211)
    found = compare_onnx(model, graph, lengths)
    assert set(found) == set(lengths)
    assert max(found.values()) < 1e-4, found
    return graph


def test_the_command_writes_a_graph_of_waveforms_of_any_number_and_length(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnxruntime

    model = build()
    save_speaker_model(tmp_path / "model", model)
    assert main(["export-onnx", str(tmp_path / "model"), str(tmp_path / "m.onnx")]) == 0
    shown = capsys.readouterr().out
    assert "waveforms at 16000 Hz, at least 400 samples -> embeddings of 6" in shown
    assert "Largest difference" in shown
    # written out here, not by compare_onnx
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    for number, length in ((1, 400), (2, 401), (5, 7777), (1, 30000)):
        clips = 0.1 * np.random.default_rng(length).normal(size=(number, length)).astype(np.float32)
        (found,) = session.run(["embeddings"], {"waveforms": clips})
        expected = model.embed(Padded(torch.from_numpy(clips), torch.full((number,), length))).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert main(["export-onnx", str(tmp_path / "model"), str(tmp_path / "m.pt")]) == 1
    assert "NAME.onnx" in capsys.readouterr().err


@pytest.mark.slow
def test_export_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = build().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph = check(model, tmp_path / "m.onnx")
    assert (graph.input, graph.sample_rate, graph.min_length, graph.output_size) == ("waveforms", 16000, 400, 6)
    assert model.encoder.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("encoder", [name for name in TINY if name not in ("xvector", "rawnet3")])
def test_every_encoder_on_log_mel(encoder: str, tmp_path: Path) -> None:
    check(build(encoder), tmp_path / "m.onnx")


def test_a_model_that_takes_the_level_alone_away(tmp_path: Path) -> None:
    check(build(centre="level"), tmp_path / "m.onnx")


@pytest.mark.slow
def test_rawnet3(tmp_path: Path) -> None:
    graph = check(build("rawnet3", None), tmp_path / "m.onnx")
    assert graph.input == "waveforms"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("upstream", "kwargs"),
    [("mel", {"deltas": 1, "normalize": "mean_variance"}), ("mfcc", {"deltas": 2, "normalize": "mean"})],
)
def test_every_kind_of_spectral_front_end(upstream: str, kwargs: dict[str, Any], tmp_path: Path) -> None:
    check(build(upstream=upstream, upstream_kwargs=kwargs, interface="weighted_sum"), tmp_path / "m.onnx")


@pytest.mark.slow
def test_on_another_upstream_the_graph_takes_frames(tmp_path: Path) -> None:
    graph = check(build(upstream="hubert", upstream_kwargs=HUBERT), tmp_path / "m.onnx")
    assert (graph.input, graph.input_size, graph.min_length) == ("frames", 16, 1)


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"NAME\.onnx"):
        export_onnx(build(), tmp_path / "no" / "m.onnx")
    graph = OnnxGraph(tmp_path / "m.onnx", "waveforms", 0, 16000, 400, 6)
    with pytest.raises(InputError, match="at least 400"):
        compare_onnx(build(), graph, (399,))
