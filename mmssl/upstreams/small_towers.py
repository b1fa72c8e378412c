"""A two-tower encoder of a few hundred thousand weights, for spoken words and small pictures."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.errors import ConfigError
from mmssl.lengths import conv_length, shortest_input, valid_mask
from mmssl.nn.conv_tower import VideoTower
from mmssl.nn.filterbank import fft_size, mel_bank, normalize_frames
from mmssl.nn.resnet2d import l3_tower
from mmssl.nn.spectrogram import LogSpectrogram
from mmssl.types import Inputs, Layers, Padded, Representation
from mmssl.upstreams.two_tower import TwoTower

_KERNEL = 5
_STRIDES = (1, 2, 2)


class MelTower(nn.Module):
    """Log-mel frames whose mean over the clip is taken away, then three convolutions over time.

    Norms are over channels and frames past a clip's end are cleared after each layer, so that clips of unequal length
    run together and give what they give alone.

    Args:
        spectrogram: waveforms to log-mel frames, windows not centred.
        width: channels of each layer.
    """

    def __init__(self, spectrogram: LogSpectrogram, width: int) -> None:
        super().__init__()
        self.spectrogram = spectrogram
        sizes = (spectrogram.num_bins, width, width)
        self.convs = nn.ModuleList(
            nn.Conv1d(size, width, _KERNEL, stride, padding=_KERNEL // 2)
            for size, stride in zip(sizes, _STRIDES, strict=True)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in _STRIDES)
        self.hidden_sizes = (width,) * len(_STRIDES)
        hops = [1, 2, 4]
        self.hop_lengths = tuple(spectrogram.hop_length * hop for hop in hops)
        self.min_length = spectrogram.min_length(shortest_input([(_KERNEL, s, _KERNEL - 1) for s in _STRIDES]))

    def output_lengths(self, lengths: Tensor, layer: int) -> Tensor:
        """Frames (B,) of a layer for `lengths` (B,) samples."""
        frames = self.spectrogram.output_lengths(lengths)
        for stride in _STRIDES[: layer % len(_STRIDES) + 1]:
            frames = conv_length(frames, _KERNEL, stride, padding=_KERNEL // 2)
        return frames

    def forward(self, waveforms: Padded) -> Layers:
        """All layers of clips (B, T)."""
        lengths = self.spectrogram.output_lengths(waveforms.lengths)
        frames = self.spectrogram(waveforms.data).transpose(1, 2)
        valid = valid_mask(lengths, frames.shape[1])
        frames = normalize_frames(frames.masked_fill(~valid[..., None], 0), lengths, variance=False)
        x = frames.to(next(self.parameters()).dtype)
        states, sizes = [], []
        for conv, norm, stride in zip(self.convs, self.norms, _STRIDES, strict=True):
            lengths = conv_length(lengths, _KERNEL, stride, padding=_KERNEL // 2)
            x = F.gelu(norm(conv(x.transpose(1, 2)).transpose(1, 2)))
            x = x.masked_fill(~valid_mask(lengths, x.shape[1])[..., None], 0)
            states.append(x)
            sizes.append(lengths)
        return Layers(tuple(states), tuple(sizes))


class SmallTowers(TwoTower):
    """Three convolutions on the log-mel of a word, four blocks of L3-Net on small pictures.

    Args:
        width: channels of the audio tower; the picture tower ends with as many.
        sample_rate: in Hz.
        num_mels: bands of 25 ms windows every 10 ms.
        image_size: height and width of the pictures, at least 8.
        video_fps: of the video, in Hz.

    Raises:
        ConfigError: sizes out of range.
    """

    def __init__(
        self,
        width: int = 128,
        *,
        sample_rate: int = 8000,
        num_mels: int = 40,
        image_size: int = 8,
        video_fps: float = 25.0,
    ) -> None:
        if width < 8 or width % 8 or image_size < 8 or num_mels < 1 or sample_rate < 1000:
            raise ConfigError(
                f"SmallTowers takes a width that is a multiple of 8, pictures of at least 8 x 8, at least one band and "
                f"1000 Hz, got {width}, {image_size}, {num_mels} and {sample_rate}."
            )
        window = sample_rate // 40
        n_fft = fft_size(window)
        bank = mel_bank(num_mels, n_fft, sample_rate, 0.0, 0.0)
        audio = MelTower(LogSpectrogram(n_fft, sample_rate // 100, window, bank, offset=1e-7), width)
        video = VideoTower(l3_tower(3, width // 8, None, "mean"), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        super().__init__(
            audio,  # type: ignore[arg-type]
            video,
            sample_rate=sample_rate,
            video_fps=video_fps,
            image_size=image_size,
        )

    def extract(self, inputs: Inputs) -> Representation:
        """All layers of the streams whose inputs are there."""
        found: dict[str, Layers] = {}
        if inputs.waveforms is not None:
            found["audio"] = self.audio(inputs.waveforms)  # type: ignore[misc]
        if inputs.video is not None:
            found |= super().extract(Inputs(video=inputs.video))
        return found
