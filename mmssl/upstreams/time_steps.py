"""One vector for each time step, of an encoder that has several tokens there.

Source: Niizumi et al. 2022, "Masked Spectrogram Modeling using Masked Autoencoders for Learning General-purpose Audio
Representation", section 3.2, where the patches of a time step are put side by side before anything is pooled.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from mmssl.errors import ConfigError
from mmssl.types import Inputs, Layers, Representation, StreamSpec
from mmssl.upstreams.base import Upstream, build_upstream

JOINS = ("concat", "mean")


class TimeSteps(Upstream):
    """Another upstream whose tokens of a time step are joined: patches of a spectrogram, tubelets of a video.

    A mean over all tokens mixes what lies low in a spectrogram with what lies high; side by side they stay apart, at as
    many times the width. Streams of one token for each step, and those without a time axis, stay as they are. With one
    vector for each step an encoder of patches can be clustered for label files too.

    Args:
        upstream: as `load_upstream` takes it: a name, a dotted path, a .py file or an exported folder.
        join: "concat", tokens in their order, or "mean".
        **arguments: of that upstream.

    Raises:
        ConfigError: an unknown join, or no stream with several tokens for each step.
        MmsslError: what building the upstream raises.
    """

    def __init__(self, upstream: str = "audio_mae", *, join: str = "concat", **arguments: Any) -> None:
        super().__init__()
        if join not in JOINS:
            raise ConfigError(f"join must be one of {', '.join(JOINS)}, got {join!r}.")
        self.upstream, self.join = build_upstream(upstream, **arguments), join
        given = self.upstream.spec
        if all(stream.tokens_per_frame == 1 for stream in given.streams.values()):
            raise ConfigError(
                f"{upstream} has no stream with several tokens for each time step (streams: "
                f"{', '.join(given.streams)}): use it as it is."
            )
        self.spec = replace(given, streams={name: self._joined(stream) for name, stream in given.streams.items()})

    def output_lengths(self, lengths: Tensor, stream: str = "audio", layer: int = -1) -> Tensor:
        """Time steps (B,) of clips of `lengths` (B,)."""
        tokens = self.upstream.spec.streams[stream].tokens_per_frame
        return self.upstream.output_lengths(lengths, stream, layer) // tokens

    def frame_context(self) -> int | None:
        """That of the upstream."""
        return self.upstream.frame_context()

    def extract(self, inputs: Inputs) -> Representation:
        """All layers, (B, T, tokens * D) or (B, T, D)."""
        return {name: self._join(name, layers) for name, layers in self.upstream.extract(inputs).items()}

    def _joined(self, stream: StreamSpec) -> StreamSpec:
        factor = stream.tokens_per_frame if self.join == "concat" else 1
        return StreamSpec(tuple(size * factor for size in stream.hidden_sizes), stream.hop_lengths)

    def _join(self, name: str, layers: Layers) -> Layers:
        tokens = self.upstream.spec.streams[name].tokens_per_frame
        if tokens == 1:
            return layers
        steps = [hidden.unflatten(1, (-1, tokens)) for hidden in layers.hidden_states]
        joined = tuple(step.flatten(2) if self.join == "concat" else step.mean(dim=2) for step in steps)
        return Layers(joined, tuple(lengths // tokens for lengths in layers.lengths))
