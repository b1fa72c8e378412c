"""An exported folder gives equal features: here, by name, and in transformers where that has the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mmssl
from mmssl.errors import CheckpointError
from mmssl.registry import UPSTREAMS
from mmssl.upstreams.base import load_upstream
from mmssl.upstreams.exported import DESCRIPTION, export_upstream, is_exported, load_exported

CASES: list[tuple[str, dict[str, Any], str]] = [
    ("hubert", {"preset": "hubert_tiny"}, "transformers"),
    ("data2vec_audio", {"preset": "data2vec_audio_tiny"}, "transformers"),
    ("hubert", {"preset": "mel_hubert_tiny"}, "native"),
    ("wav2vec2", {"preset": "wav2vec2_tiny", "mel_bins": 8}, "native"),
    ("tera", {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "feed_forward_size": 24}, "native"),
    ("byol_a", {"hidden_size": 16}, "native"),
]


def trained(name: str, arguments: dict[str, Any]) -> Any:
    """An upstream whose weights are not those that its seed gives."""
    upstream = load_upstream(name, seed=1, **arguments)
    with torch.no_grad():
        for parameter in upstream.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    return upstream


@pytest.mark.parametrize(("name", "arguments", "layout"), CASES)
def test_round_trip(name: str, arguments: dict[str, Any], layout: str, tmp_path: Path) -> None:
    upstream = trained(name, arguments)
    assert not is_exported(tmp_path)
    assert export_upstream(upstream, tmp_path / "e", name, arguments) == layout
    assert is_exported(tmp_path / "e")
    torch.manual_seed(5)
    state = torch.get_rng_state()
    again = mmssl.load_upstream(str(tmp_path / "e"))
    assert torch.equal(torch.get_rng_state(), state)
    waveforms = 0.1 * torch.randn(2, 8000, generator=torch.Generator().manual_seed(0))
    ours, theirs = upstream(waveforms)["audio"], again(waveforms)["audio"]
    for a, b in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_transformers_gives_equal_features(tmp_path: Path) -> None:
    from transformers import AutoModel

    upstream = trained("hubert", {"preset": "hubert_tiny", "normalize": False})
    export_upstream(upstream, tmp_path / "e", "hubert", {"preset": "hubert_tiny", "normalize": False})
    model = AutoModel.from_pretrained(tmp_path / "e").eval()
    waveforms = 0.1 * torch.randn(1, 6000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = model(waveforms, output_hidden_states=True).hidden_states
    for a, b in zip(upstream(waveforms)["audio"].hidden_states, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5)
    through = load_upstream("hf", path=str(tmp_path / "e"))(waveforms)["audio"]
    torch.testing.assert_close(through.hidden_states[-1], theirs[-1], rtol=0, atol=2e-5)


def test_pictures_round_trip(tmp_path: Path) -> None:
    arguments = {"preset": "tiny", "hidden_size": 24, "num_layers": 1, "num_heads": 2, "feed_forward_size": 32}
    arguments |= {"patch_size": 8, "image_size": 16}
    upstream = trained("mae", arguments)
    export_upstream(upstream, tmp_path / "e", "mae", arguments)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    again = load_exported(str(tmp_path / "e")).eval()
    a, b = (model(images=images)["image"].hidden_states[-1] for model in (upstream, again))
    assert torch.equal(a, b)


def test_an_incomplete_folder_is_refused(tmp_path: Path) -> None:
    arguments = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "feed_forward_size": 24}
    export_upstream(UPSTREAMS.build("tera", **arguments), tmp_path, "tera", arguments)
    text = (tmp_path / DESCRIPTION).read_text()
    (tmp_path / DESCRIPTION).write_text(text.replace('"hidden_size": 16', '"hidden_size": 32'))
    with pytest.raises(CheckpointError, match=r"does not fit Tera: weights .* Export the encoder again"):
        load_exported(str(tmp_path))
    (tmp_path / DESCRIPTION).write_text('{"schema": 1}')
    with pytest.raises(CheckpointError, match="export the encoder again"):
        load_exported(str(tmp_path))
