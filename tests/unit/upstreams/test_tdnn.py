from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmssl import load_upstream
from mmssl.errors import CheckpointError


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("ecapa_tdnn", {"channels": 16, "embedding_size": 6}),
        ("xvector", {"channels": 8, "wide_size": 9, "embedding_size": 6}),
    ],
)
def test_embeddings_do_not_depend_on_the_batch(name: str, kwargs: dict[str, int]) -> None:
    upstream = load_upstream(name, **kwargs)
    waveforms = torch.randn(3, 6000, generator=torch.Generator().manual_seed(0)) * 0.1
    lengths = torch.tensor([6000, 2500, 4000])
    together = upstream.embed(waveforms, lengths)
    assert together.shape == (3, 6)
    for row, size in enumerate(lengths.tolist()):
        alone = upstream.embed(waveforms[row : row + 1, :size])
        torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=1e-5)


def test_xvector_reads_its_own_weights(tmp_path: Path) -> None:
    sizes = {"channels": 8, "wide_size": 9, "embedding_size": 6}
    upstream = load_upstream("xvector", seed=3, **sizes)
    path = tmp_path / "xvector.safetensors"
    save_file(upstream.encoder.state_dict(), path)
    again = load_upstream("xvector", checkpoint=str(path), **sizes)
    wave = torch.randn(1, 3000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.embed(wave), upstream.embed(wave))
    with pytest.raises(CheckpointError, match="another shape"):
        load_upstream("xvector", checkpoint=str(path), **{**sizes, "channels": 10})


def test_other_ecapa_layouts_are_refused(tmp_path: Path) -> None:
    torch.save({"blocks.0.conv.conv.weight": torch.ones(4, 80, 5)}, tmp_path / "embedding_model.ckpt")
    with pytest.raises(CheckpointError, match="no ECAPA-TDNN of the layout"):
        load_upstream("ecapa_tdnn", checkpoint=str(tmp_path / "embedding_model.ckpt"))
