"""MAE: a vision transformer on pictures.

Source: He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmssl.errors import ConfigError
from mmssl.nn.patch import PatchEmbedding, Positions, standardize_pictures
from mmssl.nn.vit import PatchEncoder
from mmssl.types import Inputs, Layers, Representation, StreamSpec, UpstreamSpec
from mmssl.upstreams.base import Upstream
from mmssl.upstreams.mae_weights import load_encoder, read_mae, square_side, take_positions, vit_sizes
from mmssl.upstreams.renaming import settled

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TOKENS = ("all", "patches", "class")
ENCODER_RULES = ((r"((?:cls_token|patch_embed|blocks|norm).*)", r"encoder.\1"),)


class MAE(Upstream):
    """MAE's encoder on whole pictures; layers: the input of the first block, then the output of each.

    A layer is a sequence of tokens with no time axis: the class token, then the patches row by row. The norm after the
    last block is not in the list; `encoder.finish` applies it.

    Args:
        preset: "base", "large", "huge", "small" or "tiny"; a checkpoint overrides its sizes.
        checkpoint: a file of the authors, pretrained (with or without decoder) or fine-tuned, or a state dict of this
            class; None draws weights. Its licence is logged.
        hidden_size, num_layers, num_heads, feed_forward_size, patch_size: instead of the preset's. A checkpoint does
            not state `num_heads`: heads of 64 features are assumed.
        image_size: height and width of the pictures; None for 224, or what the checkpoint's positions are for.
        tokens: "all", "patches" without the class token, or "class" for that token alone: a sequence of one.
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
        image_size: int | None = None,
        tokens: str = "all",
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        state = {} if checkpoint is None else read_mae(checkpoint, "MAE")
        sizes = vit_sizes(
            preset,
            state,
            checkpoint,
            hidden_size=hidden_size,
            num_layers=num_layers,
            num_heads=num_heads,
            feed_forward_size=feed_forward_size,
            patch_size=patch_size,
        )
        stated = square_side(state, "pos_embed", sizes.patch_size)
        side = settled("image_size", image_size, stated, 14 * sizes.patch_size, checkpoint)
        columns = sizes.columns(side)
        if tokens not in TOKENS:
            raise ConfigError(f"tokens must be one of {', '.join(TOKENS)}, got {tokens!r}.")
        self.tokens, self.image_mean, self.image_std = tokens, tuple(image_mean), tuple(image_std)
        self.encoder = PatchEncoder(
            PatchEmbedding(len(self.image_mean), sizes.hidden_size, sizes.patch_size),
            Positions(sizes.hidden_size, columns),
            *sizes.of_blocks,
            class_token=True,
        )
        self.num_tokens = {"all": 1 + columns**2, "patches": columns**2, "class": 1}[tokens]
        layers = sizes.num_layers + 1
        self.spec = UpstreamSpec(
            inputs=("images",),
            streams={"image": StreamSpec((sizes.hidden_size,) * layers, (0,) * layers)},
            image_size=(side, side),
        )
        if checkpoint is not None:
            load_with_class_token(self, state, checkpoint)

    def output_lengths(self, lengths: Tensor, stream: str = "image", layer: int = -1) -> Tensor:
        """Tokens (B,) of a picture, whatever `lengths` (B,) says."""
        return torch.full_like(lengths, self.num_tokens)

    def extract(self, inputs: Inputs) -> Representation:
        """All layers of the pictures."""
        assert inputs.images is not None  # `forward` has checked it
        pictures = standardize_pictures(inputs.images, self.image_mean, self.image_std, self.dtype)
        states = self.encoder.encode_tokens(self.encoder.embed(pictures))
        kept = {"all": slice(None), "patches": slice(1, None), "class": slice(1)}[self.tokens]
        lengths = torch.full((len(pictures),), self.num_tokens, device=pictures.device)
        return {"image": Layers(tuple(state[:, kept] for state in states), (lengths,) * len(states))}


def load_with_class_token(module: MAE | Upstream, state: dict[str, Tensor], source: str) -> None:
    """Load an encoder with a class token, whose stored position is added to the token itself.

    Args:
        module: has the attribute `encoder`, a `PatchEncoder`.
        state: weights by the authors' names, or by those of the module.
        source: where they come from, for messages.
    """
    encoder = module.get_submodule("encoder")
    assert isinstance(encoder, PatchEncoder)
    take_positions(state, "encoder.positions.table", encoder.positions, source)
    first = take_positions(state, "pos_embed", encoder.positions, source, class_token=True)
    if first is not None and "cls_token" in state:
        state["cls_token"] = state["cls_token"] + first
    tables = {} if encoder.positions.table is None else {"encoder.positions.table": encoder.positions.table}
    load_encoder(module, state | tables, ENCODER_RULES, source)
