"""A pair of interface and head, and whether pooled features are enough for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from mmssl.downstream.heads import build_head
from mmssl.downstream.tasks import UtteranceClassification, UtteranceRegression
from mmssl.interfaces.base import build_interface
from mmssl.interfaces.standardized import Standardized
from mmssl.types import StreamSpec

PLAIN_INTERFACE = "weighted_sum"


@dataclass(frozen=True)
class HeadChoice:
    """What stands between the layers and the answer.

    Attributes:
        head: name, dotted path or .py file of a head.
        interface: the same of an interface.
        head_arguments: the head's own.
        interface_arguments: the interface's own.
    """

    head: str
    interface: str = PLAIN_INTERFACE
    head_arguments: Mapping[str, Any] = field(default_factory=dict)
    interface_arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As tables show it: "attentive_stats", or "attentive_stats on hierarchical_conv", with arguments given."""
        head = _shown(self.head, self.head_arguments)
        if self.interface == PLAIN_INTERFACE and not self.interface_arguments:
            return f"{head} head"
        return f"{head} head on {_shown(self.interface, self.interface_arguments)}"

    def affine(self, stream: StreamSpec) -> bool:
        """True where everything up to the mean over time is affine, so that the mean of each layer is enough.

        Raises:
            RegistryError: there is no such head or interface.
            ConfigError: an argument does not fit.
        """
        built = build_interface(self.interface, stream, **self.interface_arguments)
        head = build_head(self.head, built.output_size, 2, **self.head_arguments)
        return built.affine and head.affine_before_pooling

    def task(
        self,
        stream: StreamSpec,
        moments: tuple[Sequence[Tensor], Sequence[Tensor]],
        num_classes: int,
        class_weights: Tensor | None,
    ) -> nn.Module:
        """A new task on standardised layers.

        Args:
            stream: widths and hops of the layers (of the pooled vectors, for pooled features).
            moments: means and standard deviations of the training clips, per layer.
            num_classes: classes; 0 for one value.
            class_weights: of the classes; None for 1.
        """
        interface = Standardized(
            stream.hidden_sizes, stream.hop_lengths, self.interface, "frames", self.interface_arguments
        )
        interface.set_statistics(*moments)
        head = build_head(self.head, interface.output_size, num_classes or 1, **self.head_arguments)
        if num_classes:
            return UtteranceClassification(interface, head, class_weights)
        return UtteranceRegression(interface, head)


def _shown(name: str, arguments: Mapping[str, Any]) -> str:
    short = name.rpartition("/")[2].rpartition(".py:")[2] or name.rpartition("/")[2]
    short = short if short.endswith(".py") else short.rpartition(".")[2]
    listed = ", ".join(f"{key}={value}" for key, value in arguments.items())
    return f"{short}({listed})" if listed else short
