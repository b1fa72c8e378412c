"""Fusion: the layers of several streams in, one vector per clip out, also where a clip lacks a stream.

Each stream has an interface of its own (weighted layers by default). What a stream holds in a clip that lacks it is
never read: such a clip gives the same as one whose stream was never given. Where a part needs a vector of the absent
stream it takes a learned one. In training, `stream_dropout` takes whole streams away from clips (the modality dropout
of AV-HuBERT, Shi et al. 2022, per clip), so that a model meets what it is asked for later.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.data.streams import cleared, present
from mmssl.errors import ConfigError, InputError, did_you_mean
from mmssl.interfaces.base import Interface, build_interface
from mmssl.lengths import valid_mask, zero_padding
from mmssl.registry import Registry
from mmssl.types import Layers, Padded, StreamSpec

# a stream that an upstream computes from all others: a clip that lacks one of them lacks it
DERIVED = "fusion"
ABSENT_STD = 0.02


@dataclass(frozen=True)
class StreamInput:
    """What one stream gives to a fusion.

    Attributes:
        frames: (B, T, D) of its interface, zero past each length; T is at least 1.
        present: (B,) bool, False for clips that lack the stream (their length is 0).
    """

    frames: Padded
    present: Tensor

    @property
    def mean(self) -> Tensor:
        """(B, D) mean over valid frames, zero for clips that lack the stream."""
        return self.frames.data.sum(1) / self.frames.lengths.clamp(min=1)[:, None]


class Fusion(nn.Module, ABC):
    """Joins the streams of a clip into one vector.

    A subclass sets `output_size` and implements `fuse`. It takes the place of an interface in a task.

    Args:
        streams: stream -> spec, of those that are joined.
        interface: of each stream, by name or dotted path.
        stream_dropout: in training, the probability with which a clip loses a stream; one of those it has always stays.

    Attributes:
        output_size: width of the vector.
        affine: True where the mean over frames of each layer, given as one frame per clip, yields the same.

    Raises:
        ConfigError: no stream, a probability outside [0, 1), or an interface that does not fit.
    """

    output_size: int
    affine = False

    def __init__(
        self, streams: Mapping[str, StreamSpec], *, interface: str = "weighted_sum", stream_dropout: float = 0.0
    ) -> None:
        super().__init__()
        if not streams or not 0 <= stream_dropout < 1:
            raise ConfigError(
                f"{type(self).__name__} needs at least one stream and a stream_dropout in [0, 1), got "
                f"{list(streams)} and {stream_dropout}."
            )
        self.streams, self.stream_dropout = tuple(streams), stream_dropout
        self.interfaces = nn.ModuleDict({name: build_interface(interface, spec) for name, spec in streams.items()})

    @abstractmethod
    def fuse(self, inputs: Mapping[str, StreamInput]) -> Tensor:
        """(B, output_size) of all streams of the fusion, each present or absent in each clip."""

    def forward(self, streams: Mapping[str, Layers]) -> Padded:
        """Join the streams of a batch.

        Args:
            streams: stream -> layers of B clips; streams may be missing, and clips may have the length 0 in one.

        Returns:
            (B, 1, output_size), one frame per clip.

        Raises:
            InputError: a stream is unknown, a clip has none at all, or layers do not fit.
        """
        fused = self.fuse(self.inputs(streams))
        return Padded(fused[:, None], torch.ones(len(fused), dtype=torch.int64, device=fused.device))

    def inputs(self, streams: Mapping[str, Layers]) -> dict[str, StreamInput]:
        """What every stream of the fusion gives, absent ones with one frame of zeros."""
        given = {name: layers for name, layers in streams.items() if name in self.streams}
        if not given:
            raise InputError(
                f"{type(self).__name__} joins the streams {', '.join(self.streams)}; the batch has "
                f"{', '.join(streams) or 'none'}.{did_you_mean(next(iter(streams), ''), self.streams)}"
            )
        first = next(iter(given.values()))
        nowhere = torch.zeros_like(first.lengths[0], dtype=torch.bool)
        there = {name: present(given[name]) if name in given else nowhere for name in self.streams}
        there = _settle(self._kept(there), self.streams)
        if not bool(torch.stack(list(there.values())).any(0).all()):
            clip = int((~torch.stack(list(there.values())).any(0)).nonzero()[0])
            raise InputError(f"Clip {clip} of the batch has none of the streams {', '.join(self.streams)}.")
        return {name: self._input(name, given.get(name), there[name], first) for name in self.streams}

    def layer_weights(self) -> dict[str, Tensor]:
        """Stream -> (L,) weights of its layers, of the interfaces that have any."""
        found = {}
        for name, interface in self.interfaces.items():
            assert isinstance(interface, Interface)
            weights = interface.layer_weights()
            if weights is not None:
                found[name] = weights
        return found

    def size_of(self, stream: str) -> int:
        """Width of what a stream's interface gives."""
        return int(self.interfaces[stream].output_size)  # type: ignore[arg-type]

    def _input(self, name: str, layers: Layers | None, there: Tensor, like: Layers) -> StreamInput:
        if layers is None or not bool(there.any()):
            example = like.hidden_states[0]
            data = example.new_zeros(len(there), 1, self.size_of(name))
            return StreamInput(Padded(data, torch.zeros_like(there, dtype=torch.int64)), torch.zeros_like(there))
        # rows of clips that lack the stream are left out: an interface may do anything with a clip of no frames
        rows = there.nonzero()[:, 0]
        some = Layers(tuple(h[rows] for h in layers.hidden_states), tuple(n[rows] for n in layers.lengths))
        frames = self.interfaces[name](cleared(some))
        data = zero_padding(frames.data, frames.lengths)
        if len(rows) == len(there):
            return StreamInput(Padded(data, frames.lengths), there)
        whole = data.new_zeros(len(there), *data.shape[1:]).index_copy(0, rows, data)
        lengths = frames.lengths.new_zeros(len(there)).index_copy(0, rows, frames.lengths)
        return StreamInput(Padded(whole, lengths), there)

    def _kept(self, there: dict[str, Tensor]) -> dict[str, Tensor]:
        """In training, take streams away from clips."""
        if not self.training or not self.stream_dropout:
            return there
        own = [name for name in there if name != DERIVED or len(there) == 1]
        kept = drop_streams(torch.stack([there[name] for name in own], dim=1), self.stream_dropout)
        return there | dict(zip(own, kept.unbind(1), strict=True))


