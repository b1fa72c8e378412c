"""Views: from a batch to what the encoder is shown."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn

from mmssl.errors import ConfigError
from mmssl.nn.masking import span_mask
from mmssl.objectives.types import Encoder, Examples, Hidden, Masker, View
from mmssl.random import mix

# places where something is drawn for a clip: two of them never draw the same numbers
_SPANS, _MASKER = 21, 22


class Views(nn.Module, ABC):
    """Makes the views of a batch. A module, because it owns maskers, whose mask tokens are trained."""

    @abstractmethod
    def forward(self, examples: Examples, encoder: Encoder, generator: torch.Generator) -> list[View]:
        """Make the views of a batch.

        Args:
            examples: the batch.
            encoder: asked for the number of frames only.
            generator: on the CPU; all that is drawn comes from it.
        """


class SpanMasked(Views):
    """One view, the clip itself, with spans of frames hidden; see `mmssl.nn.masking.span_mask`.

    Args:
        masker: what stands in the place of hidden frames.
        probability: share of frames that would be hidden if spans did not overlap.
        span: frames of one span.
        min_spans: at least so many spans for each clip where they fit.
        no_overlap: whether spans keep apart.
        stream: whose frames are hidden.

    Raises:
        ConfigError: a mask that hides nothing.
    """

    def __init__(
        self,
        masker: Masker,
        probability: float = 0.65,
        span: int = 10,
        min_spans: int = 2,
        no_overlap: bool = False,
        stream: str = "audio",
    ) -> None:
        super().__init__()
        if not 0 < probability <= 1 or span < 1:
            raise ConfigError(
                f"A mask needs a probability in (0, 1] and spans of at least 1 frame, got {probability} and {span}: "
                "it would hide nothing."
            )
        self.masker = masker
        self.probability, self.span, self.min_spans, self.no_overlap = probability, span, min_spans, no_overlap
        self.stream = stream

    def forward(self, examples: Examples, encoder: Encoder, generator: torch.Generator) -> list[View]:
        """The masked view; see `Views.forward`. Without seeds of the clips, masks come from `generator`."""
        lengths = encoder.frame_lengths(examples.inputs)
        if self.stream not in lengths:
            raise ConfigError(f"The encoder has the streams {', '.join(lengths)}, the mask is for {self.stream!r}.")
        # a clip with a seed of its own has the same mask in any batch and any process
        draws = [torch.Generator().manual_seed(mix(seed, _SPANS)) for seed in examples.seeds]
        mask = span_mask(
            lengths[self.stream],
            self.probability,
            self.span,
            min_spans=self.min_spans,
            no_overlap=self.no_overlap,
            generator=draws or generator,
        )
        seeds = [mix(seed, _MASKER) for seed in examples.seeds]
        seeds = seeds or torch.randint(2**31, (len(mask),), generator=generator).tolist()
        hidden = Hidden(mask.to(examples.inputs.device), self.masker, tuple(seeds))
        return [View(examples.inputs, {self.stream: hidden}, examples.ids, examples.labels, examples.starts)]
