"""AudioMAE: a vision transformer on log-mel patches.

Source: Huang et al. 2022, "Masked Autoencoders that Listen".
"""

from __future__ import annotations

from torch import Tensor

from mmssl.nn.patch import PatchEmbedding, Positions
from mmssl.nn.vit import PatchEncoder
from mmssl.types import Inputs, Layers, Representation, StreamSpec, UpstreamSpec
from mmssl.upstreams.base import Upstream
from mmssl.upstreams.mae_weights import read_mae, vit_sizes
from mmssl.upstreams.mel_patches import AUDIOSET_MEAN, AUDIOSET_STD, SAMPLE_RATE, MelRows, token_mask
from mmssl.upstreams.vit_mae import load_with_class_token


class AudioMAE(Upstream):
    """AudioMAE's encoder on clips of any length; layers: the input of the first block, then the output of each.

    The tokens lie time-major: the patches of 160 ms that share a time step, from low to high frequency, then the next
    step. The class token takes part in the attention and is not in the layers, since it has no time; nor is the norm
    after the last block, which `encoder.finish` applies. The model was trained on 1024 frames, shorter clips padded;
    here a clip has its own length, and the fixed positions go on beyond 1024 frames.

    Args:
        preset: "base", "large", "small" or "tiny"; a checkpoint overrides its sizes.
        checkpoint: a file of the authors, pretrained or fine-tuned, or a state dict of this class; None draws weights.
            Its licence is logged.
        hidden_size, num_layers, num_heads, feed_forward_size: instead of the preset's. A checkpoint does not state
            `num_heads`: heads of 64 features are assumed.
        num_mel_bins: filters, a multiple of 16; 128 in the paper.
        pad_last: fill up the last patches with zero frames instead of dropping frames that fill no patch.

    Raises:
        ConfigError: sizes that do not go together.
        CheckpointError: the checkpoint cannot be read or does not fit.
    """

    def __init__(
        self,
        preset: str = "base",
        checkpoint: str | None = None,
        *,
        hidden_size: int | None = None,
        num_layers: int | None = None,
        num_heads: int | None = None,
        feed_forward_size: int | None = None,
        num_mel_bins: int = 128,
        pad_last: bool = False,
    ) -> None:
        super().__init__()
        state = {} if checkpoint is None else read_mae(checkpoint, "AudioMAE")
        sizes = vit_sizes(
            preset,
            state,
            checkpoint,
            hidden_size=hidden_size,
            num_layers=num_layers,
            num_heads=num_heads,
            feed_forward_size=feed_forward_size,
        )
        self.frames = MelRows(
            AUDIOSET_MEAN,
            2 * AUDIOSET_STD,
            num_mel_bins=num_mel_bins,
            patch_size=sizes.patch_size,
            pad_last=pad_last,
        )
        self.encoder = PatchEncoder(
            PatchEmbedding(1, sizes.hidden_size, sizes.patch_size),
            Positions(sizes.hidden_size, self.frames.columns),
            *sizes.of_blocks,
            class_token=True,
        )
        if checkpoint is not None:
            load_with_class_token(self, state, checkpoint)
        layers = sizes.num_layers + 1
        self.spec = UpstreamSpec(
            inputs=("waveforms",),
            streams={
                "audio": StreamSpec(
                    (sizes.hidden_size,) * layers, (self.frames.hop_length,) * layers, self.frames.columns
                )
            },
            sample_rate=SAMPLE_RATE,
            min_length=self.frames.min_length,
            max_length=self.frames.max_length(self.encoder.positions.max_rows),
        )

    def output_lengths(self, lengths: Tensor, stream: str = "audio", layer: int = -1) -> Tensor:
        """Tokens (B,) of clips of `lengths` (B,) samples: all patches of every time step."""
        return self.frames.output_lengths(lengths) * self.frames.columns

    def extract(self, inputs: Inputs) -> Representation:
        """All layers of the clips, without the class token."""
        assert inputs.waveforms is not None  # `forward` has checked it
        frames = self.frames(inputs.waveforms, self.dtype)
        tokens = self.encoder.embed(frames.data[:, None])
        lengths = frames.lengths * self.frames.columns
        states = self.encoder.encode_tokens(tokens, token_mask(lengths, tokens.shape[1]))
        return {"audio": Layers(tuple(state[:, 1:] for state in states), (lengths,) * len(states))}
