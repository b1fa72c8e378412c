"""What the parts of an objective hand to each other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from mmssl.errors import ConfigError, did_you_mean
from mmssl.types import Inputs, Layers, Padded
from mmssl.upstreams.base import Upstream


@dataclass(frozen=True)
class Examples:
    """A batch of clips as it comes from the loader.

    Attributes:
        inputs: waveforms, video or images.
        ids: of the clips, for targets that are looked up.
        labels: name -> (B,) values that belong to the clips, such as {"match": 0 or 1}.
        starts: first sample of each waveform inside its clip, where it was cropped; empty where none was. A multiple of
            the encoder's hop, so that frames are those of the whole clip.
        seeds: one for each clip, from the seed of the run, the clip and the epoch alone: what is drawn for a clip does
            not depend on the batch it is in. Empty where the examples do not come from a run.
        epoch: passes over the corpus completed before.
    """

    inputs: Inputs
    ids: tuple[str, ...] = ()
    labels: Mapping[str, Tensor] = field(default_factory=dict)
    starts: tuple[int, ...] = ()
    seeds: tuple[int, ...] = ()
    epoch: int = 0


class Masker(nn.Module, ABC):
    """What stands in the place of hidden frames. It owns the mask token, so that the encoder knows nothing of masks."""

    @abstractmethod
    def forward(self, frames: Tensor, mask: Tensor, seed: int) -> Tensor:
        """Replace frames of one clip.

        Args:
            frames: (T, D).
            mask: (T,) bool, True for hidden frames.
            seed: of what is drawn.

        Returns:
            (T, D).
        """


@dataclass(frozen=True)
class Hidden:
    """What a stream's encoder does not get to see.

    Attributes:
        mask: (B, T) bool, True for hidden frames or tokens; T at least the longest clip's number of frames.
        masker: what replaces them; None to drop them, so that the encoder sees fewer tokens.
        seeds: one for each clip, for what the masker draws.
    """

    mask: Tensor
    masker: Masker | None = None
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class View:
    """One way of looking at a batch: its inputs, cropped or augmented, and what is hidden of them.

    Attributes:
        inputs: what the encoder is given.
        hidden: stream -> what is hidden; a stream that is missing is seen whole.
        ids: of the clips.
        labels: name -> (B,) values, such as whether the streams of this view belong together.
        starts: as in `Examples`.
    """

    inputs: Inputs
    hidden: Mapping[str, Hidden] = field(default_factory=dict)
    ids: tuple[str, ...] = ()
    labels: Mapping[str, Tensor] = field(default_factory=dict)
    starts: tuple[int, ...] = ()

    def unmasked(self) -> View:
        """The same view with nothing hidden, as a teacher sees it."""
        return replace(self, hidden={})


@dataclass(frozen=True)
class Encoded:
    """What an encoder made of one stream of a view.

    Attributes:
        output: (B, T, D) what heads see: the last layer, normed where the model has a norm after its last block.
        layers: all layers.
        hidden: bool, True where a frame was replaced (B, T) or a token dropped (B, N); None where nothing was.
        positions: (B, T) int64, the place in the whole sequence of N of each token that is left where tokens were
            dropped; else None.
        taps: name -> inner result (B, T, ...), such as "latents".
    """

    output: Padded
    layers: Layers
    hidden: Tensor | None = None
    positions: Tensor | None = None
    taps: Mapping[str, Padded] = field(default_factory=dict)


class Encoder(nn.Module, ABC):
    """An upstream as it is trained: with masks honoured and inner results at hand.

    Attributes:
        upstream: the model that is trained, exported and used afterwards; holds nothing of the objective.
    """

    upstream: Upstream

    @abstractmethod
    def encode(self, view: View) -> Mapping[str, Encoded]:
        """Encode a view: hidden frames replaced by their masker, or dropped where they have none.

        Raises:
            ConfigError: this encoder cannot drop tokens, or does not have a stream that is to be hidden.
            InputError: sizes that do not fit.
        """

    @abstractmethod
    def frame_lengths(self, inputs: Inputs) -> Mapping[str, Tensor]:
        """Stream -> (B,) frames or tokens that the clips will have, before anything is dropped."""


class Decoder(nn.Module, ABC):
    """A head that gives back what was dropped: from the tokens that are left to all N places."""

    @abstractmethod
    def forward(self, encoded: Encoded, where: Tensor | None = None) -> Tensor:
        """Values (B, N, ...) of every place, hidden or not.

        Args:
            encoded: the tokens that are left.
            where: (B, N) bool, True at the places whose values (R, ...) alone are wanted, clip after clip in order;
                None for all.
        """


@dataclass
class Step:
    """One step of training, as targets and terms see it.

    Attributes:
        index: optimizer steps done before.
        views: of the batch.
        encoded: view -> stream -> what the student made of it; only views that some term asks for.
        encoder: the student.
        generator: on the CPU, for all that is drawn.
        records: (view, name) -> values (B, T, ...) that a target leaves for later terms.
        logs: name -> scalar that targets leave for the log.
        seeds: as in `Examples`.
    """

    index: int
    views: list[View]
    encoded: dict[int, Mapping[str, Encoded]]
    encoder: Encoder
    generator: torch.Generator
    records: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    logs: dict[str, Tensor] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()

    def stream(self, view: int, stream: str) -> Encoded:
        """What the student made of a stream of a view.

        Raises:
            ConfigError: no such view was encoded, or it has no such stream.
        """
        if view not in self.encoded:
            raise ConfigError(
                f"View {view} was not encoded; the batch has {len(self.views)} views. Check the pairs of the terms."
            )
        streams = self.encoded[view]
        if stream not in streams:
            raise ConfigError(
                f"The encoder gives the streams {', '.join(streams)}, a term asks for {stream!r}."
                f"{did_you_mean(stream, streams)}"
            )
        return streams[stream]

    def tap(self, view: int, stream: str, name: str) -> Tensor:
        """An inner result (B, T, ...) of the encoder, or a record of a target.

        Raises:
            ConfigError: neither has that name.
        """
        encoded = self.stream(view, stream)
        if name in encoded.taps:
            return encoded.taps[name].data
        if (view, name) in self.records:
            return self.records[view, name]
        known = [*encoded.taps, *(key for number, key in self.records if number == view)]
        raise ConfigError(
            f"There is no inner result {name!r}; there are {', '.join(known) or 'none'}."
            f"{did_you_mean(name, known)} A record must be made by a target of an earlier term."
        )
