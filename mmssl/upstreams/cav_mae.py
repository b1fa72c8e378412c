"""CAV-MAE: a transformer on log-mel patches, one on the patches of single pictures, and a block that both share.

Source: Gong et al. 2023, "Contrastive Audio-Visual Masked Autoencoder".
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.errors import ConfigError
from mmssl.lengths import valid_mask
from mmssl.nn.patch import PatchEmbedding, Positions, standardize_pictures
from mmssl.nn.vit import Block, PatchEncoder, init_linears
from mmssl.types import Inputs, Layers, Padded, Representation, StreamSpec, UpstreamSpec
from mmssl.upstreams.av_tokens import check_pair, fusion_lengths, joined_layers
from mmssl.upstreams.base import Upstream
from mmssl.upstreams.mae_weights import VitSizes, load_encoder, read_mae, square_side, take_positions, vit_sizes
from mmssl.upstreams.mel_patches import SAMPLE_RATE, MelRows, token_mask
from mmssl.upstreams.renaming import count, settled
from mmssl.upstreams.vit_mae import IMAGENET_MEAN, IMAGENET_STD

NUM_MEL_BINS = 128
MEL_MEAN, MEL_STD = -5.081, 4.4849
_BASE = VitSizes(768, 11, 12, 3072, 16)
_EPS = 1e-5
_RULES = (
    (r"(patch_embed|blocks|norm)_a\.(.*)", r"audio.\1.\2"),
    (r"(patch_embed|blocks|norm)_v\.(.*)", r"video.\1.\2"),
    (r"blocks_u\.(.*)", r"shared.\1"),
)
# blocks of one stream carry the norms of the shared block too, and never use them
_DEAD = r"blocks_[av]\.\d+\.norm[12]_[av]\..*"


class CAVMAE(Upstream):
    """CAV-MAE's encoder on sound, on video, or on both.

    Streams; each layer list begins with the input of the first block:
        "audio": 11 blocks of its own, then the shared one with its audio norms. Tokens are time-major: the patches of
            160 ms, from low to high frequency, then the next step. (The authors lay them frequency by frequency, which
            changes the order alone.)
        "video": the same for video frames, of which each is a picture of its own: they do not see each other.
        "fusion", if both are given: the shared block on the audio tokens together with one picture at a time, as the
            authors evaluate; audio tokens are averaged over the pictures and followed by the tokens of all pictures.
            It has no time axis.

    Norms after the last blocks are not in the lists: `audio.finish`, `video.finish` and `norm` (fusion) apply them.
    A clip has its own length; the model was trained on 1024 mel frames, shorter clips padded.

    Args:
        checkpoint: a file of the authors, pretrained or fine-tuned, or a state dict of this class; None draws weights.
        hidden_size, num_layers, num_shared_layers, num_heads, feed_forward_size: None for those of the paper: 768, 11
            per stream, 1, 12, 3072. A checkpoint does not state `num_heads`: heads of 64 features are assumed.
        image_size: height and width of the pictures; None for 224, or what the checkpoint's positions are for.
        video_fps: of the video, in Hz; the authors keep 10 pictures of 10 s.
        pad_last: fill up the last audio patches with zero frames instead of dropping frames that fill no patch.

    Raises:
        ConfigError: sizes that do not go together.
        CheckpointError: the checkpoint cannot be read or does not fit.
    """

    def __init__(
        self,
        checkpoint: str | None = None,
        *,
        hidden_size: int | None = None,
        num_layers: int | None = None,
        num_shared_layers: int | None = None,
        num_heads: int | None = None,
        feed_forward_size: int | None = None,
        image_size: int | None = None,
        video_fps: float = 1.0,
        pad_last: bool = False,
    ) -> None:
        super().__init__()
        state = {} if checkpoint is None else read_mae(checkpoint, "CAV-MAE")
        theirs = "patch_embed_a.proj.weight" in state
        sizes = vit_sizes(
            _BASE,
            state,
            checkpoint,
            prefix="" if theirs else "audio.",
            blocks="blocks_a" if theirs else "blocks",
            patch_embed="patch_embed_a" if theirs else "patch_embed",
            hidden_size=hidden_size,
            num_layers=num_layers,
            num_heads=num_heads,
            feed_forward_size=feed_forward_size,
        )
        stated = count(state, r"(?:blocks_u|shared)\.(\d+)\..*") or None
        num_shared = settled("num_shared_layers", num_shared_layers, stated, 1, checkpoint)
        side = settled("image_size", image_size, square_side(state, "pos_embed_v", sizes.patch_size), 224, checkpoint)
        if num_shared < 1:
            raise ConfigError(f"num_shared_layers must be at least 1, got {num_shared}.")
        self.frames = MelRows(
            MEL_MEAN, MEL_STD, num_mel_bins=NUM_MEL_BINS, patch_size=sizes.patch_size, pad_last=pad_last
        )
        self._build(sizes, num_shared, sizes.columns(side))
        if checkpoint is not None:
            self._load(state, checkpoint)
        self._declare(sizes, num_shared, side, video_fps)

    def _build(self, sizes: VitSizes, num_shared: int, columns: int) -> None:
        width, blocks = sizes.hidden_size, sizes.of_blocks
        audio_positions = Positions(width, self.frames.columns, rows_first=True)
        self.audio = PatchEncoder(PatchEmbedding(1, width, sizes.patch_size), audio_positions, *blocks, eps=_EPS)
        video_positions = Positions(width, columns)
        self.video = PatchEncoder(PatchEmbedding(3, width, sizes.patch_size), video_positions, *blocks, eps=_EPS)
        self.modality_a, self.modality_v = (nn.Parameter(torch.empty(1, 1, width).normal_(std=0.02)) for _ in "av")
        self.shared = nn.ModuleList(Block(width, *blocks[1:], _EPS, ("a", "v")) for _ in range(num_shared))
        self.norm = nn.LayerNorm(width, eps=_EPS)
        init_linears(self.shared)

    def _load(self, state: dict[str, Tensor], source: str) -> None:
        """Take over weights; the authors' audio patches and positions lie (frequency, time)."""
        if "patch_embed_a.proj.weight" in state:
            state["patch_embed_a.proj.weight"] = state["patch_embed_a.proj.weight"].transpose(-1, -2).contiguous()
        if "pos_embed_a" in state:
            table = state["pos_embed_a"].unflatten(-2, (self.frames.columns, -1))
            state["pos_embed_a"] = table.transpose(-2, -3).flatten(-3, -2)
        tables = {}
        for name, encoder in (("audio", self.audio), ("video", self.video)):
            take_positions(state, f"pos_embed_{name[0]}", encoder.positions, source)
            take_positions(state, f"{name}.positions.table", encoder.positions, source)
            if encoder.positions.table is not None:
                tables[f"{name}.positions.table"] = encoder.positions.table
        load_encoder(self, state | tables, _RULES, source, ignore=_DEAD)

    def _declare(self, sizes: VitSizes, num_shared: int, side: int, video_fps: float) -> None:
        layers, width = sizes.num_layers + num_shared + 1, (sizes.hidden_size,)
        hop, tokens = self.frames.hop_length, (side // sizes.patch_size) ** 2
        self.spec = UpstreamSpec(
            inputs=("waveforms", "video"),
            streams={
                "audio": StreamSpec(width * layers, (hop,) * layers, self.frames.columns),
                "video": StreamSpec(width * layers, (1,) * layers, tokens),
                "fusion": StreamSpec(width * (num_shared + 1), (0,) * (num_shared + 1)),
            },
            sample_rate=SAMPLE_RATE,
            video_fps=video_fps,
            min_length=self.frames.min_length,
            max_length=self.frames.max_length(self.audio.positions.max_rows),
            image_size=(side, side),
        )

    def output_lengths(self, lengths: Tensor, stream: str = "audio", layer: int = -1) -> Tensor:
        """Tokens (B,) for `lengths` (B,) samples (audio) or video frames (video).

        Raises:
            InputError: for the fusion, whose length follows from both inputs.
        """
        if stream == "fusion":
            return fusion_lengths("CAV-MAE")
        if stream == "video":
            return lengths * self.spec.streams["video"].tokens_per_frame
        return self.frames.output_lengths(lengths) * self.frames.columns

    def extract(self, inputs: Inputs) -> Representation:
        """All layers of the streams whose inputs are there, and of the fusion where both are."""
        check_pair(inputs)
        found: dict[str, Layers] = {}
        audio = pictures = None
        if inputs.waveforms is not None:
            frames = self.frames(inputs.waveforms, self.dtype)
            tokens = self.audio.embed(frames.data[:, None]) + self.modality_a
            lengths = frames.lengths * self.frames.columns
            mask = token_mask(lengths, tokens.shape[1])
            states = self.audio.encode_tokens(tokens, mask)
            audio = Padded(states[-1], lengths)
            for block in self.shared:
                states.append(block(states[-1], mask, "a"))
            found["audio"] = Layers(tuple(states), (lengths,) * len(states))
        if inputs.video is not None:
            clips = inputs.video.unpad()
            scaled = standardize_pictures(torch.cat(clips), IMAGENET_MEAN, IMAGENET_STD, self.dtype)
            states = self.video.encode_tokens(self.video.embed(scaled) + self.modality_v)
            pictures = states[-1]
            for block in self.shared:
                states.append(block(states[-1], None, "v"))
            per_clip = [_by_clip(state, inputs.video.lengths) for state in states]
            found["video"] = Layers(tuple(p.data for p in per_clip), tuple(p.lengths for p in per_clip))
        if audio is not None and pictures is not None and inputs.video is not None:
            found["fusion"] = self._fuse(audio, pictures, inputs.video.lengths)
        return found

    def _fuse(self, audio: Padded, pictures: Tensor, frames: Tensor) -> Layers:
        """Shared blocks on each picture (N, P, D) of the clips, N the sum of `frames` (B,), with its clip's audio."""
        clip = torch.arange(len(frames), device=frames.device).repeat_interleave(frames)
        size = audio.data.shape[1]
        x = torch.cat([audio.data[clip], pictures], dim=1)
        mask = token_mask(audio.lengths, size)
        if mask is not None:
            mask = F.pad(mask[clip], (0, pictures.shape[1]), value=True)
        of_audio, of_video = [audio], [_by_clip(pictures, frames)]
        for block in self.shared:
            x = block(x, mask)
            means = torch.stack([rows[:, :size].mean(dim=0) for rows in x.split(frames.tolist())])
            of_audio.append(Padded(means, audio.lengths))
            of_video.append(_by_clip(x[:, size:], frames))
        return joined_layers(of_audio, of_video)


def _by_clip(pictures: Tensor, frames: Tensor) -> Padded:
    """Tokens (N, P, D) of all pictures -> the tokens (B, max frames * P, D) of each clip, picture after picture."""
    valid = valid_mask(frames)
    data = pictures.new_zeros(*valid.shape, *pictures.shape[1:])
    data[valid] = pictures
    return Padded(data.flatten(1, 2), frames * pictures.shape[1])
