"""Quantizers: from vectors to codes, trained (Gumbel product quantizer) or frozen (random projection)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.errors import ConfigError
from mmssl.random import isolated_rng


@dataclass(frozen=True)
class Quantized:
    """What a trainable quantizer returns for inputs (..., D).

    Attributes:
        values: (..., E) quantized vectors.
        codes: (..., G) int64, the code taken in each group.
        probabilities: (..., G, V) softmax of the logits, for the diversity penalty.
    """

    values: Tensor
    codes: Tensor
    probabilities: Tensor


class GumbelQuantizer(nn.Module):
    """Product quantizer whose choice is a straight-through Gumbel softmax.

    Source: Baevski et al. 2020, "wav2vec 2.0", equation 1; Jang et al. 2017, "Categorical Reparameterization with
    Gumbel-Softmax".

    Args:
        input_size: D.
        output_size: E, shared equally by the groups.
        num_groups: G codebooks.
        num_entries: V entries in each.

    Raises:
        ConfigError: sizes that do not go together.
    """

    def __init__(self, input_size: int, output_size: int = 256, num_groups: int = 2, num_entries: int = 320) -> None:
        super().__init__()
        if min(input_size, output_size, num_groups) < 1 or num_entries < 2 or output_size % num_groups:
            raise ConfigError(
                f"GumbelQuantizer needs at least 2 entries and an output_size that its groups divide, "
                f"got {num_entries} entries, {num_groups} groups and output_size = {output_size}."
            )
        self.num_groups, self.num_entries = num_groups, num_entries
        self.logits = nn.Linear(input_size, num_groups * num_entries)
        self.codebook = nn.Parameter(torch.rand(num_groups, num_entries, output_size // num_groups))
        # the spread of the logits at the start, as published
        nn.init.normal_(self.logits.weight, std=1.0)
        nn.init.zeros_(self.logits.bias)

    def forward(self, x: Tensor, temperature: float = 2.0, generator: torch.Generator | None = None) -> Quantized:
        """Quantize vectors (..., D).

        Args:
            x: (..., D).
            temperature: of the Gumbel softmax, in training; greater than 0.
            generator: for the noise, on the CPU or on the device of `x`; None draws from the global generator. In eval
                mode nothing is drawn: the most probable code is taken.
        """
        if not temperature > 0:
            raise ConfigError(f"The Gumbel temperature must be greater than 0, got {temperature}.")
        leading = x.shape[:-1]
        logits = self.logits(x).float().reshape(-1, self.num_groups, self.num_entries)
        probabilities = logits.softmax(-1)
        if self.training:
            soft = ((logits + _gumbel(logits, generator)) / temperature).softmax(-1)
            codes = soft.argmax(-1)
            # forward the choice, backward the soft one
            weights = F.one_hot(codes, self.num_entries).to(soft.dtype) - soft.detach() + soft
            values = torch.einsum("ngv,gve->nge", weights.to(self.codebook.dtype), self.codebook)
        else:
            codes = logits.argmax(-1)
            values = torch.stack([book[code] for book, code in zip(self.codebook, codes.unbind(1), strict=True)], dim=1)
        return Quantized(
            values.reshape(*leading, -1),
            codes.reshape(*leading, self.num_groups),
            probabilities.reshape(*leading, self.num_groups, self.num_entries),
        )


def _gumbel(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard Gumbel noise: minus the logarithm of an exponential variable."""
    device = like.device if generator is None else generator.device
    noise = torch.empty(like.shape, dtype=like.dtype, device=device).exponential_(generator=generator)
    return -noise.log().to(like.device)


class RandomProjectionQuantizer(nn.Module):
    """Frozen random projection to the nearest entry of a frozen random codebook, by cosine.

    Inputs should be brought to mean 0 and deviation 1 first: that is what keeps the codes diverse.

    Source: Chiu et al. 2022, "Self-Supervised Learning with Random-Projection Quantizer for Speech Recognition"
    (BEST-RQ), section 3.1: projection of Xavier initialisation, codebook of normalised normal vectors.

    Args:
        input_size: D.
        num_entries: entries of each codebook (8192 in the paper).
        code_size: width of an entry (16 in the paper).
        num_codebooks: G independent projections and codebooks; 1 in the paper.
        seed: what is drawn depends on it alone, so that a run's codes can be had again.

    Raises:
        ConfigError: fewer than 2 entries, or a size below 1.
    """

    projection: Tensor
    codebook: Tensor

    def __init__(
        self, input_size: int, num_entries: int = 8192, code_size: int = 16, num_codebooks: int = 1, seed: int = 0
    ) -> None:
        super().__init__()
        if min(input_size, code_size, num_codebooks) < 1 or num_entries < 2:
            raise ConfigError(
                f"RandomProjectionQuantizer needs sizes of at least 1 and 2 entries, got input_size = {input_size}, "
                f"code_size = {code_size}, {num_codebooks} codebooks and {num_entries} entries."
            )
        with isolated_rng(seed):
            projection = torch.empty(num_codebooks, code_size, input_size)
            for matrix in projection:
                nn.init.xavier_uniform_(matrix)
            codebook = F.normalize(torch.randn(num_codebooks, num_entries, code_size), dim=-1)
        self.register_buffer("projection", projection)
        self.register_buffer("codebook", codebook)
        self.num_entries = num_entries

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Codes (..., G) int64 of vectors (..., D)."""
        projected = F.normalize(torch.einsum("...d,ged->...ge", x.float(), self.projection.float()), dim=-1)
        # for unit vectors the nearest entry is the one of the largest inner product
        return torch.einsum("...ge,gve->...gv", projected, self.codebook.float()).argmax(-1)
