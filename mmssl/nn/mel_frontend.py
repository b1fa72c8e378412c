"""Stacked log-mel frames in the place of a convolutional front end."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mmssl.errors import ConfigError
from mmssl.nn.log_mel import LogMel
from mmssl.nn.packed import Packed

# of log-mel values of speech in [-1, 1], roughly: one shift and one scale for all clips, so that loudness is kept
_CENTRE, _SPREAD = -5.0, 5.0


class MelFrontEnd(nn.Module):
    """Waveform to frames without weights: neighbouring log-mel frames side by side.

    Source: Lin, Lee and Tang 2023, "MelHuBERT: A simplified HuBERT on Mel spectrograms", section 3: 40 values every
    10 ms, two frames stacked. There, values are standardised over the corpus; here, by two constants.

    Args:
        num_mel_bins: filters of a frame.
        stack: frames of 10 ms that make one of the output.

    Raises:
        ConfigError: a value below 1.
    """

    def __init__(self, num_mel_bins: int = 40, stack: int = 2) -> None:
        super().__init__()
        if num_mel_bins < 1 or stack < 1:
            raise ConfigError(f"num_mel_bins and stack must be at least 1, got {num_mel_bins} and {stack}.")
        self.log_mel = LogMel(num_mel_bins, offset=1e-6)
        self.stack = stack
        self.output_size = num_mel_bins * stack

    @property
    def min_length(self) -> int:
        """The shortest clip that gives a frame, in samples."""
        return max(self.log_mel.min_length, (self.stack - 1) * self.log_mel.hop_length)

    @property
    def hop_length(self) -> int:
        """Samples between two frames."""
        return self.log_mel.hop_length * self.stack

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Frames (B,) of clips of `lengths` (B,) samples; log-mel frames that do not fill a stack are left out."""
        return self.log_mel.output_lengths(lengths) // self.stack

    def forward(self, waveforms: Sequence[Tensor]) -> Packed:
        """Frames of clips.

        Args:
            waveforms: clips (T_b,), each at least `min_length` samples.

        Returns:
            Packed (N, num_mel_bins * stack), frames of each clip exactly as `output_lengths` says.
        """
        return Packed.of([self._frames(waveform) for waveform in waveforms])

    def _frames(self, waveform: Tensor) -> Tensor:
        frames = (self.log_mel(waveform[None])[0] - _CENTRE) / _SPREAD
        count = len(frames) // self.stack
        return frames[: count * self.stack].reshape(count, self.output_size).to(waveform.dtype)
