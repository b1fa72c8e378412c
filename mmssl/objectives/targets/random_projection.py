"""Codes of the input by a frozen random projection: the target of BEST-RQ."""

from __future__ import annotations

import torch
from torch import Tensor

from mmssl.errors import ConfigError, InputError
from mmssl.nn.log_mel import LogMel, standardize_frames
from mmssl.nn.quantizers import RandomProjectionQuantizer
from mmssl.objectives.targets.base import Target
from mmssl.objectives.types import Encoder, Step


class RandomProjectionCodes(Target):
    """Log-mel frames of the clip, standardised over the clip and stacked to the encoder's rate, quantized at random.

    Source: Chiu et al. 2022, "Self-Supervised Learning with Random-Projection Quantizer for Speech Recognition".

    Args:
        num_entries, code_size, num_codebooks, seed: see `RandomProjectionQuantizer`.
        num_mel_bins: of the log-mel frames of 10 ms.
        mel_hop: samples between two of them; the encoder's hop must be a multiple.
        hop_length: samples between two frames of the encoder.

    Raises:
        ConfigError: a hop that is no multiple.
    """

    reads_student = True

    def __init__(
        self,
        num_entries: int = 8192,
        code_size: int = 16,
        num_codebooks: int = 1,
        seed: int = 0,
        num_mel_bins: int = 80,
        mel_hop: int = 160,
        hop_length: int = 320,
    ) -> None:
        super().__init__()
        if mel_hop < 1 or hop_length < mel_hop or hop_length % mel_hop:
            raise ConfigError(
                f"The encoder's hop, {hop_length} samples, must be a multiple of that of the log-mel frames, {mel_hop}."
            )
        self.stack = hop_length // mel_hop
        self.hop_length = hop_length
        self.log_mel = LogMel(num_mel_bins, hop_length=mel_hop)
        self.quantizer = RandomProjectionQuantizer(
            num_mel_bins * self.stack, num_entries, code_size, num_codebooks, seed
        )

    def attach(self, encoder: Encoder) -> None:
        """Check that the rates fit; see `Target.attach`."""
        hop = encoder.upstream.spec.streams["audio"].hop_lengths[-1]
        if hop != self.hop_length:
            raise ConfigError(f"The encoder's hop is {hop} samples, the target was made for {self.hop_length}.")

    @torch.no_grad()
    def forward(self, step: Step, view: int) -> Tensor:
        """(B, T, G) int64, zero past each clip's end; see `Target.forward`."""
        encoded = step.stream(view, "audio").output
        waveforms = step.views[view].inputs.waveforms
        if waveforms is None:
            raise InputError("The target takes waveforms, the batch has none.")
        batch, longest = encoded.data.shape[:2]
        codes = torch.zeros(batch, longest, len(self.quantizer.codebook), dtype=torch.int64)
        codes = codes.to(encoded.data.device)
        for row, clip, frames in zip(codes, waveforms.unpad(), encoded.lengths.tolist(), strict=True):
            mel = standardize_frames(self.log_mel(clip[None]))[0]
            # a front end of short windows gives frames for which a last log-mel frame is lacking: repeat it
            index = torch.arange(frames * self.stack, device=mel.device).clamp(max=len(mel) - 1)
            row[:frames] = self.quantizer(mel[index].reshape(frames, -1))
        return codes
