"""What AV-HuBERT does before its transformer: stacked log filterbanks of the voice, a 3-D front end for the mouth."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.errors import ConfigError, InputError
from mmssl.nn.conv_tower import ConvTower
from mmssl.nn.packed import Packed
from mmssl.nn.resnet2d import activation_layer, init_convs, resnet18_stages

# weights of red, green and blue in a grey picture (ITU-R BT.601), as OpenCV has them
_LUMA = (0.299, 0.587, 0.114)
_INT16 = 2.0**15


class StackedFilterbank(nn.Module):
    """Log filterbanks of the package python_speech_features, several frames side by side.

    Source: that package's `logfbank` with its defaults, on samples of 16 bits: pre-emphasis 0.97 over the whole clip,
    rectangular windows of 25 ms every 10 ms, the last one filled with zeros, an FFT of 512 samples, power divided by
    that size, triangular filters between bins rounded down on the HTK mel scale, natural logarithm. AV-HuBERT stacks 4
    frames of 26 at 16 kHz to 104 values every 40 ms (Shi et al. 2022, section 4.1).

    It is computed in float64 as there: a filter may hold a 10^10th of the window's power.

    Args:
        num_bins: filters.
        stack: frames side by side.
        sample_rate: in Hz.
        normalize: layer norm of each stacked frame, without parameters.
    """

    def __init__(self, num_bins: int = 26, stack: int = 4, sample_rate: int = 16000, normalize: bool = True) -> None:
        super().__init__()
        self.window, self.hop = sample_rate // 40, sample_rate // 100
        self.n_fft, self.stack, self.normalize = 512, stack, normalize
        if self.window > self.n_fft:
            raise ConfigError(f"StackedFilterbank takes sample rates up to {40 * self.n_fft} Hz, got {sample_rate}.")
        self.hop_length = self.hop * stack
        self.output_size = num_bins * stack
        self._bank = rounded_mel_bank(num_bins, self.n_fft, sample_rate)

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Stacked frames (B,) of clips of `lengths` samples: those whose stretch of samples is whole."""
        return lengths // self.hop_length

    def rows(self, waveform: Tensor) -> Tensor:
        """Waveform (T,) in [-1, 1] -> log filterbank (T', num_bins) float64, T' = 1 + ceil((T - window) / hop)."""
        signal = waveform.double() * _INT16
        signal = torch.cat([signal[:1], signal[1:] - 0.97 * signal[:-1]])
        count = 1 + max(0, -(-(len(signal) - self.window) // self.hop))
        signal = F.pad(signal, (0, (count - 1) * self.hop + self.window - len(signal)))
        spectrum = torch.fft.rfft(signal.unfold(0, self.window, self.hop), n=self.n_fft)
        power = torch.view_as_real(spectrum).pow(2).sum(-1) / self.n_fft
        if self._bank.device != power.device:
            self._bank = self._bank.to(power.device)
        energy = power @ self._bank
        return torch.where(energy == 0, torch.finfo(torch.float64).eps, energy).log()

    def forward(self, waveform: Tensor) -> Tensor:
        """Waveform (T,) in [-1, 1], T at least one hop -> stacked frames (T // hop, stack * num_bins) float32.

        A stack that lacks frames at the clip's end is filled with zeros, as AV-HuBERT does; one whose samples are not
        all there is left out, as AV-HuBERT does where a video ends there.
        """
        frames = len(waveform) // self.hop_length
        rows = self.rows(waveform)[: frames * self.stack]
        rows = F.pad(rows, (0, 0, 0, frames * self.stack - len(rows)))
        stacked = rows.reshape(frames, -1).float()
        return F.layer_norm(stacked, stacked.shape[1:]) if self.normalize else stacked


def rounded_mel_bank(num_bins: int, n_fft: int, sample_rate: int) -> Tensor:
    """Triangular filters (n_fft / 2 + 1, num_bins) float64 whose corners are FFT bins, rounded down.

    Source: `get_filterbanks` of python_speech_features.
    """
    top = 2595 * torch.log10(torch.tensor(1 + sample_rate / 2 / 700, dtype=torch.float64))
    hertz = 700 * (10 ** (torch.linspace(0, 1, num_bins + 2, dtype=torch.float64) * top / 2595) - 1)
    corners = torch.floor((n_fft + 1) * hertz / sample_rate)
    bins = torch.arange(n_fft // 2 + 1, dtype=torch.float64)[:, None]
    low, peak, high = corners[:-2], corners[1:-1], corners[2:]
    # corners that fall on one bin leave a side without bins, whose slope is never used
    rising = (bins - low) / (peak - low).clamp(min=1)
    falling = (high - bins) / (high - peak).clamp(min=1)
    zero = torch.zeros(())
    bank = torch.where((bins >= low) & (bins < peak), rising, zero)
    return torch.where((bins >= peak) & (bins < high), falling, bank)


def mouth_crops(video: Tensor, crop_size: int, mean: float, std: float) -> Tensor:
    """Grey, centred crops of mouth pictures, scaled.

    Args:
        video: (T, C, H, W) in [0, 1], grey or red, green and blue.
        crop_size: height and width of the crop.
        mean, std: of grey values in [0, 1].

    Returns:
        (T, 1, crop_size, crop_size) float32.

    Raises:
        InputError: pictures of another number of channels.
    """
    if video.shape[1] not in (1, 3):
        raise InputError(f"Mouth pictures are grey or have three colours, got {video.shape[1]} channels.")
    grey = video.float()
    if video.shape[1] == 3:
        weights = torch.tensor(_LUMA, device=video.device)
        grey = (grey * weights[:, None, None]).sum(1, keepdim=True)
    # Python's rounding of halves, which AV-HuBERT's crop has
    top, left = (round((size - crop_size) / 2) for size in video.shape[2:])
    return (grey[:, :, top : top + crop_size, left : left + crop_size] - mean) / std


class MouthFrontEnd(nn.Module):
    """A convolution over space and time, then ResNet-18 on each frame (Stafylakis and Tzimiropoulos 2017; AV-HuBERT).

    Args:
        width: channels of the stem and the first stage, 64 in the papers; 8 times as many come out.
        activation: "prelu" or "relu".
    """

    def __init__(self, width: int = 64, activation: str = "prelu") -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(1, width, (5, 7, 7), (1, 2, 2), padding=(2, 3, 3), bias=False),
            nn.BatchNorm3d(width),
            activation_layer(activation, width),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), padding=(0, 1, 1)),
        )
        widths = [width * scale for scale in (1, 2, 4, 8)]
        self.trunk = ConvTower(None, resnet18_stages(width, width, activation), widths, [()] * 4, time_axis=None)
        self.output_size = widths[-1]
        init_convs(self.modules())

    def forward(self, clips: Sequence[Tensor]) -> Packed:
        """Clips (T_b, 1, H, W), each on its own along time -> packed frames (N, output_size)."""
        stemmed = [self.stem(clip.transpose(0, 1)[None])[0].transpose(0, 1) for clip in clips]
        packed = Packed.of(stemmed)
        x = self.trunk.maps(packed.data)[-1]
        return packed.replace(x.mean((2, 3)))
