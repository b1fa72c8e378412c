"""Small upstreams that keep the contract, one for each kind of input: for tests that need any upstream at all."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmssl.lengths import conv_length
from mmssl.types import Inputs, Layers, Representation, StreamSpec, UpstreamSpec
from mmssl.upstreams.base import Upstream


class DummyAudio(Upstream):
    """One convolution on the waveform and a linear map per further layer.

    Args:
        hidden_size: width of every layer.
        num_layers: how many layers.
        kernel, hop: of the convolution, in samples.
    """

    def __init__(self, hidden_size: int = 8, num_layers: int = 3, kernel: int = 400, hop: int = 320) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, hidden_size, kernel, hop)
        self.maps = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(num_layers - 1))
        self.spec = UpstreamSpec(
            inputs=("waveforms",),
            streams={"audio": StreamSpec((hidden_size,) * num_layers, (hop,) * num_layers)},
            sample_rate=16000,
            min_length=kernel,
        )

    def output_lengths(self, lengths: Tensor, stream: str = "audio", layer: int = -1) -> Tensor:
        """Outputs of the convolution."""
        return conv_length(lengths, self.conv.kernel_size[0], self.conv.stride[0])

    def extract(self, inputs: Inputs) -> Representation:
        """The convolution and the maps, each after a tanh."""
        assert inputs.waveforms is not None  # `forward` has checked it
        hidden = [self.conv(inputs.waveforms.data.to(self.dtype)[:, None]).transpose(1, 2).tanh()]
        for linear in self.maps:
            hidden.append(linear(hidden[-1]).tanh())
        lengths = self.output_lengths(inputs.waveforms.lengths)
        return {"audio": Layers(tuple(hidden), (lengths,) * len(hidden))}


class DummyVideo(Upstream):
    """A linear map of every picture of a video.

    Args:
        hidden_size: width of the one layer.
        image_size: height and width of the pictures.
    """

    def __init__(self, hidden_size: int = 8, image_size: int = 16) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * image_size**2, hidden_size)
        self.spec = UpstreamSpec(
            inputs=("video",),
            streams={"video": StreamSpec((hidden_size,), (1,))},
            video_fps=25.0,
            image_size=(image_size, image_size),
        )

    def output_lengths(self, lengths: Tensor, stream: str = "video", layer: int = -1) -> Tensor:
        """One frame per picture."""
        return lengths

    def extract(self, inputs: Inputs) -> Representation:
        """One layer of one frame per picture."""
        assert inputs.video is not None
        hidden = self.linear(inputs.video.data.flatten(2).to(self.dtype)).tanh()
        return {"video": Layers((hidden,), (inputs.video.lengths,))}


class DummyImage(Upstream):
    """Patches of a picture through one convolution: tokens without a time axis.

    Args:
        hidden_size: width of the one layer.
        image_size: height and width of the pictures.
        patch: height and width of a patch.
    """

    def __init__(self, hidden_size: int = 8, image_size: int = 16, patch: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, hidden_size, patch, patch)
        self.tokens = (image_size // patch) ** 2
        self.spec = UpstreamSpec(
            inputs=("images",),
            streams={"image": StreamSpec((hidden_size,), (0,))},
            image_size=(image_size, image_size),
        )

    def output_lengths(self, lengths: Tensor, stream: str = "image", layer: int = -1) -> Tensor:
        """The number of patches for every picture."""
        return torch.full_like(lengths, self.tokens)

    def extract(self, inputs: Inputs) -> Representation:
        """One layer of patches."""
        assert inputs.images is not None
        hidden = self.conv(inputs.images.to(self.dtype)).flatten(2).transpose(1, 2)
        lengths = torch.full((len(hidden),), self.tokens, dtype=torch.int64, device=hidden.device)
        return {"image": Layers((hidden,), (lengths,))}


class DummyAudioVisual(Upstream):
    """Waveforms and video, either alone or both; with both, their sum at the rate of the video as a third stream.

    Args:
        hidden_size: width of every layer.
        image_size: height and width of the pictures.
    """

    def __init__(self, hidden_size: int = 8, image_size: int = 16) -> None:
        super().__init__()
        self.audio = DummyAudio(hidden_size, num_layers=2, kernel=640, hop=640)
        self.video = DummyVideo(hidden_size, image_size)
        self.spec = UpstreamSpec(
            inputs=("waveforms", "video"),
            streams={
                "audio": self.audio.spec.streams["audio"],
                "video": self.video.spec.streams["video"],
                "fusion": StreamSpec((hidden_size,), (640,)),
            },
            sample_rate=16000,
            video_fps=25.0,
            min_length=640,
            image_size=self.video.spec.image_size,
        )

    def output_lengths(self, lengths: Tensor, stream: str = "audio", layer: int = -1) -> Tensor:
        """Of `lengths` samples for audio and fusion, of `lengths` video frames for video."""
        part = self.video if stream == "video" else self.audio
        return part.output_lengths(lengths)

    def extract(self, inputs: Inputs) -> Representation:
        """The streams whose inputs are there."""
        found: dict[str, Layers] = {}
        if inputs.waveforms is not None:
            found |= self.audio.extract(inputs)
        if inputs.video is not None:
            found |= self.video.extract(inputs)
        if len(found) == 2:
            audio, video = found["audio"][-1], found["video"][-1]
            frames = min(audio.data.shape[1], video.data.shape[1])
            fused = audio.data[:, :frames] + video.data[:, :frames]
            found["fusion"] = Layers((fused,), (torch.minimum(audio.lengths, video.lengths),))
        return found
