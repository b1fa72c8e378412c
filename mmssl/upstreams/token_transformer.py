"""The transformer of speech encoders on token ids instead of waveforms: fairseq's RoBERTa by another name.

Source: Liu et al. 2019, "RoBERTa: A Robustly Optimized BERT Pretraining Approach"; fairseq's code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.errors import CheckpointError, ConfigError, InputError
from mmssl.nn.packed import Packed
from mmssl.nn.transformer import TransformerEncoder
from mmssl.upstreams.renaming import count, load_renamed, options

# fairseq counts positions from here: up to the id of its padding token, rows are of no use
FIRST_POSITION = 2
_PREFIX = re.compile(r"(?:model\.)?(?:decoder|encoder)\.(?:sentence_encoder\.)?")
_BLOCK = r"layers\.(\d+)\."
_RULES = (
    (r"embed_tokens\.weight", "embedding.weight"),
    (r"embed_positions\.weight", "encoder.positions.table"),
    (r"(?:emb_layer_norm|layernorm_embedding)\.(\w+)", r"encoder.layer_norm.\1"),
    (_BLOCK + r"self_attn\.qkv\.(\w+)", r"encoder.blocks.\1.attention.qkv.\2"),
    (_BLOCK + r"self_attn\.out_proj\.(\w+)", r"encoder.blocks.\1.attention.output.\2"),
    (_BLOCK + r"self_attn_layer_norm\.(\w+)", r"encoder.blocks.\1.attention_norm.\2"),
    (_BLOCK + r"fc1\.(\w+)", r"encoder.blocks.\1.expand.\2"),
    (_BLOCK + r"fc2\.(\w+)", r"encoder.blocks.\1.contract.\2"),
    (_BLOCK + r"final_layer_norm\.(\w+)", r"encoder.blocks.\1.feed_forward_norm.\2"),
)
_HEADS = r"(lm_head|classification_heads)\..*|version"


class TrainedPositions(nn.Module):
    """A trained vector for each place in a sequence; each sequence counts from 0.

    Args:
        max_positions: places.
        hidden_size: width.
    """

    def __init__(self, max_positions: int, hidden_size: int) -> None:
        super().__init__()
        self.table = nn.Parameter(0.02 * torch.randn(max_positions, hidden_size))

    def forward(self, frames: Packed) -> Tensor:
        """What is added to packed frames (N, D)."""
        return Packed.of([self.table[:size] for size in frames.lengths]).data


class TokenTransformer(nn.Module):
    """Embeddings of token ids, trained positions, and the speech encoders' transformer with norms after each part.

    Args:
        vocabulary_size: rows of the embedding.
        hidden_size, num_layers, num_heads, feed_forward_size: of the transformer.
        max_positions: tokens that attend to each other; a longer sequence is cut into pieces of that many.
        dropout: in training.

    Raises:
        ConfigError: sizes below 1, or heads that do not divide the width.
    """

    def __init__(
        self,
        vocabulary_size: int,
        hidden_size: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        feed_forward_size: int = 3072,
        max_positions: int = 2048,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if min(vocabulary_size, max_positions, hidden_size) < 1:
            raise ConfigError(
                f"vocabulary_size, hidden_size and max_positions must be at least 1, got {vocabulary_size}, "
                f"{hidden_size} and {max_positions}."
            )
        self.max_positions = max_positions
        self.embedding = nn.Embedding(vocabulary_size, hidden_size)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.encoder = TransformerEncoder(
            TrainedPositions(max_positions, hidden_size),
            hidden_size,
            num_layers,
            num_heads,
            feed_forward_size,
            dropout=dropout,
            attention_dropout=dropout,
        )

    def forward(self, ids: Sequence[Tensor]) -> list[Packed]:
        """All layers of sequences of token ids (T_b,), laid end to end.

        Returns:
            `num_layers` + 1 packed (N, D): the input of the first block, then the output of each.

        Raises:
            InputError: a sequence that is empty or has an id beyond the vocabulary.
        """
        size = self.embedding.num_embeddings
        for sequence in ids:
            if sequence.dim() != 1 or not len(sequence) or int(sequence.min()) < 0 or int(sequence.max()) >= size:
                raise InputError(f"Token ids must be (T,) with T >= 1, from 0 to {size - 1}, got {sequence}.")
        return self.encode_embedded([self.embedding(sequence) for sequence in ids])

    def encode_embedded(self, sequences: Sequence[Tensor]) -> list[Packed]:
        """The same of sequences (T_b, D) that are embedded already."""
        pieces = Packed.of([piece for sequence in sequences for piece in sequence.split(self.max_positions)])
        lengths = tuple(len(sequence) for sequence in sequences)
        return [Packed(state.data, lengths) for state in self.encoder.forward_packed(pieces)]

    def load(self, state: Mapping[str, Any], source: str) -> None:
        """Take the weights of a fairseq RoBERTa; its heads are passed over.

        Raises:
            CheckpointError: weights are missing, left over or of another shape.
        """
        load_renamed(self, _plain_names(state, source), _RULES, source=source, ignore=_HEADS)


def _plain_names(state: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """Names below the encoder, positions without fairseq's idle rows, query, key and value of a block merged."""
    short = {_PREFIX.sub("", name, count=1): value for name, value in state.items() if isinstance(value, Tensor)}
    plain: dict[str, Tensor] = {}
    for name, tensor in short.items():
        if match := re.fullmatch(r"(.*self_attn\.)in_proj_(weight|bias)", name):
            plain[f"{match[1]}qkv.{match[2]}"] = tensor
        elif match := re.fullmatch(r"(.*self_attn\.)q_proj\.(weight|bias)", name):
            try:
                parts = [short[f"{match[1]}{part}_proj.{match[2]}"] for part in "qkv"]
            except KeyError as missing:
                raise CheckpointError(f"{source} lacks {missing}.") from None
            plain[f"{match[1]}qkv.{match[2]}"] = torch.cat(parts)
        elif name == "embed_positions.weight":
            plain[name] = tensor[FIRST_POSITION:]
        elif not re.fullmatch(r".*self_attn\.[kv]_proj\.\w+", name):
            plain[name] = tensor
    return plain


