"""A vision transformer in masked training: hidden patches are dropped, and a light decoder gives them back.

Source: He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners", section 3.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmssl.errors import ConfigError, InputError
from mmssl.nn.masking import hidden_count, random_token_mask
from mmssl.nn.patch import Positions, standardize_pictures
from mmssl.nn.vit import Block, init_linears
from mmssl.objectives.targets.base import Target
from mmssl.objectives.types import Decoder, Encoded, Encoder, Examples, Hidden, Step, View
from mmssl.objectives.views import Views
from mmssl.types import Inputs, Layers, Padded
from mmssl.upstreams.vit_mae import MAE

_EPS = 1e-6


class PictureEncoder(Encoder):
    """MAE's encoder in training: hidden patches never enter it.

    Taps: "patches" (B, N, patch * patch * C), the standardised pixels of every patch, rows of pixels first, channels
    last; "class" (B, 1, D), the output at the class token. `Encoded.output` is that of the visible patches, in order.

    Args:
        upstream: the model.

    Raises:
        ConfigError: another kind of upstream.
    """

    upstream: MAE

    def __init__(self, upstream: MAE) -> None:
        super().__init__()
        if not isinstance(upstream, MAE):
            raise ConfigError(f"This objective trains a masked autoencoder of pictures, got {type(upstream).__name__}.")
        self.upstream = upstream

    def frame_lengths(self, inputs: Inputs) -> Mapping[str, Tensor]:
        """Patches of each picture; see `Encoder.frame_lengths`."""
        pictures = _pictures(inputs)
        count = self.upstream.encoder.positions.columns**2
        return {"image": torch.full((len(pictures),), count, device=pictures.device)}

    def encode(self, view: View) -> Mapping[str, Encoded]:
        """Encode the pictures of a view; see `Encoder.encode`."""
        pictures = _pictures(view.inputs)
        upstream = self.upstream
        if tuple(pictures.shape[-2:]) != upstream.spec.image_size:
            raise InputError(
                f"The encoder takes pictures of {upstream.spec.image_size} pixels, got {tuple(pictures.shape[-2:])}."
            )
        pictures = standardize_pictures(pictures, upstream.image_mean, upstream.image_std, upstream.dtype)
        encoder = upstream.encoder
        tokens = encoder.embed(pictures)
        batch, count = tokens.shape[:2]
        hidden = view.hidden.get("image")
        mask = positions = None
        if hidden is not None:
            mask = hidden.mask
            positions = _visible(hidden, batch, count)
            tokens = tokens.gather(1, positions[..., None].expand(-1, -1, tokens.shape[-1]))
        states = encoder.encode_tokens(tokens)
        final = encoder.finish(states[-1])
        size = pictures.shape[-1] // encoder.positions.columns
        patches = pictures.unfold(2, size, size).unfold(3, size, size).permute(0, 2, 3, 4, 5, 1)
        taps = {"patches": _whole(patches.reshape(batch, count, -1)), "class": _whole(final[:, :1])}
        rest = [state[:, 1:] for state in states]
        output = _whole(final[:, 1:])
        layers = Layers(tuple(rest), (output.lengths,) * len(rest))
        return {"image": Encoded(output, layers, mask, positions, taps)}


class RandomPatches(Views):
    """One view, the picture itself, with a fixed number of its patches dropped at random.

    Args:
        ratio: share of the patches that are dropped.
        stream: of the encoder.

    Raises:
        ConfigError: a ratio that is not between 0 and 1.
    """

    def __init__(self, ratio: float = 0.75, stream: str = "image") -> None:
        super().__init__()
        if not 0 < ratio < 1:
            raise ConfigError(f"The mask ratio must be between 0 and 1, got {ratio}.")
        self.ratio, self.stream = ratio, stream

    def forward(self, examples: Examples, encoder: Encoder, generator: torch.Generator) -> list[View]:
        """The masked view; see `Views.forward`."""
        lengths = encoder.frame_lengths(examples.inputs)[self.stream]
        tokens = int(lengths[0])
        mask = random_token_mask(len(lengths), tokens, hidden_count(tokens, self.ratio), generator=generator)
        hidden = {self.stream: Hidden(mask.to(lengths.device))}
        return [View(examples.inputs, hidden, examples.ids, examples.labels, examples.starts)]


class NormalizedPatches(Target):
    """Pixels of each patch, brought to mean 0 and deviation 1 within the patch ("norm pix").

    Args:
        stream: of the encoder.
    """

    reads_student = True

    def __init__(self, stream: str = "image") -> None:
        super().__init__()
        self.stream = stream

    def forward(self, step: Step, view: int) -> Tensor:
        """(B, N, P); see `Target.forward`."""
        pixels = step.tap(view, self.stream, "patches").detach().float()
        variance, mean = torch.var_mean(pixels, dim=-1, keepdim=True)
        return (pixels - mean) / (variance + _EPS).sqrt()


class PatchDecoder(Decoder):
    """Mask tokens in the places of dropped patches, positions, a few blocks, and a linear layer to the pixels.

    Args:
        input_size: width of the encoder.
        columns: patches side by side, as many as below each other.
        patch_values: values of one patch.
        hidden_size, num_layers, num_heads: of the decoder.
    """

    def __init__(
        self,
        input_size: int,
        columns: int,
        patch_values: int,
        hidden_size: int = 512,
        num_layers: int = 8,
        num_heads: int = 16,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(input_size, hidden_size)
        self.mask_token = nn.Parameter(torch.empty(hidden_size).normal_(std=0.02))
        self.positions = Positions(hidden_size, columns)
        self.blocks = nn.ModuleList(Block(hidden_size, num_heads, 4 * hidden_size) for _ in range(num_layers))
        self.norm = nn.LayerNorm(hidden_size, eps=_EPS)
        self.output = nn.Linear(hidden_size, patch_values)
        init_linears(self)

    def forward(self, encoded: Encoded) -> Tensor:
        """Pixels (B, N, P) of every patch; the class token takes part and is left out at the end."""
        if encoded.positions is None or encoded.hidden is None:
            raise ConfigError("A decoder needs a view some of whose patches are dropped.")
        visible = self.embed(encoded.output.data)
        batch, count = encoded.hidden.shape
        size = visible.shape[-1]
        tokens = self.mask_token.to(visible.dtype).expand(batch, count, size)
        tokens = tokens.scatter(1, encoded.positions[..., None].expand(-1, -1, size), visible)
        tokens = tokens + self.positions(count // self.positions.columns, tokens)
        tokens = torch.cat([self.embed(encoded.taps["class"].data), tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.output(self.norm(tokens))[:, 1:]


def _visible(hidden: Hidden, batch: int, count: int) -> Tensor:
    """Places (B, V) of the patches that are left, in order."""
    if hidden.masker is not None:
        raise ConfigError("A masked autoencoder drops hidden patches; a masker that replaces them has no place here.")
    mask = hidden.mask
    if mask.dtype != torch.bool or mask.shape != (batch, count):
        raise InputError(f"The mask must be bool ({batch}, {count}), got {mask.dtype} {tuple(mask.shape)}.")
    left = (~mask).sum(1)
    if int(left.min()) != int(left.max()) or int(left.min()) == 0:
        raise InputError(f"Every picture must keep the same number of patches, at least one, got {left.tolist()}.")
    return mask.to(torch.int8).argsort(dim=1, stable=True)[:, : int(left[0])]


def _pictures(inputs: Inputs) -> Tensor:
    if inputs.images is None:
        raise InputError("This encoder takes images, the batch has none: give a corpus of pictures.")
    return inputs.images


def _whole(data: Tensor) -> Padded:
    return Padded(data, torch.full((len(data),), data.shape[1], dtype=torch.int64, device=data.device))
