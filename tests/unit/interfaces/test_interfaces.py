from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmssl.errors import ConfigError, InputError, RegistryError
from mmssl.interfaces.base import Interface, build_interface
from mmssl.random import isolated_rng
from mmssl.types import Layers, Padded, StreamSpec

EQUAL = StreamSpec((6, 6, 6, 6), (320, 320, 320, 320))
RAGGED = StreamSpec((6, 4, 6, 5), (320, 160, 320, 400))
WIDTHS = StreamSpec((6, 4, 6), (320, 320, 320))
EVERY = {"last_layer": {}, "layer": {"layer": 1}, "weighted_sum": {}, "hierarchical_conv": {}, "concat": {}}


def built(name: str, spec: StreamSpec, **kwargs) -> Interface:
    with isolated_rng(0):
        return build_interface(name, spec, **kwargs)


def clip(spec: StreamSpec, seconds: float, seed: int) -> Layers:
    generator = torch.Generator().manual_seed(seed)
    counts = [int(seconds * 16000 / hop) for hop in spec.hop_lengths]
    states = tuple(torch.randn(1, n, d, generator=generator) for n, d in zip(counts, spec.hidden_sizes, strict=True))
    return Layers(states, tuple(torch.tensor([n]) for n in counts))


def batch(clips: list[Layers], padding: float = 0.0, extra: int = 0) -> Layers:
    states, lengths = [], []
    for k in range(len(clips[0])):
        counts = torch.cat([c.lengths[k] for c in clips])
        size = int(counts.max()) + extra
        data = torch.full((len(clips), size, clips[0].hidden_states[k].shape[-1]), padding)
        for row, c in enumerate(clips):
            data[row, : int(counts[row])] = c.hidden_states[k][0]
        states.append(data)
        lengths.append(counts)
    return Layers(tuple(states), tuple(lengths))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("spec", [EQUAL, RAGGED], ids=["equal", "ragged"])
@pytest.mark.parametrize("padding", [0.0, 1e4, float("nan")])
def test_a_clip_gives_the_same_alone_and_in_any_batch(name: str, spec: StreamSpec, padding: float) -> None:
    interface = built(name, spec, **EVERY[name])
    clips = [clip(spec, seconds, seed) for seed, seconds in enumerate((0.31, 0.5, 0.12))]
    together = interface(batch(clips, padding, extra=3))
    for row, single in enumerate(clips):
        alone = interface(single)
        assert int(together.lengths[row]) == int(alone.lengths[0]) > 0
        assert alone.data.shape[-1] == interface.output_size
        torch.testing.assert_close(together.unpad()[row], alone.unpad()[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["weighted_sum", "hierarchical_conv"])
def test_large_values_in_padding_change_no_gradient(name: str) -> None:
    interface = built(name, RAGGED)
    clips = [clip(RAGGED, seconds, seed) for seed, seconds in enumerate((0.31, 0.5))]
    gradients = []
    for padding in (0.0, 1e4):
        interface.zero_grad()
        output = interface(batch(clips, padding, extra=2))
        sum(row.square().mean() for row in output.unpad()).backward()
        gradients.append([p.grad.clone() for p in interface.parameters()])
    for clean, dirty in zip(*gradients, strict=True):
        torch.testing.assert_close(clean, dirty)


@pytest.mark.parametrize("name", EVERY)
def test_affine_means_that_it_commutes_with_the_mean_over_frames(name: str) -> None:
    for spec in (EQUAL, WIDTHS):
        interface = built(name, spec, **EVERY[name])
        single = clip(spec, 0.4, 1)
        pooled = Layers(
            tuple(h.mean(1, keepdim=True) for h in single.hidden_states), (torch.tensor([1]),) * len(single)
        )
        difference = (interface(pooled).data[:, 0] - interface(single).data.mean(1)).abs().max()
        assert interface.affine == bool(difference < 1e-5), (name, float(difference))


def test_what_is_not_affine_says_so() -> None:
    assert not built("weighted_sum", EQUAL, normalize=True).affine
    assert not built("weighted_sum", RAGGED).affine
    assert not built("concat", RAGGED).affine
    assert built("concat", RAGGED, layers=[0, 2]).affine
    assert not built("hierarchical_conv", EQUAL).affine


def test_selection_takes_the_layer_it_names() -> None:
    single = clip(RAGGED, 0.4, 0)
    assert torch.equal(built("last_layer", RAGGED)(single).data, single.hidden_states[3])
    assert torch.equal(built("layer", RAGGED, layer=1)(single).data, single.hidden_states[1])
    assert torch.equal(built("layer", RAGGED, layer=-3)(single).data, single.hidden_states[1])
    assert built("layer", RAGGED, layer=1).output_size == 4


def test_concat_keeps_the_order_given() -> None:
    single = clip(EQUAL, 0.4, 0)
    out = built("concat", EQUAL, layers=[-1, 0])(single).data
    assert torch.equal(out, torch.cat([single.hidden_states[3], single.hidden_states[0]], -1))


def test_layer_weights_start_equal_and_sum_to_one() -> None:
    interface = built("weighted_sum", EQUAL)
    torch.testing.assert_close(interface.layer_weights(), torch.full((4,), 0.25))
    assert not interface.layer_weights().requires_grad
    with torch.no_grad():
        interface.weights.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0]))
    torch.testing.assert_close(interface.layer_weights().sum(), torch.tensor(1.0))
    assert built("concat", EQUAL).layer_weights() is None


