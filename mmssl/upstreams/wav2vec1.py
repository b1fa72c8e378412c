"""wav2vec (the first): strided convolutions, then convolutions over the past.

Source: Schneider et al. 2019, "wav2vec: Unsupervised Pre-training for Speech Recognition", section 2; fairseq's code.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mmssl.errors import ConfigError
from mmssl.lengths import conv_stack_length, hop_length, receptive_field
from mmssl.upstreams.checkpoints import read_checkpoint
from mmssl.upstreams.clipwise import ClipwiseUpstream
from mmssl.upstreams.renaming import load_renamed, options, weights
from mmssl.upstreams.wav2vec1_layers import CONTEXT_RULES, ENCODER_RULES, HEADS, ContextNetwork, Encoder
from mmssl.upstreams.wav2vec1_sizes import preset_sizes, stated_sizes


class Wav2Vec1(ClipwiseUpstream):
    """wav2vec's encoder and context network; layers: the latents z, then each context convolution's output.

    The convolutions over frames look at the past only, but each has a norm over all channels and frames of the clip, so
    that the features are not causal. The norm covers the clip alone, never padding.

    Args:
        preset: "wav2vec_large" or "wav2vec_base".
        checkpoint: a file of fairseq (`wav2vec_large.pt`) or S3PRL's conversion of one; its sizes then hold where it
            states them, the preset's elsewhere. None draws weights.
        channels: of every convolution, instead of the preset's 512; not with a checkpoint.
        aggregator_kernels: frames that each context convolution sees, instead of the preset's; not with a checkpoint.

    Raises:
        ConfigError: an unknown preset, or sizes given beside a checkpoint.
        CheckpointError: the checkpoint cannot be read, does not fit, or is of a variant (vq-wav2vec, recurrent
            context).
    """

    def __init__(
        self,
        preset: str = "wav2vec_large",
        checkpoint: str | None = None,
        *,
        channels: int | None = None,
        aggregator_kernels: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        sizes, state = preset_sizes(preset, quantized=False), {}
        if checkpoint is None:
            sizes = sizes.resized(channels, aggregator_kernels)
        elif channels is not None or aggregator_kernels is not None:
            raise ConfigError("Leave out channels and aggregator_kernels: sizes come from the checkpoint.")
        else:
            content = read_checkpoint(checkpoint)
            sizes = stated_sizes(options(content), sizes)
            state = weights(content, checkpoint, "model_weight", "model")
        width = sizes.convs[-1][0]
        self.front = Encoder(sizes)
        self.aggregator = ContextNetwork(sizes, width)
        self._windows = [(kernel, stride) for _, kernel, stride in sizes.convs]
        self.declare(
            (width, *(c for c, _, _ in sizes.aggregator)), hop_length(self._windows), receptive_field(self._windows)
        )
        if checkpoint is not None:
            ignore = rf"(feature_aggregator|{HEADS})\..*"
            load_renamed(self.front, state, ENCODER_RULES, source=checkpoint, ignore=ignore)
            ignore = rf"(feature_extractor|{HEADS})\..*"
            load_renamed(self.aggregator, state, CONTEXT_RULES, source=checkpoint, ignore=ignore)

    def output_lengths(self, lengths: Tensor, stream: str = "audio", layer: int = -1) -> Tensor:
        """Frames (B,) of clips of `lengths` (B,) samples; all layers have the same."""
        return conv_stack_length(lengths, self._windows)

    def encode(self, waveforms: Tensor) -> list[Tensor]:
        """(B, T) without padding -> latents, then contexts, (B, T', C)."""
        latents = self.front(waveforms.to(self.dtype))
        return [layer.transpose(1, 2) for layer in (latents, *self.aggregator(latents))]
