"""VideoMAE: a vision transformer on tubelets, patches over two video frames.

Source: Tong et al. 2022, "VideoMAE: Masked Autoencoders are Data-Efficient Learners for Self-Supervised Video
Pre-Training".
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mmssl.lengths import patch_count
from mmssl.nn.patch import Positions, TubeletEmbedding, standardize_pictures
from mmssl.nn.vit import PatchEncoder
from mmssl.types import Inputs, Layers, Padded, Representation, StreamSpec, UpstreamSpec
from mmssl.upstreams.base import Upstream
from mmssl.upstreams.mae_weights import load_encoder, read_mae, take_positions, vit_sizes
from mmssl.upstreams.mel_patches import token_mask
from mmssl.upstreams.vit_mae import ENCODER_RULES, IMAGENET_MEAN, IMAGENET_STD

TUBELET = 2


class VideoMAE(Upstream):
    """VideoMAE's encoder on videos of any length; layers: the input of the first block, then the output of each.

    The tokens lie slice by slice: the patches of two video frames row by row, then those of the next two; an odd last
    frame is dropped. There is no class token. The norm after the last block is not in the list; `encoder.finish`
    applies it. The model was trained on 16 frames; its fixed positions, which count all tokens in one row, go on
    beyond. All tokens of a video attend to each other, so that time grows with the square of its length.

    Args:
        preset: "base", "large", "huge", "small" or "tiny"; a checkpoint overrides its sizes. The patch size is 16.
        checkpoint: a file of the authors, pretrained or fine-tuned, or a state dict of this class; None draws weights.
            Its licence is logged.
        hidden_size, num_layers, num_heads, feed_forward_size, patch_size: instead of the preset's. A checkpoint does
            not state `num_heads`: heads of 64 features are assumed, 16 heads for a width of 1280.
        image_size: height and width of the pictures.
        video_fps: of the video, in Hz; the authors took every fourth frame of 30 a second.
        image_mean, image_std: of the channels of pictures in [0, 1].

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
        patch_size: int | None = None,
        image_size: int = 224,
        video_fps: float = 7.5,
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        state = {} if checkpoint is None else read_mae(checkpoint, "VideoMAE")
        sizes = vit_sizes(
            preset,
            state,
            checkpoint,
            hidden_size=hidden_size,
            num_layers=num_layers,
            num_heads=num_heads,
            feed_forward_size=feed_forward_size,
            patch_size=16 if patch_size is None and not state else patch_size,
        )
        self.image_mean, self.image_std = tuple(image_mean), tuple(image_std)
        self.columns = sizes.columns(image_size) ** 2
        self.encoder = PatchEncoder(
            TubeletEmbedding(len(self.image_mean), sizes.hidden_size, sizes.patch_size, TUBELET),
            Positions(sizes.hidden_size, self.columns, "sequence"),
            *sizes.of_blocks,
        )
        if checkpoint is not None:
            for name in ("encoder.positions.table", "pos_embed", "encoder.pos_embed"):
                take_positions(state, name, self.encoder.positions, checkpoint)
            table = self.encoder.positions.table
            tables = {} if table is None else {"encoder.positions.table": table}
            load_encoder(self, state | tables, ENCODER_RULES, checkpoint)
        layers, rows = sizes.num_layers + 1, self.encoder.positions.max_rows
        self.spec = UpstreamSpec(
            inputs=("video",),
            streams={"video": StreamSpec((sizes.hidden_size,) * layers, (TUBELET,) * layers, self.columns)},
            video_fps=video_fps,
            min_length=TUBELET,
            max_length=None if rows is None else rows * TUBELET + TUBELET - 1,
            image_size=(image_size, image_size),
        )

    def output_lengths(self, lengths: Tensor, stream: str = "video", layer: int = -1) -> Tensor:
        """Tokens (B,) of videos of `lengths` (B,) frames: all patches of every slice."""
        return patch_count(lengths, TUBELET) * self.columns

    def extract(self, inputs: Inputs) -> Representation:
        """All layers of the videos."""
        assert inputs.video is not None  # `forward` has checked it
        tokens = embed_video(self.encoder, inputs.video, self.image_mean, self.image_std)
        states = self.encoder.encode_tokens(tokens.data, token_mask(tokens.lengths, tokens.data.shape[1]))
        return {"video": Layers(tuple(states), (tokens.lengths,) * len(states))}


def embed_video(encoder: PatchEncoder, video: Padded, mean: Sequence[float], std: Sequence[float]) -> Padded:
    """Tokens (B, slices * patches, D) of videos (B, T, C, H, W) in [0, 1], with positions; frames too many are cut."""
    slices = patch_count(video.lengths, TUBELET)
    frames = video.data[:, : int(slices.max()) * TUBELET]
    tokens = encoder.embed(standardize_pictures(frames, mean, std, encoder.norm.weight.dtype))
    return Padded(tokens, slices * encoder.positions.columns)