class LargestResult(TorchDispatchMode):
    """Size of the largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(item, torch.Tensor):
                self.numel = max(self.numel, item.numel())
        return result


@pytest.mark.parametrize("normalize", [False, True])
def test_weighted_sum_never_holds_a_stack_or_copies_of_the_layers(normalize: bool) -> None:
    spec = StreamSpec((16,) * 12, (320,) * 12)
    layers = batch([clip(spec, 1.0, 0), clip(spec, 0.6, 1)])
    interface = built("weighted_sum", spec, normalize=normalize)
    one = layers.hidden_states[0].numel()
    inputs = {h.untyped_storage().data_ptr() for h in layers.hidden_states}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in inputs:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
        return tensor

    with LargestResult() as watch, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        total = interface(layers).data
        assert sum(saved.values()) < 4 * one  # of 12 layers; the norm keeps a few numbers per frame and layer
        total.sum().backward()
    assert watch.numel <= one
    if not normalize:
        assert sum(saved.values()) < one // 4


@pytest.mark.parametrize(("rate", "hop"), [("slowest", 400), ("fastest", 160)])
def test_joined_layers_have_the_length_of_the_layer_with_the_common_hop(rate: str, hop: int) -> None:
    layers = batch([clip(RAGGED, 0.31, 0), clip(RAGGED, 0.5, 1)])
    out = built("concat", RAGGED, rate=rate)(layers)
    assert torch.equal(out.lengths, layers.lengths[RAGGED.hop_lengths.index(hop)])
    assert out.data.shape == (2, int(out.lengths.max()), sum(RAGGED.hidden_sizes))


def test_a_clip_gets_the_frames_of_the_shortest_layer_of_the_common_hop_and_none_if_a_layer_has_none() -> None:
    states = (torch.randn(3, 8, 4), torch.randn(3, 9, 4), torch.randn(3, 20, 4))
    lengths = (torch.tensor([8, 5, 8]), torch.tensor([9, 4, 8]), torch.tensor([17, 10, 0]))
    out = built("weighted_sum", StreamSpec((4, 4, 4), (320, 320, 160)))(Layers(states, lengths))
    assert out.lengths.tolist() == [8, 4, 0]


def test_only_layers_of_another_width_are_projected() -> None:
    interface = built("weighted_sum", RAGGED)
    assert sorted(interface.width.projections) == ["1", "3"]
    assert interface.output_size == 6
    assert built("weighted_sum", RAGGED, output_size=5).output_size == 5
    assert sorted(built("weighted_sum", RAGGED, output_size=5).width.projections) == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("layers", "depth", "left"), [(1, 1, 1), (2, 1, 1), (3, 1, 1), (9, 2, 1), (13, 2, 2), (25, 2, 3), (27, 3, 1)]
)
def test_depth_of_the_hierarchical_convolution_is_the_log_of_the_layers(layers: int, depth: int, left: int) -> None:
    interface = built("hierarchical_conv", StreamSpec((12,) * layers, (320,) * layers))
    convolutions = [m for m in interface.convolutions if isinstance(m, torch.nn.Conv1d)]
    assert len(convolutions) == depth
    assert convolutions[-1].out_channels == 12 // left
    assert interface.output_size == 12


def test_hierarchical_convolution_of_a_width_that_does_not_divide() -> None:
    spec = StreamSpec((7,) * 13, (320,) * 13)
    interface = built("hierarchical_conv", spec)
    assert interface.output_size == 6
    assert interface(clip(spec, 0.3, 0)).data.shape[-1] == 6


TOKENS = StreamSpec((4, 4), (0, 0))


def test_token_layers_must_agree_in_length() -> None:
    states = (torch.randn(2, 5, 4), torch.randn(2, 5, 4))
    interface = built("weighted_sum", TOKENS)
    assert interface(Layers(states, (torch.tensor([5, 5]),) * 2)).data.shape == (2, 5, 4)
    with pytest.raises(InputError, match=r"clip 1 of the batch has \[5, 4\]"):
        interface(Layers(states, (torch.tensor([5, 5]), torch.tensor([5, 4]))))


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match=r"normalise.*Did you mean 'normalize'"):
        build_interface("weighted_sum", EQUAL, normalise=True)
    with pytest.raises(ConfigError, match="missing a required argument: 'layer'"):
        build_interface("layer", EQUAL)
    with pytest.raises(ConfigError, match="no layer 4; the stream has 4 layers"):
        build_interface("layer", EQUAL, layer=4)
    with pytest.raises(RegistryError, match="weighted_sum"):
        build_interface("weighted_sums", EQUAL)
    with pytest.raises(ConfigError, match="'slowest' or 'fastest'"):
        build_interface("weighted_sum", EQUAL, rate="slow")
    with pytest.raises(ConfigError, match="token sequences"):
        build_interface("weighted_sum", StreamSpec((4, 4), (0, 320)))
    with pytest.raises(ConfigError, match="different layers"):
        build_interface("concat", EQUAL, layers=[1, -3])
    with pytest.raises(ConfigError, match="odd kernel_size"):
        build_interface("hierarchical_conv", EQUAL, kernel_size=4)
    with pytest.raises(ConfigError, match="derive from that class"):
        build_interface("mmssl.types.StreamSpec", EQUAL)
    with pytest.raises(InputError, match=r"takes 4 layers of width 6, got 4 layers of width \[6, 4, 6, 5\]"):
        built("last_layer", EQUAL)(clip(RAGGED, 0.3, 0))


def test_a_plug_in_implements_combine_alone() -> None:
    class Middle(Interface):
        def __init__(self, hidden_sizes, hop_lengths) -> None:
            super().__init__(hidden_sizes, hop_lengths)
            self.output_size = self.hidden_sizes[len(hidden_sizes) // 2]

        def combine(self, layers: Layers) -> Padded:
            return layers[len(layers) // 2]

    single = clip(EQUAL, 0.3, 0)
    assert torch.equal(Middle((6,) * 4, (320,) * 4)(single).data, single.hidden_states[2])
