"""Views of masked autoencoders: the clip itself, with some of its patches dropped."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from mmssl.errors import ConfigError, did_you_mean
from mmssl.lengths import pad
from mmssl.nn.masking import hidden_count, random_token_mask, tube_mask
from mmssl.objectives.types import Encoder, Examples, Hidden, View
from mmssl.objectives.views import Views
from mmssl.random import mix

_PLACE = 0x9A7C  # sets the draws of masks apart from all else that is drawn for a clip


class PatchMask(ABC):
    """Draws which tokens of one clip are hidden.

    Args:
        ratio: share of the tokens that are hidden.

    Raises:
        ConfigError: a ratio that is not between 0 and 1.
    """

    def __init__(self, ratio: float) -> None:
        if not 0 < ratio < 1:
            raise ConfigError(f"The mask ratio must be between 0 and 1, got {ratio}.")
        self.ratio = ratio

    @abstractmethod
    def __call__(self, tokens: int, generator: torch.Generator) -> Tensor:
        """(tokens,) bool on the CPU, True for hidden tokens.

        Raises:
            ConfigError: none or all of the tokens would be hidden.
        """


class RandomPatches(PatchMask):
    """A fixed number of tokens, anywhere (MAE, AudioMAE, HiCMAE's audio).

    Args:
        ratio: share of the tokens that are hidden.
        round_visible: int(tokens * (1 - ratio)) stay, as in MAE and AudioMAE; False: int(tokens * ratio) go, as in
            HiCMAE. Of 128 tokens at .8 that is 25 or 26 visible ones.
    """

    def __init__(self, ratio: float = 0.75, round_visible: bool = True) -> None:
        super().__init__(ratio)
        self.round_visible = round_visible

    def __call__(self, tokens: int, generator: torch.Generator) -> Tensor:
        """(tokens,) bool; see `PatchMask.__call__`."""
        hidden = hidden_count(tokens, self.ratio) if self.round_visible else int(tokens * self.ratio)
        return random_token_mask(1, tokens, hidden, generator=generator)[0]


class TubePatches(PatchMask):
    """The same int(ratio * places) places of every slice (VideoMAE, HiCMAE's video).

    Args:
        places: tokens of a slice.
        ratio: share of them that are hidden.

    Raises:
        ConfigError: none or all of the places would be hidden.
    """

    def __init__(self, places: int, ratio: float = 0.9) -> None:
        super().__init__(ratio)
        self.places, self.hidden = places, int(places * ratio)
        if not 0 < self.hidden < places:
            raise ConfigError(
                f"A mask ratio of {ratio} hides {self.hidden} of the {places} patches of a slice: at least one must be "
                "hidden and one left. Change the ratio, or use larger pictures or smaller patches."
            )

    def __call__(self, tokens: int, generator: torch.Generator) -> Tensor:
        """(tokens,) bool, slice by slice; see `PatchMask.__call__`."""
        return tube_mask(1, tokens // self.places, self.places, self.hidden, generator=generator)[0]


class DroppedPatches(Views):
    """One view, the clip itself, with tokens of some streams dropped. A mask is a function of its clip's seed.

    Args:
        masks: stream -> how its mask is drawn.

    Raises:
        ConfigError: no mask at all.
    """

    def __init__(self, masks: Mapping[str, PatchMask]) -> None:
        super().__init__()
        if not masks:
            raise ConfigError("DroppedPatches was given no mask: a masked autoencoder needs one for each stream.")
        self.masks = dict(masks)

    def forward(self, examples: Examples, encoder: Encoder, generator: torch.Generator) -> list[View]:
        """The masked view; see `Views.forward`. Without seeds of the clips, masks come from `generator`."""
        lengths = encoder.frame_lengths(examples.inputs)
        hidden = {}
        for number, (stream, draw) in enumerate(self.masks.items()):
            if stream not in lengths:
                raise ConfigError(
                    f"The encoder has the streams {', '.join(lengths)}, a mask is for {stream!r}."
                    f"{did_you_mean(stream, lengths)}"
                )
            rows = []
            for index, tokens in enumerate(lengths[stream].tolist()):
                if examples.seeds:
                    generator = torch.Generator().manual_seed(mix(examples.seeds[index], _PLACE, number))
                rows.append(draw(tokens, generator))
            hidden[stream] = Hidden(pad(rows)[0].to(lengths[stream].device))
        return [View(examples.inputs, hidden, examples.ids, examples.labels, examples.starts)]
