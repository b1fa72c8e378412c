"""The contract of an interface: all layers of a stream in, one sequence out.

The word follows Shih and Harwath, "Interface Design for Self-Supervised Speech Models" (Interspeech 2024): what stands
between an upstream and a downstream head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mmssl.errors import ConfigError, InputError
from mmssl.registry import INTERFACES
from mmssl.types import Layers, Padded, StreamSpec


class Interface(nn.Module, ABC):
    """Turns the layers of one stream into one sequence.

    A subclass sets `output_size`, says in `affine` what it is, and implements `combine`. Its constructor takes the two
    arguments below first and its own after them; own arguments are plain values.

    Args:
        hidden_sizes: width of each layer.
        hop_lengths: distance between two frames of each layer, in input samples or video frames; 0 for tokens that
            have no time axis.

    Attributes:
        output_size: width of the sequence that comes out.
        affine: True where each output frame is an affine map of the layers' frames at the same place, with
            coefficients that do not depend on the frame or the clip. Such an interface commutes with the mean over
            valid frames, so that it may be trained on one pooled vector per layer and clip.

    Raises:
        ConfigError: no layer, a layer without width, or not one hop length per layer.
    """

    output_size: int
    affine: bool = False

    def __init__(self, hidden_sizes: Sequence[int], hop_lengths: Sequence[int]) -> None:
        super().__init__()
        if not hidden_sizes or len(hidden_sizes) != len(hop_lengths) or min(hidden_sizes) < 1 or min(hop_lengths) < 0:
            raise ConfigError(
                f"{type(self).__name__} needs at least one layer, each with a width >= 1 and a hop length >= 0; "
                f"got widths {list(hidden_sizes)} and hop lengths {list(hop_lengths)}."
            )
        self.hidden_sizes = tuple(int(size) for size in hidden_sizes)
        self.hop_lengths = tuple(int(hop) for hop in hop_lengths)

    @abstractmethod
    def combine(self, layers: Layers) -> Padded:
        """Compute the sequence from layers whose number and widths have been checked."""

    def forward(self, layers: Layers) -> Padded:
        """Join the layers of a batch.

        Args:
            layers: one (B, T_k, D_k) tensor per layer, zero past each length.

        Returns:
            (B, T, output_size); what lies past a length is arbitrary.

        Raises:
            InputError: the number or the widths of the layers are not those the interface was built for, or their
                lengths cannot be brought together.
        """
        if layers.hidden_sizes != self.hidden_sizes:
            raise InputError(
                f"{type(self).__name__} takes {_widths(self.hidden_sizes)}, got {_widths(layers.hidden_sizes)}. "
                "Build it from the stream's spec of the upstream (or feature store) the layers come from."
            )
        return self.combine(layers)

    def layer_weights(self) -> Tensor | None:
        """(L,) learned weights of the layers, >= 0 and summing to 1, detached; None where it has none to show."""
        return None

    def layer_index(self, layer: int) -> int:
        """Index in [0, L) of a layer that may be counted from the end.

        Raises:
            ConfigError: there is no such layer.
        """
        count = len(self.hidden_sizes)
        if isinstance(layer, bool) or not isinstance(layer, int) or not -count <= layer < count:
            raise ConfigError(
                f"{type(self).__name__}: there is no layer {layer!r}; the stream has {count} layers, "
                f"0 to {count - 1} (or -{count} to -1, from the end)."
            )
        return layer % count


def build_interface(interface: str, stream_spec: StreamSpec, /, **kwargs: Any) -> Interface:
    """Build an interface for a stream of an upstream.

    Args:
        interface: a name ("weighted_sum"), a dotted path to a class, or a path to a .py file.
        stream_spec: of the stream whose layers it will take.
        **kwargs: the interface's own arguments.

    Raises:
        RegistryError: there is no such interface.
        ConfigError: an argument is unknown, missing or has a wrong value, or it builds something else.
    """
    built = INTERFACES.build(interface, stream_spec.hidden_sizes, stream_spec.hop_lengths, **kwargs)
    if not isinstance(built, Interface):
        raise ConfigError(
            f"{interface!r} builds a {type(built).__name__}, not an mmssl.interfaces.base.Interface: "
            "derive from that class."
        )
    return built


def _widths(sizes: Sequence[int]) -> str:
    shown = str(sizes[0]) if len(set(sizes)) == 1 else str(list(sizes))
    return f"{len(sizes)} layers of width {shown}"
