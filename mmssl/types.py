"""The types that every part of mmssl speaks: data only, no I/O, no configuration.

Terms, the same everywhere:
    frame           one time step of a feature sequence (a picture of a video is a "video frame")
    length          a number of samples (waveforms), video frames (video) or frames (features)
    hop_length      distance between two frames, in input samples or video frames
    frame_shift     the same in seconds;  frame_rate is its inverse in Hz
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Stream = Literal["audio", "video", "image", "fusion"]
STREAMS: tuple[str, ...] = get_args(Stream)
InputName = Literal["waveforms", "video", "images"]


@dataclass(frozen=True)
class Padded:
    """A batch of sequences of unequal length.

    Attributes:
        data: (B, T, ...), zero or arbitrary values past each sequence's length.
        lengths: (B,) int64, number of valid steps of each sequence, 0 <= lengths <= T.
    """

    data: Tensor
    lengths: Tensor

    @property
    def mask(self) -> Tensor:
        """(B, T) bool, True where a step is valid."""
        from mmssl.lengths import valid_mask

        return valid_mask(self.lengths, self.data.shape[1])

    def to(self, *args: Any, **kwargs: Any) -> Padded:
        """Move or cast `data`; lengths follow the device and stay int64."""
        data = self.data.to(*args, **kwargs)
        return Padded(data, self.lengths.to(data.device))

    def unpad(self) -> list[Tensor]:
        """Split into B tensors (T_b, ...), each of its own length."""
        return [row[: int(n)] for row, n in zip(self.data, self.lengths, strict=True)]


@dataclass(frozen=True)
class Layers:
    """All layers of one stream. Layers may differ in width and in rate.

    Attributes:
        hidden_states: one tensor (B, T_k, D_k) per layer, from the input of the first block to the last output.
            Values past a clip's length are zero.
        lengths: one (B,) int64 tensor per layer, in frames.
    """

    hidden_states: tuple[Tensor, ...]
    lengths: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.hidden_states)

    def __getitem__(self, layer: int) -> Padded:
        return Padded(self.hidden_states[layer], self.lengths[layer])

    @property
    def hidden_sizes(self) -> tuple[int, ...]:
        """Width of each layer."""
        return tuple(h.shape[-1] for h in self.hidden_states)

    def to(self, *args: Any, **kwargs: Any) -> Layers:
        """Move or cast the hidden states; lengths follow the device and stay int64."""
        padded = [self[k].to(*args, **kwargs) for k in range(len(self))]
        return Layers(tuple(p.data for p in padded), tuple(p.lengths for p in padded))


Representation = Mapping[str, Layers]
"""What an upstream returns: stream name ("audio", "video", "image", "fusion") -> all its layers."""


@dataclass(frozen=True)
class StreamSpec:
    """What an upstream declares of one stream, so that heads and stores can be built before anything runs.

    Attributes:
        hidden_sizes: width of each layer.
        hop_lengths: distance between two frames of each layer, in input samples (audio) or video frames (video);
            0 for a sequence of tokens with no time axis (image patches).
        tokens_per_frame: tokens that share one time step (spectrogram or video patches, time-major); 1 for a sequence.
    """

    hidden_sizes: tuple[int, ...]
    hop_lengths: tuple[int, ...]
    tokens_per_frame: int = 1

    def __post_init__(self) -> None:
        if len(self.hidden_sizes) != len(self.hop_lengths) or not self.hidden_sizes:
            raise ValueError(
                f"StreamSpec needs one hop length per layer and at least one layer, got {len(self.hidden_sizes)} "
                f"hidden sizes and {len(self.hop_lengths)} hop lengths."
            )

    @property
    def num_layers(self) -> int:
        """Number of layers of the stream."""
        return len(self.hidden_sizes)


@dataclass(frozen=True)
class UpstreamSpec:
    """What an upstream takes and gives.

    Attributes:
        inputs: which of "waveforms", "video", "images" it takes.
        streams: stream name -> StreamSpec.
        sample_rate: of the waveforms, in Hz; None where it takes none.
        video_fps: of the video, in Hz; None where it takes none.
        min_length: the shortest waveform it takes in samples (without waveforms: the shortest video in video frames).
        max_length: the longest, in the same unit; None where there is no limit.
        image_size: (height, width) that video and images must have; None where any size goes.
    """

    inputs: tuple[str, ...]
    streams: Mapping[str, StreamSpec]
    sample_rate: int | None = None
    video_fps: float | None = None
    min_length: int = 1
    max_length: int | None = None
    image_size: tuple[int, int] | None = None

    def frame_shift(self, stream: str, layer: int = -1) -> float | None:
        """Seconds between two frames of a layer; None for token sequences with no time axis."""
        hop = self.streams[stream].hop_lengths[layer]
        rate = self.video_fps if stream == "video" or self.sample_rate is None else self.sample_rate
        return hop / rate if hop and rate else None


@dataclass(frozen=True)
class Inputs:
    """A checked batch, as `Upstream.extract` receives it.

    Attributes:
        waveforms: Padded (B, T) in [-1, 1].
        video: Padded (B, T, C, H, W) in [0, 1].
        images: (B, C, H, W) in [0, 1].
    """

    waveforms: Padded | None = None
    video: Padded | None = None
    images: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where the batch is."""
        for item in (self.waveforms, self.video):
            if item is not None:
                return item.data.device
        if self.images is None:
            raise ValueError("Inputs holds no tensor.")
        return self.images.device


@dataclass(frozen=True)
class Clip:
    """One example of a corpus: a stretch of audio and / or video, or an image, with its labels.

    Attributes:
        id: unique in its manifest.
        audio, video, image: paths of media files, or None.
        start: of the clip inside the file, in seconds.
        duration: in seconds; None means to the end of the file.
        labels: label name -> class name (str) or value (float), for example {"emotion": "anger"}.
        speaker: who speaks, or None.
        split: "train", "dev", "test", a fold's name, or None.
    """

    id: str
    audio: str | None = None
    video: str | None = None
    image: str | None = None
    start: float = 0.0
    duration: float | None = None
    labels: Mapping[str, Any] = field(default_factory=dict)
    speaker: str | None = None
    split: str | None = None

    def group(self, name: str) -> str | None:
        """Value of a grouping field: "speaker", "split", or any label name."""
        if name in ("speaker", "split"):
            return getattr(self, name)
        value = self.labels.get(name)
        return None if value is None else str(value)


@dataclass(frozen=True)
class TaskOutput:
    """What a downstream task returns for a batch.

    Attributes:
        loss: scalar, mean over the batch's clips.
        count: number of clips the loss averages over.
        predictions: (B, C) logits, or (B, D) values for regression.
    """

    loss: Tensor
    count: int
    predictions: Tensor
