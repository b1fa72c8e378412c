from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import mmssl
from mmssl.errors import ConfigError, InputError
from mmssl.lengths import window_count
from mmssl.registry import UPSTREAMS
from mmssl.types import Inputs, Layers, Representation, StreamSpec, UpstreamSpec
from mmssl.upstreams.base import Upstream


class Energy(Upstream):
    """Mean and peak of windows, times a drawn weight: the smallest upstream there is."""

    def __init__(self, window: int = 4, max_length: int | None = None) -> None:
        super().__init__()
        self.window = window
        self.weight = nn.Parameter(torch.rand(()))
        stream = StreamSpec(hidden_sizes=(2,), hop_lengths=(window,))
        self.spec = UpstreamSpec(("waveforms",), {"audio": stream}, 16000, min_length=window, max_length=max_length)

    def extract(self, inputs: Inputs) -> Representation:
        assert inputs.waveforms is not None
        windows = inputs.waveforms.data.unfold(1, self.window, self.window) * self.weight
        features = torch.stack([windows.mean(-1), windows.amax(-1)], -1)
        return {"audio": Layers((features,), (self.output_lengths(inputs.waveforms.lengths),))}

    def output_lengths(self, lengths: Tensor, stream: str = "audio", layer: int = -1) -> Tensor:
        return window_count(lengths, self.window, self.window)


@pytest.fixture
def registered():
    mmssl.register_upstream("energy", Energy)
    yield
    UPSTREAMS.unregister("energy")


def test_loading_gives_eval_mode_no_gradients_and_leaves_the_rng_alone(registered: None) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    up = mmssl.load_upstream("energy", seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert not up.training
    assert not any(p.requires_grad for p in up.parameters())
    assert torch.equal(up.weight, mmssl.load_upstream("energy", seed=1).weight)
    assert not torch.equal(up.weight, mmssl.load_upstream("energy", seed=2).weight)


def test_what_lies_past_a_length_is_never_seen(registered: None) -> None:
    up = mmssl.load_upstream("energy")
    waveforms = torch.randn(2, 21)
    alone = up(waveforms[:1, :9])["audio"]
    waveforms[0, 9:] = float("nan")
    batch = up(waveforms, torch.tensor([9, 21]))["audio"]
    assert batch.lengths[0].tolist() == [2, 5]
    assert torch.equal(batch.hidden_states[0][0, :2], alone.hidden_states[0][0])
    assert torch.equal(batch.hidden_states[0][0, 2:], torch.zeros(3, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"waveforms": torch.zeros(4)}, r"\(B, T\)"),
        ({"waveforms": torch.zeros(1, 8, dtype=torch.int64)}, "float tensor"),
        ({"waveforms": torch.zeros(1, 3)}, "at least 4 samples, got one of 3"),
        ({"waveforms": torch.zeros(1, 99)}, "at most 40 samples, got one of 99"),
        ({"waveforms": torch.zeros(2, 8), "lengths": torch.tensor([8, 9])}, "more than the 8 steps"),
        ({"waveforms": torch.zeros(2, 8), "lengths": torch.tensor([8])}, r"\(2,\) integers"),
        ({"video": torch.zeros(1, 2, 3, 8, 8)}, "takes waveforms, got video"),
        ({}, "takes waveforms, got nothing"),
    ],
)
def test_wrong_inputs_are_refused_in_words(registered: None, call: dict, message: str) -> None:
    up = mmssl.load_upstream("energy", max_length=40)
    with pytest.raises(InputError, match=message):
        up(**call)


def test_a_wrong_constructor_argument_is_named(registered: None) -> None:
    with pytest.raises(ConfigError, match=r"unexpected keyword argument 'windo'. Did you mean 'window'\?"):
        mmssl.load_upstream("energy", windo=3)


def test_something_that_is_no_upstream_is_refused() -> None:
    with pytest.raises(InputError, match="builds a dict"):
        mmssl.load_upstream("builtins.dict")


def test_frame_shift_is_derived() -> None:
    spec = Energy().spec
    assert spec.frame_shift("audio") == 4 / 16000
