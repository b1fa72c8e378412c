"""Plain features of sound and pictures, in the form of an upstream: what nobody trained."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mmssl.errors import ConfigError
from mmssl.lengths import zero_padding
from mmssl.types import Inputs, Layers, Representation, StreamSpec, UpstreamSpec
from mmssl.upstreams.base import Upstream
from mmssl.upstreams.spectral import Mel

# the luma of ITU-R BT.601
_LUMA = (0.299, 0.587, 0.114)


class MelPixels(Upstream):
    """Log-mel frames of the sound, and small grey pictures of the video, each video frame alone.

    Args:
        num_mel_bins: filters, every 10 ms.
        pixels: height and width of the grey pictures.
        image_size: of the pictures that come in; `pixels` divides it.
        video_fps: in Hz.

    Raises:
        ConfigError: `pixels` does not divide `image_size`.
    """

    luma: Tensor

    def __init__(self, num_mel_bins: int = 40, pixels: int = 12, image_size: int = 48, video_fps: float = 25.0) -> None:
        super().__init__()
        if pixels < 1 or image_size % pixels:
            raise ConfigError(f"pixels must divide image_size, got {pixels} and {image_size}.")
        self.mel, self.pixels = Mel(num_mel_bins=num_mel_bins), pixels
        self.register_buffer("luma", torch.tensor(_LUMA)[:, None, None], persistent=False)
        audio = self.mel.spec
        self.spec = UpstreamSpec(
            inputs=("waveforms", "video"),
            streams={"audio": audio.streams["audio"], "video": StreamSpec((pixels**2,), (1,))},
            sample_rate=audio.sample_rate,
            video_fps=video_fps,
            min_length=audio.min_length,
            image_size=(image_size, image_size),
        )

    def output_lengths(self, lengths: Tensor, stream: str = "audio", layer: int = -1) -> Tensor:
        """Frames (B,) for `lengths` (B,) samples (audio) or video frames (video)."""
        return lengths if stream == "video" else self.mel.output_lengths(lengths, stream, layer)

    def extract(self, inputs: Inputs) -> Representation:
        """The streams whose inputs are there."""
        found: dict[str, Layers] = {}
        if inputs.waveforms is not None:
            found["audio"] = self.mel(inputs.waveforms.data, inputs.waveforms.lengths)["audio"]
        if inputs.video is not None:
            grey = (inputs.video.data * self.luma).sum(2)
            small = F.adaptive_avg_pool2d(grey, self.pixels).flatten(2)
            found["video"] = Layers((zero_padding(small, inputs.video.lengths),), (inputs.video.lengths,))
        return found
