"""vq-wav2vec against explicit loops, and the BERT on its codes against transformers' RoBERTa, from fairseq's layout."""

from __future__ import annotations

import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmssl import load_upstream
from mmssl.upstreams.token_transformer import TokenTransformer, roberta_sizes

transformers = pytest.importorskip("transformers")

ENTRIES, GROUPS, WIDTH = 6, 2, 8
FRONT, CONTEXT = [(4, 10, 5), (4, 8, 4), (WIDTH, 4, 4), (WIDTH, 4, 2)], [(WIDTH, 2, 1), (WIDTH, 3, 1)]


def speech(samples: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(samples) / 16000
    tones = sum(torch.sin(2 * math.pi * f * time * (1 + time)) for f in (140.0, 610.0, 2300.0))
    return 0.1 * tones + 0.05 * torch.randn(samples, generator=generator)


def vq_weights(kind: str, shared: bool, depth: int) -> dict[str, Tensor]:
    """Random weights by fairseq's names."""
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int, scale: float = 0.3, shift: float = 0.0) -> Tensor:
        return scale * torch.randn(*shape, generator=generator) + shift

    state, inputs = {}, 1
    for i, (channels, kernel, _) in enumerate(FRONT):
        state[f"feature_extractor.conv_layers.{i}.0.weight"] = draw(channels, inputs, kernel)
        state[f"feature_extractor.conv_layers.{i}.2.weight"] = draw(channels, shift=1.0)
        state[f"feature_extractor.conv_layers.{i}.2.bias"] = draw(channels)
        inputs = channels
    for i, (channels, kernel, _) in enumerate(CONTEXT):
        state[f"feature_aggregator.conv_layers.{i}.1.weight"] = draw(channels, inputs, kernel)
        state[f"feature_aggregator.conv_layers.{i}.1.bias"] = draw(channels)
        state[f"feature_aggregator.conv_layers.{i}.3.weight"] = draw(channels, shift=1.0)
        state[f"feature_aggregator.conv_layers.{i}.3.bias"] = draw(channels)
    books = 1 if shared else GROUPS
    if kind == "kmeans":
        state["vector_quantizer.embedding"] = draw(ENTRIES, books, WIDTH // GROUPS, scale=1.0)
        state["vector_quantizer.projection.0.weight"] = draw(WIDTH, WIDTH // GROUPS, 1, scale=1.0)
        state["vector_quantizer.projection.1.weight"] = draw(WIDTH, shift=1.0)
        state["vector_quantizer.projection.1.bias"] = draw(WIDTH)
    else:
        state["vector_quantizer.vars"] = draw(1, books * ENTRIES, WIDTH // GROUPS, scale=1.0)
        inner = 2 * WIDTH
        names = ["weight_proj"] if depth == 1 else ["weight_proj.0.0", "weight_proj.1"]
        widths = [WIDTH, GROUPS * ENTRIES] if depth == 1 else [WIDTH, inner, GROUPS * ENTRIES]
        for name, before, after in zip(names, widths, widths[1:], strict=False):
            state[f"vector_quantizer.{name}.weight"] = draw(after, before, scale=1.0)
            state[f"vector_quantizer.{name}.bias"] = draw(after, scale=1.0)
    state["wav2vec_predictions.project_to_steps.weight"] = draw(2, 2)
    return state


def options(kind: str, shared: bool, depth: int) -> Namespace:
    return Namespace(
        conv_feature_layers=str(FRONT),
        conv_aggregator_layers=str(CONTEXT),
        skip_connections_agg=True,
        residual_scale=0.5,
        log_compression=False,
        activation="gelu",
        aggregator="cnn",
        vq_type=kind,
        vq_vars=ENTRIES,
        vq_groups=GROUPS,
        vq_dim=0,
        vq_depth=depth,
        combine_groups=shared,
    )


def save_vq(path: Path, kind: str = "kmeans", shared: bool = True, depth: int = 1) -> dict[str, Tensor]:
    state = vq_weights(kind, shared, depth)
    torch.save({"args": options(kind, shared, depth), "model": state}, path)
    return state


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def convolved(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """(C, T) by loops over frames."""
    kernel = weight.shape[2]
    frames = range(0, x.shape[1] - kernel + 1, stride)
    return torch.stack([torch.einsum("ck,dck->d", x[:, t : t + kernel], weight) for t in frames], dim=1)


def normed(x: Tensor, state: dict[str, Tensor], name: str, groups: int = 1) -> Tensor:
    parts = [(part - part.mean()) / torch.sqrt(part.var(unbiased=False) + 1e-5) for part in x.chunk(groups)]
    return torch.cat(parts) * state[f"{name}.weight"][:, None] + state[f"{name}.bias"][:, None]


def quantized(z: Tensor, state: dict[str, Tensor], kind: str, shared: bool, depth: int) -> tuple[Tensor, Tensor]:
    """Values (E, T') and codes (T', G), an entry at a time."""
    part, name = WIDTH // GROUPS, "vector_quantizer"
    values, codes = torch.zeros(WIDTH, z.shape[1]), torch.zeros(z.shape[1], GROUPS, dtype=torch.int64)
    if kind == "kmeans":
        weight = state[f"{name}.projection.0.weight"][:, :, 0]
        groups = [weight[g * part : (g + 1) * part] @ z[g * part : (g + 1) * part] for g in range(GROUPS)]
        projected = normed(torch.cat(groups), state, f"{name}.projection.1", GROUPS)
    for t in range(z.shape[1]):
        for g in range(GROUPS):
            if kind == "kmeans":
                book = state[f"{name}.embedding"][:, 0 if shared else g]
                frame = projected[g * part : (g + 1) * part, t]
                best = min(range(ENTRIES), key=lambda v: float((book[v] - frame).norm()))
            else:
                entries = state[f"{name}.vars"][0]
                book = entries if shared else entries[g * ENTRIES : (g + 1) * ENTRIES]
                x = z[:, t]
                if depth == 2:
                    x = gelu(state[f"{name}.weight_proj.0.0.weight"] @ x + state[f"{name}.weight_proj.0.0.bias"])
                last = "weight_proj" if depth == 1 else "weight_proj.1"
                logits = state[f"{name}.{last}.weight"] @ x + state[f"{name}.{last}.bias"]
                best = int(logits[g * ENTRIES : (g + 1) * ENTRIES].argmax())
            codes[t, g] = best
            values[g * part : (g + 1) * part, t] = book[best]
    return values, codes


@pytest.mark.parametrize(
    ("kind", "shared", "depth"),
    [("kmeans", True, 1), ("kmeans", False, 1), ("gumbel", True, 2), ("gumbel", False, 1)],
)
def test_vq_wav2vec(tmp_path: Path, kind: str, shared: bool, depth: int) -> None:
    state = save_vq(tmp_path / "vq.pt", kind, shared, depth)
    waveform = speech(4000)
    x = waveform[None]
    for i, (_, _, stride) in enumerate(FRONT):
        name = f"feature_extractor.conv_layers.{i}"
        x = gelu(normed(convolved(x, state[f"{name}.0.weight"], stride), state, f"{name}.2"))
    layers = [x]
    values, codes = quantized(x, state, kind, shared, depth)
    layers.append(values)
    for i, (_, kernel, _) in enumerate(CONTEXT):
        name, x = f"feature_aggregator.conv_layers.{i}", layers[-1]
        before = x[:, :1].repeat(1, kernel - 1)
        y = convolved(torch.cat([before, x], 1), state[f"{name}.1.weight"], 1) + state[f"{name}.1.bias"][:, None]
        layers.append((gelu(normed(y, state, f"{name}.3")) + x) * math.sqrt(0.5))
    upstream = load_upstream("vq_wav2vec", checkpoint=str(tmp_path / "vq.pt"))
    found = upstream(waveform[None])["audio"].hidden_states
    assert len(found) == len(layers)
    for ours, theirs in zip(found, layers, strict=True):
        torch.testing.assert_close(ours[0], theirs.t(), rtol=1e-4, atol=2e-5)
    assert torch.equal(upstream.codes([waveform])[0], codes)
    assert len(codes.unique(dim=0)) > 3


def roberta(vocabulary: int, positions: int, **sizes: int) -> Any:
    """transformers' RoBERTa with random weights, norms away from the identity."""
    config = transformers.RobertaConfig(
        vocab_size=vocabulary, max_position_embeddings=positions + 2, type_vocab_size=1, layer_norm_eps=1e-5, **sizes
    )
    torch.manual_seed(3)
    model = transformers.RobertaModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.requires_grad_(False)


BLOCK = {
    "attention.self.query": "self_attn.q_proj",
    "attention.self.key": "self_attn.k_proj",
    "attention.self.value": "self_attn.v_proj",
    "attention.output.dense": "self_attn.out_proj",
    "attention.output.LayerNorm": "self_attn_layer_norm",
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
    "output.LayerNorm": "final_layer_norm",
}


def fairseq_state(model: Any, prefix: str, norm: str) -> dict[str, Tensor]:
    """The same weights by fairseq's names; a single token type is part of the positions."""
    theirs = dict(model.named_parameters())
    state = {
        "embed_tokens.weight": theirs["embeddings.word_embeddings.weight"],
        "embed_positions.weight": theirs["embeddings.position_embeddings.weight"]
        + theirs["embeddings.token_type_embeddings.weight"],
    }
    for part in ("weight", "bias"):
        state[f"{norm}.{part}"] = theirs[f"embeddings.LayerNorm.{part}"]
        for layer in range(model.config.num_hidden_layers):
            for a, b in BLOCK.items():
                state[f"layers.{layer}.{b}.{part}"] = theirs[f"encoder.layer.{layer}.{a}.{part}"]
    state = {f"{prefix}sentence_encoder.{name}": tensor.detach() for name, tensor in state.items()}
    return state | {f"{prefix}lm_head.bias": torch.zeros(3), f"{prefix}sentence_encoder.version": torch.ones(1)}


def worst(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.pow(2).mean().sqrt())


TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}


@pytest.mark.parametrize(
    ("sizes", "vocabulary"), [(TINY, 40), pytest.param(BASE, 13_500, marks=pytest.mark.slow)], ids=["tiny", "base"]
)
@pytest.mark.parametrize("layout", [("decoder.", "emb_layer_norm"), ("encoder.", "layernorm_embedding")])
def test_the_transformer_on_tokens(sizes: dict[str, int], vocabulary: int, layout: tuple[str, str]) -> None:
    model = roberta(vocabulary, 64, **sizes)
    state = fairseq_state(model, *layout)
    found = roberta_sizes({"args": {"encoder_attention_heads": sizes["num_attention_heads"]}}, state, "here")
    ours = TokenTransformer(**found).eval()
    ours.load(state, "here")
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(2, vocabulary, (n,), generator=generator) for n in (1, 30, 64)]
    with torch.no_grad():
        together = [state.split() for state in ours(ids)]
        for clip, sequence in enumerate(ids):
            theirs = model(input_ids=sequence[None], output_hidden_states=True).hidden_states
            alone = ours([sequence])
            assert len(alone) == len(theirs) == sizes["num_hidden_layers"] + 1
            for layer, reference in enumerate(theirs):
                assert worst(alone[layer].data, reference[0]) <= 1e-5
                assert worst(together[layer][clip], reference[0]) <= 1e-5


@pytest.mark.parametrize("form", ["fairseq", "S3PRL"])
def test_discrete_bert(tmp_path: Path, form: str) -> None:
    save_vq(tmp_path / "vq.pt")
    # a dictionary out of order, with filling, and without one of the combinations
    pairs = [f"{a}-{b}" for b in range(ENTRIES) for a in range(ENTRIES)][1:]
    lines = [f"{name} 7" for name in [*pairs, "madeupword0000"]]
    vocabulary = {name: 4 + index for index, name in enumerate(pairs)}
    model = roberta(4 + len(lines) + 1, 50, **TINY)
    state = fairseq_state(model, "encoder.", "layernorm_embedding")
    config = Namespace(encoder_attention_heads=2, activation_fn="gelu")
    path = tmp_path / "bert.pt"
    if form == "fairseq":
        (tmp_path / "dict.txt").write_text("\n".join(lines) + "\n")
        torch.save({"args": config, "model": state}, path)
    else:
        torch.save({"model_cfg": config, "model_weight": state, "text_dictionary": "\n".join(lines)}, path)
    tokenizer = str(tmp_path / "vq.pt")
    upstream = load_upstream("discrete_bert", checkpoint=str(path), tokenizer_checkpoint=tokenizer)
    vq = load_upstream("vq_wav2vec", checkpoint=tokenizer)
    clips = [speech(6000), speech(12000, seed=1)]
    together = upstream(torch.nn.utils.rnn.pad_sequence(clips, batch_first=True), torch.tensor([6000, 12000]))["audio"]
    for clip, waveform in enumerate(clips):
        names = ["-".join(map(str, row)) for row in vq.codes([waveform])[0].tolist()]
        ids = [vocabulary.get(name, 3) for name in names]
        assert upstream.tokens([waveform])[0].tolist() == ids
        sequence = torch.tensor([0, *ids, 2])
        # as in S3PRL: pieces of max_positions tokens
        pieces = [model(input_ids=p[None], output_hidden_states=True).hidden_states for p in sequence.split(50)]
        alone = upstream(waveform[None])["audio"].hidden_states
        for layer, ours in enumerate(alone):
            theirs = torch.cat([piece[layer][0] for piece in pieces])[1:-1]
            assert ours.shape[1] == len(ids)
            assert worst(ours[0], theirs) <= 1e-5
            assert worst(together.hidden_states[layer][clip, : len(ids)], theirs) <= 1e-5
    assert len(sequence) > 50