def drop_streams(there: Tensor, probability: float, generator: torch.Generator | None = None) -> Tensor:
    """Take streams away at random, never the last one that a clip has.

    Args:
        there: (B, S) bool, which clips have which streams.
        probability: of each stream of each clip.
        generator: on the CPU; None draws from the global one.

    Returns:
        (B, S) bool. Where all streams of a clip would go, one of them stays, each with the same probability.
    """
    draws = torch.rand(there.shape, generator=generator).to(there.device)
    kept = there & (draws >= probability)
    spared = draws.masked_fill(~there, -1.0).argmax(1)
    last = torch.zeros_like(there).scatter(1, spared[:, None], True) & there
    return torch.where(kept.any(1, keepdim=True), kept, last)


def _settle(there: dict[str, Tensor], streams: tuple[str, ...]) -> dict[str, Tensor]:
    """A derived stream is absent where one of those it is made from is."""
    others = [there[name] for name in streams if name != DERIVED]
    if DERIVED not in there or not others:
        return there
    return there | {DERIVED: there[DERIVED] & torch.stack(others).all(0)}


def absent_vector(size: int) -> nn.Parameter:
    """A learned vector (size,) that stands for an absent stream, small at the start."""
    return nn.Parameter(torch.randn(size) * ABSENT_STD)


class ConcatFusion(Fusion):
    """The means of all streams side by side; of an absent stream, a learned vector.

    Args:
        streams, interface, stream_dropout: see `Fusion`.
    """

    def __init__(
        self, streams: Mapping[str, StreamSpec], *, interface: str = "weighted_sum", stream_dropout: float = 0.0
    ) -> None:
        super().__init__(streams, interface=interface, stream_dropout=stream_dropout)
        self.absent = nn.ParameterDict({name: absent_vector(self.size_of(name)) for name in self.streams})
        self.output_size = sum(self.size_of(name) for name in self.streams)
        self.affine = all(bool(part.affine) for part in self.interfaces.values())

    def fuse(self, inputs: Mapping[str, StreamInput]) -> Tensor:
        """Concatenate, in the order of `streams`."""
        return torch.cat([_or_absent(inputs[name], self.absent[name]) for name in self.streams], dim=-1)


class GatedFusion(Fusion):
    """A gated multimodal unit: each feature is a weighted mean over the streams that are there.

    Arevalo et al. 2017, "Gated Multimodal Units for Information Fusion", section 3.1: h_s = tanh(W_s x_s), and gates z
    of [x_1, ..., x_S]. With two streams a softmax over two gates is the paper's sigmoid. Gates of absent streams are 0,
    and what they would add to the gates of the others is left out.

    Args:
        streams, interface, stream_dropout: see `Fusion`.
        hidden_size: width of the result.
    """

    def __init__(
        self,
        streams: Mapping[str, StreamSpec],
        *,
        hidden_size: int = 256,
        interface: str = "weighted_sum",
        stream_dropout: float = 0.0,
    ) -> None:
        super().__init__(streams, interface=interface, stream_dropout=stream_dropout)
        if hidden_size < 1:
            raise ConfigError(f"hidden_size must be at least 1, got {hidden_size}.")
        sizes = [self.size_of(name) for name in self.streams]
        self.values = nn.ModuleDict({name: nn.Linear(self.size_of(name), hidden_size) for name in self.streams})
        self.gates = nn.Linear(sum(sizes), hidden_size * len(sizes))
        self.output_size = hidden_size
        self.affine = all(bool(part.affine) for part in self.interfaces.values())

    def fuse(self, inputs: Mapping[str, StreamInput]) -> Tensor:
        """Weigh and add."""
        means = [inputs[name].mean for name in self.streams]
        hidden = torch.stack(
            [torch.tanh(self.values[name](x)) for name, x in zip(self.streams, means, strict=True)], dim=1
        )
        logits = self.gates(torch.cat(means, dim=-1)).unflatten(-1, (len(means), self.output_size))
        there = torch.stack([inputs[name].present for name in self.streams], dim=1)
        weights = logits.masked_fill(~there[..., None], -torch.inf).softmax(1)
        return (weights * hidden).sum(1)


