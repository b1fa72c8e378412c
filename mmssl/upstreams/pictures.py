"""Base of picture encoders that are tapped: maps and tokens of any network as layers without a time axis."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmssl.nn.patch import standardize_pictures
from mmssl.types import Inputs, Layers, Representation, StreamSpec, UpstreamSpec
from mmssl.upstreams.base import Upstream
from mmssl.upstreams.checkpoints import read_checkpoint
from mmssl.upstreams.renaming import load_renamed, weights


class TappedPictures(Upstream):
    """Pictures of one size through a network, of which several places are layers.

    A map (B, C, H, W) becomes H * W tokens of C values, row by row. A subclass sets up its network, calls `declare`
    and implements `taps`.
    """

    image_mean: Sequence[float]
    image_std: Sequence[float]

    @abstractmethod
    def taps(self, pictures: Tensor) -> Sequence[Tensor]:
        """Scaled pictures (B, C, H, W) -> a map (B, C_k, H_k, W_k) or tokens (B, N_k, D_k) per layer."""

    def declare(self, image_size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the spec from what the network gives for an empty picture.

        Args:
            image_size: height and width.
            mean, std: of the channels of pictures in [0, 1].
        """
        self.image_mean, self.image_std = tuple(mean), tuple(std)
        self.eval()
        with torch.no_grad():
            shapes = [h.shape for h in self._tokens(torch.zeros(1, len(self.image_mean), image_size, image_size))]
        self.counts = [shape[1] for shape in shapes]
        stream = StreamSpec(tuple(shape[2] for shape in shapes), (0,) * len(shapes))
        self.spec = UpstreamSpec(("images",), {"image": stream}, image_size=(image_size, image_size))

    def output_lengths(self, lengths: Tensor, stream: str = "image", layer: int = -1) -> Tensor:
        """Tokens (B,) of a layer, whatever `lengths` (B,) says."""
        return torch.full_like(lengths, self.counts[layer])

    def extract(self, inputs: Inputs) -> Representation:
        """All layers of the pictures."""
        assert inputs.images is not None  # `forward` has checked it
        pictures = standardize_pictures(inputs.images, self.image_mean, self.image_std, self.dtype)
        hidden = self._tokens(pictures)
        lengths = tuple(torch.full((len(pictures),), h.shape[1], device=pictures.device) for h in hidden)
        return {"image": Layers(hidden, lengths)}

    def _tokens(self, pictures: Tensor) -> tuple[Tensor, ...]:
        return tuple(h.flatten(2).transpose(1, 2) if h.dim() == 4 else h for h in self.taps(pictures))


def load_trunk(module: nn.Module, checkpoint: str, prefix: str, heads: str) -> None:
    """Load a network without its head from a local file, strictly.

    Args:
        module: takes the weights.
        checkpoint: a state dict, bare or below "state_dict", "model" or "teacher".
        prefix: what stands before the network's names ("module.encoder_q." in MoCo's files); weights whose names do not
            begin with it are left out.
        heads: regular expression of whole names, after the prefix, that may be left out where the module lacks them.

    Raises:
        CheckpointError: the file cannot be read or does not fit.
    """
    state = weights(read_checkpoint(checkpoint), checkpoint, "state_dict", "model", "teacher")
    named = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    own = module.state_dict()
    kept = {name: value for name, value in named.items() if name in own or not re.fullmatch(heads, name)}
    load_renamed(module, kept, source=checkpoint)
