"""vq-wav2vec: wav2vec whose context network sees quantized latents, and its codes as a tokenizer of speech.

Source: Baevski et al. 2020, "vq-wav2vec: Self-Supervised Learning of Discrete Speech Representations", section 3;
fairseq's code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.errors import ConfigError
from mmssl.lengths import conv_stack_length, hop_length, receptive_field
from mmssl.upstreams.checkpoints import read_checkpoint
from mmssl.upstreams.clipwise import ClipwiseUpstream
from mmssl.upstreams.renaming import load_renamed, options, weights
from mmssl.upstreams.wav2vec1_layers import CONTEXT_RULES, ENCODER_RULES, HEADS, ContextNetwork, Encoder, group_norm
from mmssl.upstreams.wav2vec1_sizes import Codebooks, Sizes, preset_sizes, stated_sizes

_QUANTIZER = r"vector_quantizer\."
_TOKENIZER_RULES = (
    *((pattern, "encoder." + replacement) for pattern, replacement in ENCODER_RULES),
    (_QUANTIZER + "(vars|embedding)", "quantizer.entries"),
    (_QUANTIZER + r"weight_proj\.(weight|bias)", r"quantizer.logits.0.\1"),
    (_QUANTIZER + r"weight_proj\.(\d+)\.(?:0\.)?(\w+)", r"quantizer.logits.\1.\2"),
    (_QUANTIZER + r"projection\.0\.(\w+)", r"quantizer.projection.\1"),
    (_QUANTIZER + r"projection\.1\.(\w+)", r"quantizer.norm.\1"),
)


@dataclass(frozen=True)
class Coded:
    """A clip as codes.

    Attributes:
        latents: (T', C) of the encoder.
        values: (T', E) quantized latents.
        codes: (T', G) int64, the code of each group.
        scores: (T', G, V), the larger the more fitting the entry: logits, or minus the mean squared difference.
    """

    latents: Tensor
    values: Tensor
    codes: Tensor
    scores: Tensor


class GumbelCodebooks(nn.Module):
    """Each group takes the entry with the largest logit (Baevski et al. 2020, section 3.1).

    The gradient passes as if the entries' mean under the softmax had been taken; no noise is drawn.

    Args:
        input_size: C.
        sizes: of the codebooks.
        activation: between the layers that give the logits, where there are several.
    """

    def __init__(self, input_size: int, sizes: Codebooks, activation: str) -> None:
        super().__init__()
        self.num_groups, self.num_entries = sizes.num_groups, sizes.num_entries
        inner = 2 * input_size
        widths = [input_size, *(inner,) * (sizes.depth - 1), sizes.num_groups * sizes.num_entries]
        layers = [nn.Linear(*pair) for pair in pairwise(widths)]
        nn.init.normal_(layers[-1].weight, std=1.0)
        self.logits = nn.ModuleList(layers)
        self.activation = F.relu if activation == "relu" else F.gelu
        width = (sizes.output_size or input_size) // sizes.num_groups
        self.entries = nn.Parameter(torch.rand((1 if sizes.shared else sizes.num_groups) * sizes.num_entries, width))

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (1, C, T') of one clip -> values, codes and scores, as in `Coded`."""
        x = latents[0].t()
        for index, layer in enumerate(self.logits):
            x = layer(self.activation(x) if index else x)
        scores = x.unflatten(1, (self.num_groups, self.num_entries))
        codes = scores.argmax(-1)
        books = self.entries.view(-1, self.num_entries, self.entries.shape[1]).expand(self.num_groups, -1, -1)
        values = _taken(books, codes)
        if scores.requires_grad:
            mean = torch.einsum("tgv,gve->tge", scores.softmax(-1), books).flatten(1)
            values = values + (mean - mean.detach())
        return values, codes, scores


class KmeansCodebooks(nn.Module):
    """Each group takes the nearest entry (Baevski et al. 2020, section 3.2); the gradient passes straight through.

    Args:
        input_size: C.
        sizes: of the codebooks.
    """

    def __init__(self, input_size: int, sizes: Codebooks) -> None:
        super().__init__()
        groups, self.num_groups = sizes.num_groups, sizes.num_groups
        if sizes.output_size not in (None, input_size):
            raise ConfigError(f"k-means codebooks give frames of {input_size} values, not {sizes.output_size}.")
        books, width = 1 if sizes.shared else groups, input_size // groups
        self.projection = nn.Conv1d(input_size, input_size, 1, groups=groups, bias=False)
        self.norm = nn.GroupNorm(groups, input_size)
        self.entries = nn.Parameter(0.01 * torch.randn(sizes.num_entries, books, width))

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (1, C, T') of one clip -> values, codes and scores, as in `Coded`."""
        x = group_norm(self.projection(latents), self.norm)[0].t().unflatten(1, (self.num_groups, -1)).transpose(0, 1)
        books = self.entries.transpose(0, 1).expand(self.num_groups, -1, -1)
        # not by way of inner products, whose rounding could change which of two entries is nearer
        distances = torch.cdist(x, books, compute_mode="donot_use_mm_for_euclid_dist").transpose(0, 1)
        codes = distances.argmin(-1)
        projected = x.transpose(0, 1).flatten(1)
        values = _taken(books, codes) + (projected - projected.detach())
        return values, codes, -distances.square() / x.shape[-1]


def _taken(books: Tensor, codes: Tensor) -> Tensor:
    """The entries (T', G * d) of books (G, V, d) that codes (T', G) name."""
    return torch.cat([book[code] for book, code in zip(books, codes.unbind(1), strict=True)], dim=1)


class VqTokenizer(nn.Module):
    """vq-wav2vec's encoder and quantizer: one frame of G codes every 10 ms.

    Its weights stay in float32 whatever type the model around it is brought to, and clips are taken one by one: a code
    jumps where another entry becomes the nearest, so that rounding must not depend on the batch or on the type.

    Args:
        sizes: with codebooks.

    Raises:
        ConfigError: the groups do not divide the widths.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        books, width = sizes.codebooks, sizes.convs[-1][0]
        if books is None or books.kind not in ("gumbel", "kmeans"):
            raise ConfigError(f"A tokenizer needs gumbel or kmeans codebooks, got {books}.")
        self.output_size = books.output_size or width
        if min(books.num_groups, books.depth) < 1 or books.num_entries < 2 or self.output_size % books.num_groups:
            raise ConfigError(
                f"Codebooks need at least 2 entries, a depth of at least 1 and a width that the groups divide, got "
                f"{books.num_entries} entries, depth {books.depth}, {books.num_groups} groups, {self.output_size} wide."
            )
        self.num_groups, self.num_entries, self.latent_size = books.num_groups, books.num_entries, width
        self.encoder = Encoder(sizes)
        self.quantizer: nn.Module = (
            KmeansCodebooks(width, books) if books.kind == "kmeans" else GumbelCodebooks(width, books, sizes.activation)
        )
        self.windows = [(kernel, stride) for _, kernel, stride in sizes.convs]

    def forward(self, waveform: Tensor) -> Coded:
        """Codes of one clip (T,) in [-1, 1] at 16 kHz, at least as long as one window."""
        with torch.autocast(waveform.device.type, enabled=False):
            latents = self.encoder(waveform.float()[None])
            return Coded(latents[0].t(), *self.quantizer(latents))

    def load(self, state: Mapping[str, Any], source: str) -> None:
        """Take the weights of a fairseq state dict; those of the context network are passed over.

        Raises:
            CheckpointError: weights are missing, left over or of another shape.
        """
        load_renamed(self, state, _TOKENIZER_RULES, source=source, ignore=rf"(feature_aggregator|{HEADS})\..*")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> VqTokenizer:
        """Go to other devices, but keep the type of the weights."""

        def moved(tensor: Tensor) -> Tensor:
            found = fn(tensor)
            return found if found.dtype == tensor.dtype else tensor.to(found.device)

        super()._apply(moved, recurse)
        return self


def read_vq_sizes(
    preset: str, checkpoint: str | None, channels: int | None, kernels: Sequence[int] | None, num_entries: int | None
) -> tuple[Sizes, dict[str, Any]]:
    """Sizes and fairseq weights of a vq-wav2vec: those of a checkpoint, or a preset's with what was given instead.

    Raises:
        ConfigError: an unknown preset, or sizes given beside a checkpoint.
        CheckpointError: the checkpoint cannot be read or is no vq-wav2vec.
    """
    sizes = preset_sizes(preset, quantized=True)
    if checkpoint is None:
        return sizes.resized(channels, kernels).with_entries(num_entries), {}
    if (channels, kernels, num_entries) != (None, None, None):
        raise ConfigError(
            "Leave out channels, aggregator_kernels and num_entries: sizes come from the vq-wav2vec checkpoint."
        )
    content = read_checkpoint(checkpoint)
    return stated_sizes(options(content), sizes), weights(content, checkpoint, "model_weight", "model")


class VqWav2Vec(ClipwiseUpstream):
    """vq-wav2vec; layers: the latents z, their quantized form, then each context convolution's output.

    The encoder and the quantizer compute in float32 in a model of any type (`VqTokenizer`). The norms cover the clip
    alone, never padding.

    Args:
        preset: "vq_wav2vec_kmeans" or "vq_wav2vec_gumbel".
        checkpoint: a file of fairseq (`vq-wav2vec_kmeans.pt`, `vq-wav2vec.pt`) or S3PRL's conversion of one; its sizes
            then hold where it states them, the preset's elsewhere. None draws weights.
        channels: of every convolution, instead of the preset's 512; not with a checkpoint.
        aggregator_kernels: frames that each context convolution sees, instead of the preset's; not with a checkpoint.
        num_entries: codes of each group, instead of the preset's 320; not with a checkpoint.

    Raises:
        ConfigError: an unknown preset, or sizes given beside a checkpoint.
        CheckpointError: the checkpoint cannot be read or does not fit.
    """

    def __init__(
        self,
        preset: str = "vq_wav2vec_kmeans",
        checkpoint: str | None = None,
        *,
        channels: int | None = None,
        aggregator_kernels: Sequence[int] | None = None,
        num_entries: int | None = None,
    ) -> None:
        super().__init__()
        sizes, state = read_vq_sizes(preset, checkpoint, channels, aggregator_kernels, num_entries)
        self.tokenizer = VqTokenizer(sizes)
        self.aggregator = ContextNetwork(sizes, self.tokenizer.output_size)
        windows = self.tokenizer.windows
        widths = (self.tokenizer.latent_size, self.tokenizer.output_size, *(c for c, _, _ in sizes.aggregator))
        self.declare(widths, hop_length(windows), receptive_field(windows))
        if checkpoint is not None:
            self.tokenizer.load(state, checkpoint)
            ignore = rf"(feature_extractor|vector_quantizer|{HEADS})\..*"
            load_renamed(self.aggregator, state, CONTEXT_RULES, source=checkpoint, ignore=ignore)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the context network, which the features have."""
        return next(self.aggregator.parameters()).dtype

    def output_lengths(self, lengths: Tensor, stream: str = "audio", layer: int = -1) -> Tensor:
        """Frames (B,) of clips of `lengths` (B,) samples; all layers have the same."""
        return conv_stack_length(lengths, self.tokenizer.windows)

    def encode(self, waveforms: Tensor) -> list[Tensor]:
        """(B, T) without padding -> latents, quantized latents, then contexts, (B, T', C)."""
        coded = [self.tokenizer(waveform) for waveform in waveforms]
        latents = torch.stack([c.latents for c in coded]).to(self.dtype)
        values = torch.stack([c.values for c in coded]).to(self.dtype)
        return [latents, values, *(c.transpose(1, 2) for c in self.aggregator(values.transpose(1, 2)))]

    def codes(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """The codes (T', G) int64 of each clip (T,) in [-1, 1] at 16 kHz."""
        return [self.tokenizer(waveform).codes for waveform in waveforms]
