"""Discrete BERT: a BERT on the codes of vq-wav2vec, one token every 10 ms.

Source: Baevski et al. 2020, "vq-wav2vec: Self-Supervised Learning of Discrete Speech Representations", section 4;
fairseq's RoBERTa (Liu et al. 2019); S3PRL's `discretebert`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmssl.errors import CheckpointError, ConfigError, InputError
from mmssl.lengths import conv_stack_length, hop_length, receptive_field
from mmssl.nn.packed import Packed
from mmssl.types import Inputs, Layers, Representation, StreamSpec, UpstreamSpec
from mmssl.upstreams.base import Upstream
from mmssl.upstreams.checkpoints import read_checkpoint
from mmssl.upstreams.clipwise import SAMPLE_RATE
from mmssl.upstreams.renaming import options, settled, weights
from mmssl.upstreams.token_transformer import TokenTransformer, roberta_sizes
from mmssl.upstreams.vq_wav2vec import Coded, VqTokenizer, read_vq_sizes

# the first ids of every fairseq dictionary; its <mask> is the last one
START, PADDING, END, UNKNOWN = 0, 1, 2, 3
_SPECIAL = 4
_LARGEST_TABLE = 1 << 24


class DiscreteBert(Upstream):
    """Waveform -> vq-wav2vec codes -> tokens -> BERT; layers: the input of the first block, then the output of each.

    The codes of a frame are one token, as the dictionary says; a combination that it lacks is `<unk>`. The sequence
    begins with `<s>` and ends with `</s>`, as in training, whose own outputs are left out, so that frames are those of
    vq-wav2vec. As in S3PRL, a sequence of more than `max_positions` tokens is cut into pieces of that size, the last
    one shorter, which do not see each other.

    Tokens are computed clip by clip in float32, the transformer on clips laid end to end, so that a clip's features do
    not depend on its batch. Where a gradient is asked for, it passes from a token's embedding to the codes' scores as
    if the embeddings' mean under their softmax had been taken (straight-through).

    Args:
        checkpoint: a file of fairseq's RoBERTa (`bert_kmeans.pt`) or S3PRL's conversion of one; None draws weights.
        tokenizer_checkpoint: the file of vq-wav2vec whose codes the BERT was trained on (`vq-wav2vec_kmeans.pt`);
            needed with `checkpoint`.
        dictionary: fairseq's `dict.txt` of the BERT, lines of a token such as "13-205" and its count; None for the one
            in the checkpoint or beside it, and without a checkpoint for all combinations of codes, in order.
        tokenizer: "vq_wav2vec_kmeans" or "vq_wav2vec_gumbel", for what `tokenizer_checkpoint` does not state.
        hidden_size, num_layers, num_heads, feed_forward_size: of the transformer; None for 768, 12, 12 and 3072. With a
            checkpoint they come from there.
        max_positions: tokens that attend to each other; None for 2048.
        dropout: in training.
        channels, num_entries: of the tokenizer, instead of its preset's; not with `tokenizer_checkpoint`.

    Raises:
        ConfigError: sizes that do not go together, or a BERT without its tokenizer.
        CheckpointError: a file cannot be read or does not fit.
    """

    token_ids: Tensor
    pairs: Tensor

    def __init__(
        self,
        checkpoint: str | None = None,
        tokenizer_checkpoint: str | None = None,
        dictionary: str | None = None,
        *,
        tokenizer: str = "vq_wav2vec_kmeans",
        hidden_size: int | None = None,
        num_layers: int | None = None,
        num_heads: int | None = None,
        feed_forward_size: int | None = None,
        max_positions: int | None = None,
        dropout: float = 0.1,
        channels: int | None = None,
        num_entries: int | None = None,
    ) -> None:
        super().__init__()
        content: dict[str, Any] = {} if checkpoint is None else options(read_checkpoint(checkpoint))
        state = {} if checkpoint is None else weights(content, checkpoint, "model_weight", "model")
        found = {} if checkpoint is None else roberta_sizes(content, state, checkpoint)
        if checkpoint is not None and tokenizer_checkpoint is None:
            raise ConfigError(
                f"{checkpoint} reads codes: give the vq-wav2vec that it was trained on as tokenizer_checkpoint."
            )
        sizes, tokenizer_state = read_vq_sizes(tokenizer, tokenizer_checkpoint, channels, None, num_entries)
        self.tokenizer = VqTokenizer(sizes)
        if tokenizer_checkpoint is not None:
            self.tokenizer.load(tokenizer_state, tokenizer_checkpoint)
        names = _dictionary(dictionary, content, checkpoint)
        self._set_tokens(names, dictionary or checkpoint)
        size = settled("hidden_size", hidden_size, found.get("hidden_size"), 768, checkpoint)
        layers = settled("num_layers", num_layers, found.get("num_layers"), 12, checkpoint)
        combinations = self.tokenizer.num_entries**self.tokenizer.num_groups
        self.bert = TokenTransformer(
            found.get("vocabulary_size", _SPECIAL + (combinations if names is None else len(names)) + 1),
            hidden_size=size,
            num_layers=layers,
            num_heads=settled("num_heads", num_heads, found.get("num_heads"), 12, checkpoint),
            feed_forward_size=settled(
                "feed_forward_size", feed_forward_size, found.get("feed_forward_size"), 3072, checkpoint
            ),
            max_positions=settled("max_positions", max_positions, found.get("max_positions"), 2048, checkpoint),
            dropout=dropout,
        )
        if checkpoint is not None:
            self.bert.load(state, checkpoint)
            self._check_vocabulary(names, checkpoint)
        windows = self.tokenizer.windows
        stream = StreamSpec((size,) * (layers + 1), (hop_length(windows),) * (layers + 1))
        self.spec = UpstreamSpec(
            ("waveforms",), {"audio": stream}, sample_rate=SAMPLE_RATE, min_length=receptive_field(windows)
        )

    @property
    def dtype(self) -> torch.dtype:
        """Type of the transformer, which the features have."""
        return self.bert.embedding.weight.dtype

    def output_lengths(self, lengths: Tensor, stream: str = "audio", layer: int = -1) -> Tensor:
        """Frames (B,) of clips of `lengths` (B,) samples; all layers have the same."""
        return conv_stack_length(lengths, self.tokenizer.windows)

    def extract(self, inputs: Inputs) -> Representation:
        """All layers of a checked batch, under the stream "audio"."""
        assert inputs.waveforms is not None  # `forward` has checked it
        padded = [state.pad() for state in self._states(inputs.waveforms.unpad())]
        return {"audio": Layers(tuple(p.data for p in padded), tuple(p.lengths for p in padded))}

    def extract_packed(self, waveforms: Sequence[Tensor]) -> list[Representation]:
        """All layers of each clip (T_b,), computed without any padding: tensors (T', D) and scalar lengths."""
        for clip in waveforms:
            if clip.dim() != 1 or len(clip) < self.spec.min_length:
                raise InputError(
                    f"extract_packed takes clips (T,) of at least {self.spec.min_length} samples, "
                    f"got {tuple(clip.shape)}."
                )
        states = self._states(waveforms)
        per_layer = [state.split() for state in states]
        lengths = [torch.tensor(n, device=states[0].data.device) for n in states[0].lengths]
        return [
            {"audio": Layers(tuple(clips[b] for clips in per_layer), (length,) * len(states))}
            for b, length in enumerate(lengths)
        ]

    def tokens(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Token ids (T',) int64 of each clip (T,) in [-1, 1] at 16 kHz, without `<s>` and `</s>`."""
        return [self._ids(self.tokenizer(clip).codes) for clip in waveforms]

    def _states(self, waveforms: Sequence[Tensor]) -> list[Packed]:
        """All layers of the frames of clips (T,)."""
        embedded = [self._embedded(self.tokenizer(clip)) for clip in waveforms]
        ends = self.bert.embedding(torch.tensor([START, END], device=embedded[0].device))
        sequences = [torch.cat([ends[:1], clip, ends[1:]]) for clip in embedded]
        states = self.bert.encode_embedded(sequences)
        return [Packed.of([clip[1:-1] for clip in state.split()]) for state in states]

    def _ids(self, codes: Tensor) -> Tensor:
        number = torch.zeros_like(codes[:, 0])
        for group in codes.unbind(1):
            number = number * self.tokenizer.num_entries + group
        return self.token_ids[number]

    def _embedded(self, coded: Coded) -> Tensor:
        """Embeddings (T', D) of a clip's tokens."""
        table = self.bert.embedding
        taken = table(self._ids(coded.codes))
        if not (torch.is_grad_enabled() and coded.scores.requires_grad):
            return taken
        by_group = coded.scores.log_softmax(-1)
        joint = torch.stack([by_group[:, g, self.pairs[:, g + 1]] for g in range(by_group.shape[1])]).sum(0)
        mean = joint.softmax(-1).to(taken.dtype) @ table.weight[self.pairs[:, 0]]
        return taken + (mean - mean.detach())

    def _set_tokens(self, names: Sequence[str] | None, source: str | None) -> None:
        """Tables from codes to ids: of every combination, and (id, codes) of those that have one."""
        groups, entries = self.tokenizer.num_groups, self.tokenizer.num_entries
        if entries**groups > _LARGEST_TABLE:
            raise ConfigError(f"{groups} groups of {entries} codes have too many combinations for one dictionary.")
        ids = torch.full((entries**groups,), UNKNOWN, device="cpu")
        if names is None:
            ids = torch.arange(_SPECIAL, _SPECIAL + entries**groups, device="cpu")
        for index, name in enumerate(names or ()):
            codes = name.split("-")
            if not all(code.isdecimal() for code in codes):
                continue  # filling, such as madeupword0000
            number = 0
            for code in map(int, codes):
                number = number * entries + code
            if len(codes) != groups or max(map(int, codes)) >= entries:
                raise CheckpointError(
                    f"The dictionary of {source} has the token {name!r}; the tokenizer gives {groups} codes below "
                    f"{entries}. Use the vq-wav2vec that the BERT was trained on."
                )
            ids[number] = _SPECIAL + index
        known = (ids != UNKNOWN).nonzero()[:, 0]
        if not len(known):
            raise CheckpointError(f"The dictionary of {source} has no token of codes, such as '13-205'.")
        columns = [ids[known], *(known // entries ** (groups - 1 - g) % entries for g in range(groups))]
        self.register_buffer("token_ids", ids, persistent=False)
        self.register_buffer("pairs", torch.stack(columns, dim=1), persistent=False)

    def _check_vocabulary(self, names: Sequence[str] | None, checkpoint: str) -> None:
        have = self.bert.embedding.num_embeddings
        if names is None or have not in (_SPECIAL + len(names), _SPECIAL + len(names) + 1):
            count = "none" if names is None else f"one of {len(names)}"
            raise CheckpointError(
                f"{checkpoint} has {have} embeddings: 4 special tokens, those of its dictionary, and perhaps <mask>. "
                f"Found {count}: give the dict.txt that came with it as dictionary."
            )


def _dictionary(path: str | None, content: Mapping[str, Any], checkpoint: str | None) -> list[str] | None:
    """The tokens of a dictionary, in order; None where there is none."""
    if path is None and isinstance(content.get("text_dictionary"), str):
        text = content["text_dictionary"]
    else:
        if path is None and (checkpoint is None or not Path(checkpoint).with_name("dict.txt").is_file()):
            return None
        file = Path(path) if path is not None else Path(checkpoint or "").with_name("dict.txt")
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"The dictionary {str(file)!r} cannot be read: {error}.") from error
    rows = [line.split() for line in text.splitlines() if line.strip()]
    wrong = next((row for row in rows if len(row) < 2 or not row[1].isdecimal()), None)
    if wrong is not None:
        raise CheckpointError(
            f"A dictionary has lines of a token and its count, such as '13-205 4711'; got {' '.join(wrong)!r}."
        )
    return [row[0] for row in rows]