def roberta_sizes(content: Mapping[str, Any], state: Mapping[str, Any], source: str) -> dict[str, int]:
    """Sizes of a fairseq RoBERTa: from the shapes of its weights, and the number of heads from its options.

    Raises:
        CheckpointError: it is none, or of a kind that is not computed here.
    """
    short = {_PREFIX.sub("", name, count=1): value for name, value in state.items() if isinstance(value, Tensor)}
    given = options(content.get("model_cfg") or content.get("args") or content.get("cfg"))
    model = options(given.get("model")) or given
    try:
        tokens, positions = short["embed_tokens.weight"], short["embed_positions.weight"]
        expand = short["layers.0.fc1.weight"]
    except KeyError as missing:
        raise CheckpointError(
            f"{source} is no BERT of fairseq: it lacks {missing}; it has {', '.join(list(state)[:5])}."
        ) from None
    activation = model.get("activation_fn")
    if activation is not None and str(activation) != "gelu":
        raise CheckpointError(f"{source} has the activation {str(activation)!r}; only gelu can be loaded.")
    heads = model.get("encoder_attention_heads")
    return {
        "vocabulary_size": tokens.shape[0],
        "hidden_size": tokens.shape[1],
        "num_layers": count(short, _BLOCK + ".*"),
        # a bare state dict does not tell; all published models have heads of 64
        "num_heads": max(1, tokens.shape[1] // 64) if heads is None else int(heads),
        "feed_forward_size": expand.shape[0],
        "max_positions": positions.shape[0] - FIRST_POSITION,
    }
