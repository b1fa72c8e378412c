"""HiCMAE: a transformer on log-mel patches, one on face video, and blocks in which each looks at the other.

Source: Sun et al. 2024, "HiCMAE: Hierarchical Contrastive Masked Autoencoder for Self-Supervised Audio-Visual Emotion
Recognition".
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from mmssl.errors import ConfigError, InputError, did_you_mean
from mmssl.lengths import patch_count
from mmssl.nn.patch import PatchEmbedding, Positions, TubeletEmbedding
from mmssl.nn.vit import CrossBlock, PatchEncoder, init_linears
from mmssl.types import Inputs, Layers, Padded, Representation, StreamSpec, UpstreamSpec
from mmssl.upstreams.av_tokens import check_pair, fusion_lengths, joined_layers
from mmssl.upstreams.base import Upstream
from mmssl.upstreams.mae_weights import VitSizes, load_encoder, read_mae, vit_sizes
from mmssl.upstreams.mel_patches import AUDIOSET_MEAN, AUDIOSET_STD, SAMPLE_RATE, MelRows, token_mask
from mmssl.upstreams.renaming import count, settled
from mmssl.upstreams.video_mae import TUBELET, embed_video
from mmssl.upstreams.vit_mae import IMAGENET_MEAN, IMAGENET_STD

PRESETS = {
    "tiny": VitSizes(256, 10, 4, 1024, 16),
    "small": VitSizes(384, 10, 6, 1536, 16),
    "base": VitSizes(512, 10, 8, 2048, 16),
}
_RULES = (
    (r"encoder_fusion\.(.*)", r"fusion.\1"),
    (r"encoder_audio\.(.*)", r"audio.\1"),
    (r"encoder\.(.*)", r"video.\1"),
)


class CrossModalFusion(nn.Module):
    """Two stacks of blocks, one per stream; each looks at the other's state before the block.

    Args:
        hidden_size, num_layers, num_heads, feed_forward_size: of either stack.
        eps: of the layer norms.
    """

    def __init__(
        self, hidden_size: int, num_layers: int, num_heads: int, feed_forward_size: int, eps: float = 1e-6
    ) -> None:
        super().__init__()
        sizes = (hidden_size, hidden_size, num_heads, feed_forward_size, eps)
        self.blocks = nn.ModuleList(CrossBlock(*sizes) for _ in range(num_layers))
        self.blocks_audio = nn.ModuleList(CrossBlock(*sizes) for _ in range(num_layers))
        self.norm, self.norm_audio = nn.LayerNorm(hidden_size, eps=eps), nn.LayerNorm(hidden_size, eps=eps)
        init_linears(self)

    def forward(self, audio: Padded, video: Padded) -> tuple[list[Padded], list[Padded]]:
        """Tokens (B, N, D) and (B, M, D) -> the audio states and the video states, inputs first, one more per block.

        `norm_audio` and `norm` after the last blocks are not applied.
        """
        masks = [token_mask(tokens.lengths, tokens.data.shape[1]) for tokens in (audio, video)]
        of_audio, of_video = [audio], [video]
        for block, block_audio in zip(self.blocks, self.blocks_audio, strict=True):
            a, v = of_audio[-1].data, of_video[-1].data
            of_audio.append(Padded(block_audio(a, v, masks[0], masks[1]), audio.lengths))
            of_video.append(Padded(block(v, a, masks[1], masks[0]), video.lengths))
        return of_audio, of_video


class HiCMAE(Upstream):
    """HiCMAE's encoders on sound, on video of a face, or on both.

    Streams; each layer list begins with the input of the first block:
        "audio": 10 blocks. Tokens are time-major: the patches of 160 ms, from low to high frequency, then the next.
        "video": 10 blocks. Tokens lie slice by slice, the patches of two video frames row by row; an odd last frame is
            dropped.
        "fusion", if both are given: the normed outputs of both encoders, then the output of each fusion block; a clip's
            audio tokens, then its video tokens. It has no time axis.

    Norms after the last blocks are not in the lists: `audio.finish`, `video.finish`, `fusion.norm` and
    `fusion.norm_audio` apply them (pretraining also applies the encoders' norms to the blocks in between). The model
    was trained on 2.56 s, 256 mel frames and 16 pictures; here a clip has its own length, and the fixed positions go
    on. A waveform of 2.56 s has 254 mel frames: with `pad_last` two zero frames fill it up to 16 rows as theirs,
    without it 15 rows are whole.

    Args:
        preset: "base", "small" or "tiny"; a checkpoint overrides its sizes.
        checkpoint: a file of the authors, pretrained, or a state dict of this class; None draws weights.
        hidden_size, num_layers, num_fusion_layers, num_heads, feed_forward_size: instead of the preset's. A checkpoint
            does not state `num_heads`: heads of 64 features are assumed.
        image_size: height and width of the pictures.
        video_fps: of the video, in Hz; the authors take every fourth frame of 25 a second.
        pad_last: fill up the last audio patches with zero frames instead of dropping frames that fill no patch.

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
        num_fusion_layers: int | None = None,
        num_heads: int | None = None,
        feed_forward_size: int | None = None,
        image_size: int = 160,
        video_fps: float = 6.25,
        pad_last: bool = False,
    ) -> None:
        super().__init__()
        if preset not in PRESETS:
            raise ConfigError(
                f"There is no HiCMAE preset {preset!r}.{did_you_mean(preset, PRESETS)} Presets: {', '.join(PRESETS)}."
            )
        state = {} if checkpoint is None else read_mae(checkpoint, "HiCMAE")
        sizes = vit_sizes(
            PRESETS[preset],
            state,
            checkpoint,
            prefix="video." if "video.patch_embed.proj.weight" in state else "encoder.",
            hidden_size=hidden_size,
            num_layers=num_layers,
            num_heads=num_heads,
            feed_forward_size=feed_forward_size,
        )
        stated = count(state, r"(?:encoder_)?fusion\.blocks\.(\d+)\..*") or None
        fusion_layers = settled("num_fusion_layers", num_fusion_layers, stated, 2, checkpoint)
        if fusion_layers < 1:
            raise ConfigError(f"num_fusion_layers must be at least 1, got {fusion_layers}.")
        patch, width, blocks = sizes.patch_size, sizes.hidden_size, sizes.of_blocks
        self.frames = MelRows(AUDIOSET_MEAN, 2 * AUDIOSET_STD, patch_size=patch, pad_last=pad_last)
        audio_positions = Positions(width, self.frames.columns, "sequence")
        video_positions = Positions(width, sizes.columns(image_size) ** 2, "sequence")
        self.audio = PatchEncoder(PatchEmbedding(1, width, patch), audio_positions, *blocks)
        self.video = PatchEncoder(TubeletEmbedding(3, width, patch, TUBELET), video_positions, *blocks)
        self.fusion = CrossModalFusion(width, fusion_layers, *blocks[1:])
        if checkpoint is not None:
            load_encoder(self, state, _RULES, checkpoint)
        self._declare(sizes, fusion_layers, image_size, video_fps)

    def _declare(self, sizes: VitSizes, fusion_layers: int, image_size: int, video_fps: float) -> None:
        layers, width = sizes.num_layers + 1, (sizes.hidden_size,)
        hop, columns = self.frames.hop_length, self.video.positions.columns
        self.spec = UpstreamSpec(
            inputs=("waveforms", "video"),
            streams={
                "audio": StreamSpec(width * layers, (hop,) * layers, self.frames.columns),
                "video": StreamSpec(width * layers, (TUBELET,) * layers, columns),
                "fusion": StreamSpec(width * (fusion_layers + 1), (0,) * (fusion_layers + 1)),
            },
            sample_rate=SAMPLE_RATE,
            video_fps=video_fps,
            # long enough for a slice of video, too
            min_length=max(self.frames.min_length, math.ceil(TUBELET * SAMPLE_RATE / video_fps)),
            image_size=(image_size, image_size),
        )

    def output_lengths(self, lengths: Tensor, stream: str = "audio", layer: int = -1) -> Tensor:
        """Tokens (B,) for `lengths` (B,) samples (audio) or video frames (video).

        Raises:
            InputError: for the fusion, whose length follows from both inputs.
        """
        if stream == "fusion":
            return fusion_lengths("HiCMAE")
        if stream == "video":
            return patch_count(lengths, TUBELET) * self.video.positions.columns
        return self.frames.output_lengths(lengths) * self.frames.columns

    def extract(self, inputs: Inputs) -> Representation:
        """All layers of the streams whose inputs are there, and of the fusion where both are."""
        check_pair(inputs)
        found: dict[str, Layers] = {}
        ends: list[Padded] = []
        if inputs.waveforms is not None:
            frames = self.frames(inputs.waveforms, self.dtype)
            tokens = Padded(self.audio.embed(frames.data[:, None]), frames.lengths * self.frames.columns)
            found["audio"] = _encode(self.audio, tokens)
            ends.append(Padded(self.audio.finish(found["audio"].hidden_states[-1]), tokens.lengths))
        if inputs.video is not None:
            shortest = int(inputs.video.lengths.min())
            if shortest < TUBELET:
                raise InputError(f"HiCMAE takes videos of at least {TUBELET} frames, got one of {shortest}.")
            tokens = embed_video(self.video, inputs.video, IMAGENET_MEAN, IMAGENET_STD)
            found["video"] = _encode(self.video, tokens)
            ends.append(Padded(self.video.finish(found["video"].hidden_states[-1]), tokens.lengths))
        if len(ends) == 2:
            found["fusion"] = joined_layers(*self.fusion(*ends))
        return found


def _encode(encoder: PatchEncoder, tokens: Padded) -> Layers:
    states = encoder.encode_tokens(tokens.data, token_mask(tokens.lengths, tokens.data.shape[1]))
    return Layers(tuple(states), (tokens.lengths,) * len(states))
