"""Log spectrograms as audio towers take them: any bank of filters, natural logarithm or decibels, one scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.errors import ConfigError
from mmssl.lengths import conv_length
from mmssl.nn.filterbank import normalize_frames

DECIBEL_FLOOR = 1e-10


class LogSpectrogram(nn.Module):
    """Logarithm of the power of filters over a periodic Hann window, scaled by constants or by the clip's own.

    Clips must come without padding: a centred window reflects the clip's end, and the range in decibels and the clip's
    own scale are taken over all of it. Tables and arithmetic stay in float32, whatever type the module is cast to.

    Args:
        n_fft: FFT length in samples, even.
        hop_length: samples between two frames.
        window_length: of the window inside the FFT length, in samples; None for all of it. A window that is not
            centred begins at its frame's first sample, and zeros fill the FFT length.
        bank: (n_fft / 2 + 1, F) filters on the power; None keeps the bins of the FFT.
        center: windows centred on multiples of the hop with the clip reflected at its ends (librosa's and torch's
            default) instead of whole windows only.
        decibels: 10 log10(max(power, 1e-10)), no lower than `dynamic_range` below the clip's maximum (librosa's
            power_to_db), instead of the natural logarithm of power + `offset`.
        dynamic_range: in decibels.
        offset: added to the power before the natural logarithm.
        mean, std: numbers or (F,), subtracted and divided by; None scales each filter by the clip's own.
    """

    def __init__(
        self,
        n_fft: int,
        hop_length: int,
        window_length: int | None = None,
        bank: Tensor | None = None,
        *,
        center: bool = False,
        decibels: bool = False,
        dynamic_range: float = 100.0,
        offset: float = 1e-10,
        mean: float | Tensor | None = 0.0,
        std: float | Tensor = 1.0,
    ) -> None:
        super().__init__()
        size = n_fft if window_length is None else window_length
        if n_fft % 2 or not 2 <= size <= n_fft or hop_length < 1 or (center and size != n_fft):
            raise ConfigError(
                f"LogSpectrogram takes an even n_fft, a window of 2 to n_fft samples (n_fft if centred) and a hop of "
                f"at least 1, got n_fft = {n_fft}, window_length = {size}, hop_length = {hop_length}."
            )
        self.n_fft, self.hop_length, self.window_length, self.center = n_fft, hop_length, size, center
        self.decibels, self.dynamic_range, self.offset = decibels, dynamic_range, offset
        self.num_bins = n_fft // 2 + 1 if bank is None else bank.shape[1]
        self.own_scale = mean is None
        # no buffers: a cast of the module must not round them
        self._tables = [
            torch.hann_window(size),
            torch.empty(0) if bank is None else bank.float(),
            torch.as_tensor(0.0 if mean is None else mean, dtype=torch.float32),
            torch.as_tensor(std, dtype=torch.float32),
        ]

    def min_length(self, frames: int = 1) -> int:
        """Samples of the shortest clip that gives `frames` frames."""
        if self.center:
            return max(self.n_fft // 2 + 1, (frames - 1) * self.hop_length)
        return self.window_length + (frames - 1) * self.hop_length

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Frames (B,) of clips of `lengths` (B,) samples."""
        padding = self.n_fft // 2 if self.center else 0
        return conv_length(lengths, self.window_length, self.hop_length, padding=padding)

    def forward(self, waveforms: Tensor) -> Tensor:
        """Waveforms (B, T) in [-1, 1] without padding -> (B, F, T') float32."""
        window, bank, mean, std = self._on(waveforms.device)
        with torch.autocast(waveforms.device.type, enabled=False):
            x = waveforms.float()
            if self.center:
                x = F.pad(x, (self.n_fft // 2, self.n_fft // 2), mode="reflect")
            spectrum = torch.fft.rfft(x.unfold(1, self.window_length, self.hop_length) * window, n=self.n_fft)
            # not abs(), whose gradient at a silent bin is not a number on some devices
            power = torch.view_as_real(spectrum).pow(2).sum(-1)
            frames = self._log(power @ bank if bank.numel() else power)
            if self.own_scale:
                lengths = torch.full((len(frames),), frames.shape[1], device=frames.device)
                frames = normalize_frames(frames, lengths, variance=True)
            else:
                frames = (frames - mean) / std
        return frames.transpose(1, 2)

    def _log(self, power: Tensor) -> Tensor:
        if not self.decibels:
            return (power + self.offset).log()
        level = 10 * power.clamp(min=DECIBEL_FLOOR).log10()
        return torch.maximum(level, level.amax(dim=(1, 2), keepdim=True) - self.dynamic_range)

    def _on(self, device: torch.device) -> list[Tensor]:
        if self._tables[0].device != device:
            self._tables = [table.to(device) for table in self._tables]
        return self._tables
