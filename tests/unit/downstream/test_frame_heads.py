from __future__ import annotations

import pytest
import torch
from torch import nn

from mmssl.downstream.frame_heads import PackedBlstm
from mmssl.downstream.heads import Head, build_head
from mmssl.errors import ConfigError
from mmssl.random import isolated_rng
from mmssl.types import Padded

SMALL = {
    "ecapa_tdnn": {"channels": 16, "joined_size": 12, "embedding_size": 6, "attention_size": 4},
    "xvector": {"channels": 7, "wide_size": 9, "embedding_size": 6},
    "blstm": {"hidden_size": 4, "num_layers": 2},
}
CLIPS = [torch.randn(n, 5, generator=torch.Generator().manual_seed(n)) for n in (4, 9, 2)]


def padded(value: float, extra: int = 3) -> Padded:
    data = torch.full((len(CLIPS), max(map(len, CLIPS)) + extra, 5), value)
    for row, clip in enumerate(CLIPS):
        data[row, : len(clip)] = clip
    return Padded(data, torch.tensor([len(clip) for clip in CLIPS]))


def built(name: str) -> Head:
    with isolated_rng(0):
        return build_head(name, 5, 3, **SMALL[name])


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("value", [0.0, 1e4, float("nan"), float("inf")])
def test_alone_equals_padded_in_any_batch(name: str, value: float) -> None:
    head = built(name).eval()
    scores = head(padded(value))
    for row, clip in enumerate(CLIPS):
        alone = head(Padded(clip[None], torch.tensor([len(clip)])))[0]
        torch.testing.assert_close(scores[row], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_padding_reaches_no_gradient_and_no_running_statistic(name: str) -> None:
    gradients, buffers = [], []
    for value, extra in ((0.0, 0), (float("nan"), 4)):
        head = built(name).train()
        head(padded(value, extra)).square().sum().backward()
        gradients.append([p.grad.clone() for p in head.parameters()])
        buffers.append(list(head.buffers()))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    for one, other in zip(*buffers, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_the_mean_of_the_frames_is_not_enough(name: str) -> None:
    head = built(name).eval()
    frames, pooled = CLIPS[1][None], CLIPS[1].mean(0)[None, None]
    with torch.no_grad():
        whole, mean = head(Padded(frames, torch.tensor([9]))), head(Padded(pooled, torch.tensor([1])))
    assert not head.affine_before_pooling
    assert (whole - mean).abs().max() > 1e-4


def test_the_recurrent_network_equals_lstm_cells_run_by_hand() -> None:
    with isolated_rng(0):
        layer = PackedBlstm(5, 4, num_layers=1)
    clip, states = CLIPS[1], []
    for suffix, frames in (("", clip), ("_reverse", clip.flip(0))):
        cell = nn.LSTMCell(5, 4)
        cell.load_state_dict({k: getattr(layer.lstm, f"{k}_l0{suffix}") for k in cell.state_dict()})
        h, c, found = torch.zeros(1, 4), torch.zeros(1, 4), []
        for frame in frames:
            h, c = cell(frame[None], (h, c))
            found.append(h[0])
        states.append(torch.stack(found if not suffix else found[::-1]))
    together = layer(Padded(padded(0.0).data, torch.tensor([4, 9, 2])))
    torch.testing.assert_close(together.data[1, :9], torch.cat(states, -1))
    assert bool((together.data[0, 4:] == 0).all())


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("blstm", {"hidden_size": 0}, "hidden_size"),
        ("blstm", {"dropout": 1.0}, "dropout"),
        ("xvector", {"wide_size": -1}, "wide_size"),
        ("ecapa_tdnn", {"channels": 20}, "20 channels"),
        ("ecapa_tdnn", {"embedding_size": 0}, "embedding_size"),
    ],
)
def test_mistakes(name: str, arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_head(name, 5, 3, **arguments)