class HicmaeFusion(Fusion):
    """The features of HiCMAE's head: what both streams look like alone and after the fusion.

    Sun et al. 2024 (HiCMAE), section 3.4: a layer norm over [video, audio, fused video, fused audio], in the order of
    their code; the first two are means of the weighted sum of all encoder layers, the last two means over the tokens of
    the last fusion layer. A linear head follows. Unlike there, the weighted sums include the input of the first block,
    and the layers are not normed by the upstream's final norm.

    Args:
        streams: "audio", "video" and "fusion", whose tokens are a clip's audio tokens and then its video tokens.
        interface, stream_dropout: see `Fusion`; of "fusion" the last layer is taken.

    Raises:
        ConfigError: other streams.
    """

    def __init__(
        self, streams: Mapping[str, StreamSpec], *, interface: str = "weighted_sum", stream_dropout: float = 0.0
    ) -> None:
        if set(streams) != {"audio", "video", DERIVED}:
            raise ConfigError(
                f"HiCMAE's head takes the streams audio, video and fusion, got {', '.join(streams)}: choose another "
                "fusion, or an upstream that has them (hicmae, cav_mae)."
            )
        super().__init__(streams, interface=interface, stream_dropout=stream_dropout)
        self.interfaces[DERIVED] = build_interface("last_layer", streams[DERIVED])
        own, fused = ("video", "audio"), self.size_of(DERIVED)
        self.absent = nn.ParameterDict({name: absent_vector(self.size_of(name)) for name in own})
        self.absent_fused = nn.ParameterDict({name: absent_vector(fused) for name in own})
        self.output_size = sum(self.size_of(name) for name in own) + 2 * fused
        self.norm = nn.LayerNorm(self.output_size, eps=1e-6)

    def fuse(self, inputs: Mapping[str, StreamInput]) -> Tensor:
        """Four means, normed."""
        joint, there = inputs[DERIVED].frames, inputs[DERIVED].present
        split = torch.where(there, inputs["audio"].frames.lengths, 0)
        if bool((there & (joint.lengths <= split)).any()):
            raise InputError(
                "The stream fusion must hold a clip's audio tokens and then its video tokens; a clip has no more "
                "tokens there than in audio. Do not pool streams before this fusion."
            )
        of_audio = valid_mask(split, joint.data.shape[1])
        of_video = valid_mask(joint.lengths, joint.data.shape[1]) & ~of_audio
        fused = {"audio": _mean_where(joint.data, of_audio), "video": _mean_where(joint.data, of_video)}
        parts = [_or_absent(inputs[name], self.absent[name]) for name in ("video", "audio")]
        parts += [torch.where(there[:, None], fused[n], self.absent_fused[n]) for n in ("video", "audio")]
        return self.norm(torch.cat(parts, dim=-1))


def _mean_where(data: Tensor, mask: Tensor) -> Tensor:
    """(B, D) mean of the frames (B, T, D) that a mask (B, T) selects, zero where it selects none."""
    return data.masked_fill(~mask[..., None], 0).sum(1) / mask.sum(1).clamp(min=1)[:, None]


def _or_absent(found: StreamInput, absent: Tensor) -> Tensor:
    return torch.where(found.present[:, None], found.mean, absent)


FUSIONS = Registry(
    "fusion",
    "mmssl.fusions",
    {
        "concat": "mmssl.interfaces.fusion.ConcatFusion",
        "gated": "mmssl.interfaces.fusion.GatedFusion",
        "cross_attention": "mmssl.interfaces.cross_attention.CrossAttentionFusion",
        "routed": "mmssl.interfaces.routed_fusion.RoutedFusion",
        "hicmae": "mmssl.interfaces.fusion.HicmaeFusion",
    },
    file_base="mmssl.interfaces.fusion.Fusion",
)


def build_fusion(fusion: str, streams: Mapping[str, StreamSpec], /, **kwargs: Any) -> Fusion:
    """Build a fusion for streams of an upstream.

    Args:
        fusion: a name ("concat"), a dotted path to a class, or a path to a .py file.
        streams: stream -> spec, of those to join.
        **kwargs: the fusion's own arguments.

    Raises:
        RegistryError: there is no such fusion.
        ConfigError: an argument is unknown or has a wrong value, or it builds something else.
    """
    built = FUSIONS.build(fusion, streams, **kwargs)
    if not isinstance(built, Fusion):
        raise ConfigError(
            f"{fusion!r} builds a {type(built).__name__}, not an mmssl.interfaces.fusion.Fusion: derive from that "
            "class."
        )
    return built
