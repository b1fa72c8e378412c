"""Log-mel frames centred on their time, as encoders trained on torch or librosa spectrograms take them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.errors import ConfigError
from mmssl.lengths import conv_length
from mmssl.nn.filterbank import mel_bank

WINDOWS = {"hann": torch.hann_window, "hamming": torch.hamming_window}


class LogMel(nn.Module):
    """Logarithm of mel power, with windows centred on multiples of the hop and the clip reflected at its ends.

    It equals the log of `torchaudio.transforms.MelSpectrogram` plus `offset`. The clip must come without padding,
    because its end is reflected. Tables and arithmetic stay in float32, whatever type the module is cast to.

    Args:
        num_mel_bins: triangular filters on the HTK mel scale.
        n_fft: FFT length in samples, even.
        hop_length: samples between two frames.
        window_length: of the window inside the FFT length, in samples; None for all of it.
        window: "hann" or "hamming", periodic.
        sample_rate, low_freq, high_freq: in Hz; a `high_freq` of zero or less counts from half the sample rate.
        offset: added to the power before the logarithm.
    """

    def __init__(
        self,
        num_mel_bins: int = 80,
        n_fft: int = 400,
        hop_length: int = 160,
        window_length: int | None = None,
        window: str = "hann",
        sample_rate: int = 16000,
        low_freq: float = 0.0,
        high_freq: float = 0.0,
        offset: float = 1e-10,
    ) -> None:
        super().__init__()
        size = n_fft if window_length is None else window_length
        if window not in WINDOWS or n_fft % 2 or not 1 <= size <= n_fft:
            raise ConfigError(
                f"LogMel takes a window among {', '.join(WINDOWS)} of 1 to n_fft samples and an even n_fft, "
                f"got {window!r} of {size} and n_fft = {n_fft}."
            )
        self.n_fft, self.hop_length, self.offset = n_fft, hop_length, offset
        left = (n_fft - size) // 2
        # no buffers: a cast of the module must not round them, and building it without memory must not lose them
        with torch.device("cpu"):
            padded = F.pad(WINDOWS[window](size), (left, n_fft - size - left))
            self._tables = (padded, mel_bank(num_mel_bins, n_fft, sample_rate, low_freq, high_freq))

    @property
    def min_length(self) -> int:
        """Samples of the shortest clip that can be reflected."""
        return self.n_fft // 2 + 1

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Frames of clips of `lengths` samples: one per hop and one more."""
        return conv_length(lengths, self.n_fft, self.hop_length, padding=self.n_fft // 2)

    def forward(self, waveforms: Tensor) -> Tensor:
        """Waveforms (B, T) without padding -> (B, T', num_mel_bins) float32."""
        if self._tables[0].device != waveforms.device:
            window, bank = self._tables
            self._tables = (window.to(waveforms.device), bank.to(waveforms.device))
        window, bank = self._tables
        with torch.autocast(waveforms.device.type, enabled=False):
            reach = self.n_fft // 2
            frames = F.pad(waveforms.float(), (reach, reach), mode="reflect").unfold(1, self.n_fft, self.hop_length)
            power = torch.fft.rfft(frames * window).abs().pow(2)
            return (power @ bank + self.offset).log()


def standardize_frames(frames: Tensor, eps: float = 1e-10) -> Tensor:
    """Bring each feature of clips without padding to mean 0 and sample standard deviation 1 over time.

    The deviation has n - 1 below it and `eps` added, as in S3PRL; a clip of one frame becomes zero.

    Args:
        frames: (B, T, D), every frame valid.
    """
    centred = frames - frames.mean(dim=1, keepdim=True)
    variance = centred.pow(2).sum(dim=1, keepdim=True) / max(frames.shape[1] - 1, 1)
    # the root's slope at zero is infinite, and a constant feature must not make gradients NaN
    deviation = variance.clamp(min=torch.finfo(variance.dtype).tiny).sqrt()
    return centred / (deviation + eps)
