"""Blocks of vision transformers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmssl.errors import ConfigError
from mmssl.nn.patch import PatchEmbedding, Positions
from mmssl.nn.vit import Attention, Block, CrossAttention, CrossBlock, PatchEncoder


def test_attention_equals_torch() -> None:
    ours, theirs = Attention(12, 3), nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.qkv.weight)
        theirs.in_proj_bias.copy_(ours.qkv.bias.normal_())
        theirs.out_proj.weight.copy_(ours.proj.weight)
        theirs.out_proj.bias.copy_(ours.proj.bias)
    x = torch.randn(2, 5, 12)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    expected = theirs(x, x, x, key_padding_mask=~mask, need_weights=False)[0]
    assert torch.allclose(ours(x, mask), expected, atol=1e-5)


def test_cross_attention_equals_torch() -> None:
    ours = CrossAttention(12, 8, 3)
    theirs = nn.MultiheadAttention(12, 3, kdim=8, vdim=8, batch_first=True)
    with torch.no_grad():
        theirs.q_proj_weight.copy_(ours.q.weight)
        theirs.k_proj_weight.copy_(ours.kv.weight[:12])
        theirs.v_proj_weight.copy_(ours.kv.weight[12:])
        theirs.in_proj_bias.copy_(torch.cat([ours.q.bias, ours.kv.bias]))
        theirs.out_proj.weight.copy_(ours.proj.weight)
        theirs.out_proj.bias.copy_(ours.proj.bias)
    x, context = torch.randn(2, 4, 12), torch.randn(2, 6, 8)
    mask = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    expected = theirs(x, context, context, key_padding_mask=~mask, need_weights=False)[0]
    assert torch.allclose(ours(x, context, mask), expected, atol=1e-5)


def test_heads_divide_the_width() -> None:
    with pytest.raises(ConfigError, match="num_heads"):
        Attention(12, 5)


def test_norms_of_a_modality_are_its_own() -> None:
    block = Block(8, 2, 16, modalities=("a",))
    x = torch.randn(1, 4, 8)
    assert torch.equal(block(x), block(x, None, "a"))
    nn.init.normal_(block.get_submodule("norm1_a").weight)
    assert not torch.allclose(block(x), block(x, None, "a"))


def test_a_masked_token_changes_nothing() -> None:
    block, x, context = CrossBlock(8, 8, 2, 16), torch.randn(1, 4, 8), torch.randn(1, 3, 8)
    mask, context_mask = torch.tensor([[True, True, True, False]]), torch.tensor([[True, True, False]])
    expected = block(x[:, :3], context[:, :2])
    assert torch.allclose(block(x, context, mask, context_mask)[:, :3], expected, atol=1e-6)


def encoder(class_token: bool) -> PatchEncoder:
    return PatchEncoder(PatchEmbedding(3, 8, 4), Positions(8, 2), 2, 2, 16, class_token=class_token)


@pytest.mark.parametrize("class_token", [True, False])
def test_visible_tokens_may_come_in_any_order(class_token: bool) -> None:
    model = encoder(class_token).eval()
    tokens = model.embed(torch.randn(2, 3, 8, 8))
    first = int(class_token)
    kept = torch.tensor([3, 0, 2])
    a = model.encode_tokens(tokens[:, kept])
    b = model.encode_tokens(tokens[:, kept.sort().values])
    assert len(a) == 3
    assert a[-1].shape == (2, first + 3, 8)
    order = kept.argsort()
    assert torch.allclose(a[-1][:, first:][:, order], b[-1][:, first:], atol=1e-6)
    assert torch.allclose(model.finish(a[-1]), model.norm(a[-1]))


def test_hidden_tokens_are_not_seen() -> None:
    model = encoder(True).eval()
    tokens = model.embed(torch.randn(1, 3, 8, 8))
    alone = model.encode_tokens(tokens[:, :2])[-1]
    masked = model.encode_tokens(tokens, torch.tensor([[True, True, False, False]]))[-1]
    assert torch.allclose(alone, masked[:, :3], atol=1e-6)
    assert not torch.allclose(alone, model.encode_tokens(tokens)[-1][:, :3], atol=1e-4)
