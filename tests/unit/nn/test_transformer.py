from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from mmssl.errors import ConfigError
from mmssl.nn.packed import Packed
from mmssl.nn.positional import ConvPositions
from mmssl.nn.transformer import SelfAttention, TransformerEncoder
from mmssl.types import Padded


def encoder(**kwargs: object) -> TransformerEncoder:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_layers": 4, "num_heads": 2, "feed_forward_size": 24}
    built = TransformerEncoder(ConvPositions(16, 4, 2), **(sizes | kwargs)).eval()
    for parameter in built.parameters():
        nn.init.normal_(parameter, 0.1, 0.3)
    return built


@pytest.mark.parametrize("layer_norm_first", [False, True])
@pytest.mark.parametrize("relative_buckets", [0, 8])
def test_layers_of_a_clip_do_not_depend_on_its_batch(layer_norm_first: bool, relative_buckets: int) -> None:
    model = encoder(layer_norm_first=layer_norm_first, relative_buckets=relative_buckets, relative_distance=10)
    clips = [torch.randn(n, 16) for n in (7, 30, 1)]
    data = torch.full((3, 33, 16), 1e4)
    for row, clip in enumerate(clips):
        data[row, : len(clip)] = clip
    together = model(Padded(data, torch.tensor([7, 30, 1])))
    assert len(together) == 5
    for row, clip in enumerate(clips):
        for layer, state in enumerate(model.forward_packed(Packed.of([clip]))):
            padded = together[layer]
            assert torch.allclose(padded.data[row, : len(clip)], state.data, atol=1e-5)
            assert not padded.data[row, len(clip) :].any()


@pytest.mark.parametrize("layer_norm_first", [False, True])
def test_with_and_without_gradients_the_numbers_are_the_same(layer_norm_first: bool) -> None:
    model = encoder(layer_norm_first=layer_norm_first, relative_buckets=8)
    features = Packed.of([torch.randn(7, 16), torch.randn(12, 16)])
    kept = features.data.clone()
    with_grad = model.forward_packed(features)
    with torch.no_grad():
        without = model.forward_packed(features)
    assert torch.equal(features.data, kept)
    for a, b in zip(with_grad, without, strict=True):
        assert torch.allclose(a.data, b.data, atol=1e-5)
    with_grad[-1].data.sum().backward()
    unused = {n for n, p in model.named_parameters() if p.grad is None}
    assert unused == ({"layer_norm.weight", "layer_norm.bias"} if layer_norm_first else set())


def test_attention_is_multi_head_attention() -> None:
    torch.manual_seed(0)
    ours = SelfAttention(12, 3)
    theirs = nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        nn.init.normal_(ours.qkv.bias)
        theirs.in_proj_weight.copy_(ours.qkv.weight)
        theirs.in_proj_bias.copy_(ours.qkv.bias)
        theirs.out_proj.weight.copy_(ours.output.weight)
        theirs.out_proj.bias.copy_(ours.output.bias)
    x = torch.randn(9, 12)
    assert torch.allclose(ours(Packed.of([x])), theirs(x[None], x[None], x[None])[0][0], atol=1e-6)


def test_layer_drop_passes_over_blocks_in_training_only_and_keeps_their_layers() -> None:
    model = encoder(layer_drop=0.5)
    features = Packed.of([torch.randn(5, 16)])
    dropped = []
    for seed in range(8):
        torch.manual_seed(seed)
        states = model.train().forward_packed(features)
        assert len(states) == 5
        dropped.append(sum(torch.equal(a.data, b.data) for a, b in pairwise(states)))
    assert len(set(dropped)) > 1
    states = model.eval().forward_packed(features)
    assert not any(torch.equal(a.data, b.data) for a, b in pairwise(states))


def test_the_last_norm_of_pre_norm_models_is_applied_by_finish() -> None:
    x = torch.randn(5, 16)
    model = encoder(layer_norm_first=True)
    assert torch.equal(model.finish(x), model.layer_norm(x))
    assert encoder().finish(x) is x


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 heads for 16"):
        encoder(num_heads=3)
    with pytest.raises(ConfigError, match="gated_bias=True"):
        SelfAttention(8, 2)(Packed.of([torch.randn(3, 8)]), torch.zeros(2, 3, 3))
