"""The contract of an upstream.

A feature is a function of its input alone: the same clip gives the same numbers alone, padded, in any batch and in
any order. `Upstream.forward` checks what comes in, clears what lies past each length and hands an `Inputs` to
`extract`, which a family implements; what `extract` returns is cleared past each length again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.errors import InputError
from mmssl.lengths import samples_to_seconds, zero_padding
from mmssl.random import isolated_rng
from mmssl.registry import UPSTREAMS
from mmssl.types import Inputs, Layers, Padded, Representation, UpstreamSpec


class Upstream(nn.Module, ABC):
    """An encoder of waveforms, video or images that returns all layers of every stream.

    A subclass sets `self.spec` in its constructor, whose arguments are plain values (no config object), and implements
    `extract` and `output_lengths`.

    It may also have a method `extract_packed(waveforms: Sequence[Tensor]) -> list[Representation]`, which takes clips
    (T_b,) of unequal length, each within the spec's limits, and gives per clip what `forward` gives it alone: tensors
    (T_k, D_k) and scalar lengths. Feature extraction calls it, so that no padding is computed.
    """

    spec: UpstreamSpec

    @abstractmethod
    def extract(self, inputs: Inputs) -> Representation:
        """Compute all layers of a checked batch.

        Args:
            inputs: tensors with zeros past each length, lengths between the spec's minimum and maximum.

        Returns:
            One `Layers` per declared stream whose input is present, frames exactly as `output_lengths` says.
        """

    @abstractmethod
    def output_lengths(self, lengths: Tensor, stream: str = "audio", layer: int = -1) -> Tensor:
        """Number of frames (B,) that a layer has for inputs of `lengths` (B,) samples or video frames."""

    def frame_context(self) -> int | None:
        """How far a frame of a waveform upstream looks beyond its own window.

        Frame t of every layer depends only on frames t - n ... t + n of windows `spec.min_length` samples long, a hop
        apart: then a long recording can be computed exactly in pieces.

        Returns:
            n; 0 where a frame is a function of its own window. None, the default, where it may depend on all.
        """
        return None

    def forward(
        self,
        waveforms: Tensor | None = None,
        lengths: Tensor | None = None,
        *,
        video: Tensor | None = None,
        video_lengths: Tensor | None = None,
        images: Tensor | None = None,
    ) -> Representation:
        """All layers of a batch.

        Args:
            waveforms: (B, T) float in [-1, 1] at `spec.sample_rate`.
            lengths: (B,) samples of each waveform; None means all T.
            video: (B, T, C, H, W) float in [0, 1] at `spec.video_fps`.
            video_lengths: (B,) video frames of each video; None means all T.
            images: (B, C, H, W) float in [0, 1].

        Returns:
            Stream name -> `Layers`.

        Raises:
            InputError: an input is missing, unknown to this upstream, too short, or has a wrong shape or type.
        """
        self._refuse_unknown(waveforms=waveforms, video=video, images=images)
        inputs = Inputs(
            waveforms=None if waveforms is None else self._sequence("waveforms", waveforms, lengths, dims=2),
            video=None if video is None else self._sequence("video", video, video_lengths, dims=5),
            images=None if images is None else self._images(images),
        )
        representation = self.extract(inputs)
        return {stream: _cleared(layers) for stream, layers in representation.items()}

    @property
    def device(self) -> torch.device:
        """Where the parameters are; the CPU for an upstream without any."""
        for tensor in (*self.parameters(), *self.buffers()):
            return tensor.device
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Type of the parameters; float32 for an upstream without any."""
        for tensor in (*self.parameters(), *self.buffers()):
            if tensor.is_floating_point():
                return tensor.dtype
        return torch.float32

    def _refuse_unknown(self, **given: Tensor | None) -> None:
        present = [name for name, value in given.items() if value is not None]
        unknown = [name for name in present if name not in self.spec.inputs]
        if unknown or not present:
            raise InputError(
                f"{type(self).__name__} takes {' and / or '.join(self.spec.inputs)}, "
                f"got {' and '.join(present) or 'nothing'}."
            )

    def _sequence(self, name: str, data: Tensor, lengths: Tensor | None, dims: int) -> Padded:
        shape = "(B, T)" if dims == 2 else "(B, T, C, H, W)"
        if not isinstance(data, Tensor) or data.dim() != dims or not data.is_floating_point() or data.shape[0] == 0:
            raise InputError(f"{name} must be a float tensor {shape} with B >= 1, got {_describe(data)}.")
        batch, steps = data.shape[:2]
        if lengths is None:
            lengths = torch.full((batch,), steps, dtype=torch.int64, device=data.device)
        if lengths.shape != (batch,) or lengths.is_floating_point():
            raise InputError(f"The lengths of {name} must be ({batch},) integers, got {_describe(lengths)}.")
        lengths = lengths.to(device=data.device, dtype=torch.int64)
        longest, shortest = int(lengths.max()), int(lengths.min())
        if longest > steps:
            raise InputError(f"A length of {name} is {longest}, more than the {steps} steps that were given.")
        self._check_range(name, shortest, longest)
        if name == "video":
            self._check_size(data)
        return Padded(zero_padding(data[:, :longest], lengths), lengths)

    def _check_range(self, name: str, shortest: int, longest: int) -> None:
        spec = self.spec
        if name == "video" and "waveforms" in spec.inputs:
            minimum, maximum = 1, None
        else:
            minimum, maximum = spec.min_length, spec.max_length
        rate = spec.sample_rate if name == "waveforms" else spec.video_fps
        unit = "samples" if name == "waveforms" else "video frames"
        if shortest < minimum or (maximum is not None and longest > maximum):
            wrong = shortest if shortest < minimum else longest
            limit = f"at least {minimum}" if shortest < minimum else f"at most {maximum}"
            seconds = f" ({samples_to_seconds(wrong, rate):.4f} s at {rate:g} Hz)" if rate else ""
            remedy = "leave the clip out or lengthen it" if shortest < minimum else "cut the clip into shorter segments"
            raise InputError(
                f"{type(self).__name__} takes {name} of {limit} {unit}, got one of {wrong}{seconds}: {remedy}."
            )

    def _images(self, images: Tensor) -> Tensor:
        if not isinstance(images, Tensor) or images.dim() != 4 or not images.is_floating_point() or len(images) == 0:
            raise InputError(f"images must be a float tensor (B, C, H, W) with B >= 1, got {_describe(images)}.")
        self._check_size(images)
        return images

    def _check_size(self, pictures: Tensor) -> None:
        size = self.spec.image_size
        if size is not None and tuple(pictures.shape[-2:]) != tuple(size):
            raise InputError(
                f"{type(self).__name__} takes pictures of {size[0]} x {size[1]} (height x width), "
                f"got {pictures.shape[-2]} x {pictures.shape[-1]}: resize or crop them first."
            )


