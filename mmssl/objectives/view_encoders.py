"""Upstreams as encoders of whole views: one vector for each clip, as methods that compare views train them.

All of them give the stream as a sequence of one frame (B, 1, D), so that terms and heads never meet padding or tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from mmssl.errors import ConfigError, InputError
from mmssl.nn.patch import standardize_pictures
from mmssl.nn.vit import PatchEncoder
from mmssl.objectives.types import Encoded, Encoder, View
from mmssl.types import Inputs, Layers, Padded
from mmssl.upstreams.base import Upstream
from mmssl.upstreams.byol_a import ByolA, max_plus_mean
from mmssl.upstreams.pictures import TappedPictures
from mmssl.upstreams.vit_mae import MAE

POOLINGS = ("class", "mean")


class ImageViewEncoder(Encoder):
    """A vision transformer or a convolutional network on pictures of any size it can take.

    `Encoded.output` (B, 1, D) is the last layer's class token, or its mean over positions; `Encoded.layers` has all
    layers with all tokens. For crops of another size the positions of a vision transformer are interpolated
    (bicubic), as in DINO.

    Args:
        upstream: mae, or a network of torchvision or timm.
        pooling: "class", "mean" (global average), or None: the class token of mae, the mean of all others.

    Raises:
        ConfigError: another kind of upstream, or an unknown pooling.
    """

    def __init__(self, upstream: Upstream, pooling: str | None = None) -> None:
        super().__init__()
        if not isinstance(upstream, MAE | TappedPictures):
            raise ConfigError(
                f"This objective trains an encoder of pictures (mae, torchvision, timm), got {type(upstream).__name__}."
            )
        chosen = ("class" if isinstance(upstream, MAE) else "mean") if pooling is None else pooling
        if chosen not in POOLINGS:
            raise ConfigError(f"pooling must be one of {', '.join(POOLINGS)} or null, got {pooling!r}.")
        self.upstream: MAE | TappedPictures = upstream
        self.pooling = chosen

    def frame_lengths(self, inputs: Inputs) -> Mapping[str, Tensor]:
        """One frame for each picture; see `Encoder.frame_lengths`."""
        pictures = _pictures(inputs)
        return {"image": torch.ones(len(pictures), dtype=torch.int64, device=pictures.device)}

    def encode(self, view: View) -> Mapping[str, Encoded]:
        """Encode the pictures of a view; see `Encoder.encode`."""
        _require_whole(view)
        upstream = self.upstream
        pictures = standardize_pictures(_pictures(view.inputs), upstream.image_mean, upstream.image_std, upstream.dtype)
        if isinstance(upstream, MAE):
            states = upstream.encoder.encode_tokens(resized_tokens(upstream.encoder, pictures))
            final, skip = upstream.encoder.finish(states[-1]), 1
        else:
            maps = _taps(upstream, pictures)
            if self.pooling == "class" and maps[-1].dim() == 4:
                raise ConfigError("A convolutional network has no class token: use pooling='mean'.")
            states = [h.flatten(2).transpose(1, 2) if h.dim() == 4 else h for h in maps]
            final, skip = states[-1], 0
        row = final[:, 0] if self.pooling == "class" else final[:, skip:].mean(1)
        return {"image": _of_rows(row, states)}


class SpectrogramViewEncoder(Encoder):
    """BYOL-A's encoder on spectrograms that were already augmented; the clip's vector is maximum plus mean over time.

    Args:
        upstream: byol_a.

    Raises:
        ConfigError: another kind of upstream.
    """

    def __init__(self, upstream: Upstream) -> None:
        super().__init__()
        if not isinstance(upstream, ByolA):
            raise ConfigError(f"This objective trains byol_a, got {type(upstream).__name__}.")
        self.upstream: ByolA = upstream

    def frame_lengths(self, inputs: Inputs) -> Mapping[str, Tensor]:
        """One frame for each clip; see `Encoder.frame_lengths`."""
        waveforms = _waveforms(inputs)
        return {"audio": torch.ones_like(waveforms.lengths)}

    def encode(self, view: View) -> Mapping[str, Encoded]:
        """Encode the spectrograms of a view; see `Encoder.encode`."""
        _require_whole(view)
        if not isinstance(view, SpectrogramView):
            raise ConfigError("This encoder takes views that hold spectrograms, such as those of MixedSpectrograms.")
        upstream = self.upstream
        maps = upstream.features(view.spectrograms.to(upstream.dtype).transpose(1, 2)[:, None])
        convolved = maps.permute(0, 3, 2, 1).flatten(2)
        hidden = upstream.fc[:2](convolved)
        last = upstream.fc[2:](hidden)
        row = max_plus_mean(_whole(last))
        return {"audio": _of_rows(row, [convolved, hidden, last])}


class StreamViewEncoder(Encoder):
    """Any upstream: the mean over the valid frames of a stream's last layer.

    Args:
        upstream: what is trained.
        stream: of the upstream; None for its only one.
        layer: which layer.

    Raises:
        ConfigError: no such stream, or none named where there are several.
    """

    def __init__(self, upstream: Upstream, stream: str | None = None, layer: int = -1) -> None:
        super().__init__()
        streams = list(upstream.spec.streams)
        if stream is None and len(streams) == 1:
            stream = streams[0]
        if stream not in streams:
            raise ConfigError(f"Name a stream of the upstream: it has {', '.join(streams)}, got {stream!r}.")
        self.upstream, self.stream, self.layer = upstream, stream, layer

    def frame_lengths(self, inputs: Inputs) -> Mapping[str, Tensor]:
        """One frame for each clip; see `Encoder.frame_lengths`."""
        size = len(inputs.images) if inputs.images is not None else 0
        for padded in (inputs.waveforms, inputs.video):
            size = len(padded.lengths) if padded is not None else size
        return {self.stream: torch.ones(size, dtype=torch.int64, device=inputs.device)}

    def encode(self, view: View) -> Mapping[str, Encoded]:
        """Encode the clips of a view; see `Encoder.encode`."""
        _require_whole(view)
        inputs = view.inputs
        waveforms, video = inputs.waveforms, inputs.video
        layers = self.upstream(
            None if waveforms is None else waveforms.data,
            None if waveforms is None else waveforms.lengths,
            video=None if video is None else video.data,
            video_lengths=None if video is None else video.lengths,
            images=inputs.images,
        )[self.stream]
        frames = layers[self.layer]
        mask = frames.mask
        row = frames.data.masked_fill(~mask[..., None], 0).sum(1) / frames.lengths[:, None].to(frames.data.dtype)
        return {self.stream: Encoded(_whole(row[:, None]), layers)}


@dataclass(frozen=True)
class SpectrogramView(View):
    """A view that is a spectrogram, not a waveform.

    Attributes:
        spectrograms: (B, T, mels), every frame valid, scaled as the encoder wants them.
    """

    spectrograms: Tensor = field(default_factory=lambda: torch.empty(0, 0, 0))


def resized_tokens(encoder: PatchEncoder, pictures: Tensor) -> Tensor:
    """Tokens of pictures (B, C, H, W) of any size, with positions interpolated to their grid.

    Raises:
        InputError: sides that are no multiple of the patch.
    """
    embed = encoder.patch_embed
    patch = int(embed.patch_size)  # type: ignore[arg-type]
    rows, columns = (side // patch for side in pictures.shape[-2:])
    if rows * patch != pictures.shape[-2] or columns * patch != pictures.shape[-1]:
        raise InputError(
            f"Pictures of {tuple(pictures.shape[-2:])} pixels do not divide into patches of {patch}: use crops whose "
            "sides are multiples of it."
        )
    side = encoder.positions.columns
    if rows == columns == side:
        return encoder.embed(pictures)
    tokens = embed(pictures)
    table = encoder.positions(side, tokens).float()
    grid = table.t().reshape(1, -1, side, side)
    places = F.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
    return tokens + places.flatten(2)[0].t().to(tokens.dtype)


def _taps(upstream: TappedPictures, pictures: Tensor) -> Sequence[Tensor]:
    size = tuple(pictures.shape[-2:])
    if size == upstream.spec.image_size:
        return upstream.taps(pictures)
    try:
        return upstream.taps(pictures)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"This {type(upstream).__name__} does not take pictures of {size} pixels: {error} Use crops of "
            f"{upstream.spec.image_size}, or a network that takes any size."
        ) from error


def _of_rows(row: Tensor, states: Sequence[Tensor]) -> Encoded:
    whole = [_whole(state) for state in states]
    layers = Layers(tuple(w.data for w in whole), tuple(w.lengths for w in whole))
    return Encoded(_whole(row[:, None]), layers)


def _whole(frames: Tensor) -> Padded:
    """(B, T, D), every frame valid."""
    return Padded(frames, torch.full((len(frames),), frames.shape[1], device=frames.device))


def _pictures(inputs: Inputs) -> Tensor:
    if inputs.images is None:
        raise InputError("This encoder takes images, the batch has none: give a corpus with images.")
    return inputs.images


def _waveforms(inputs: Inputs) -> Padded:
    if inputs.waveforms is None:
        raise InputError("This encoder takes waveforms, the batch has none: give a corpus with audio.")
    return inputs.waveforms


def _require_whole(view: View) -> None:
    if view.hidden:
        raise ConfigError(
            f"This encoder sees views whole, but {', '.join(view.hidden)} is to be hidden: use a masked encoder."
        )