def _cleared(layers: Layers) -> Layers:
    cleared = tuple(
        zero_padding(h, n) if h.shape[1] and int(n.min()) < h.shape[1] else h
        for h, n in zip(layers.hidden_states, layers.lengths, strict=True)
    )
    return Layers(cleared, layers.lengths)


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    return type(value).__name__


def load_upstream(upstream: str, /, *, seed: int = 0, device: str | torch.device = "cpu", **kwargs: Any) -> Upstream:
    """Build an upstream for feature extraction: eval mode, no parameter asks for gradients, global RNG untouched.

    Args:
        upstream: a name (`mmssl upstreams` lists them), a dotted path to a class, a path to a .py file, or a folder
            that pretraining exported.
        seed: for weights that are not loaded but drawn, so that they depend on the seed alone.
        device: where it goes.
        **kwargs: handed to the upstream's constructor.

    Raises:
        RegistryError: no such upstream, or it does not load.
        ConfigError: its constructor does not take these arguments.
        MmsslError: what its constructor raises.
    """
    with isolated_rng(seed):
        built = build_upstream(upstream, **kwargs)
    return built.eval().requires_grad_(False).to(device)


def build_upstream(upstream: str, /, **kwargs: Any) -> Upstream:
    """What `load_upstream` builds, as it is built: weights that are drawn come from the global generator.

    Args:
        upstream: see `load_upstream`.
        **kwargs: handed to the upstream's constructor.

    Raises:
        InputError: it builds something else.
        MmsslError: as `load_upstream`.
    """
    if (Path(upstream) / "upstream.json").is_file():
        upstream, kwargs = "mmssl.upstreams.exported.load_exported", {"path": upstream, **kwargs}
    built = UPSTREAMS.build(upstream, **kwargs)
    if not isinstance(built, Upstream):
        raise InputError(
            f"{upstream!r} builds a {type(built).__name__}, not an mmssl.upstreams.base.Upstream: "
            "derive from that class."
        )
    return built
