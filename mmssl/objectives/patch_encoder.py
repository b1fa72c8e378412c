"""Masked autoencoders in training: hidden patches are dropped, so that the encoder sees the others alone.

Sources: He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners", section 3; Huang et al. 2022, "Masked
Autoencoders that Listen", section 3; Tong et al. 2022, "VideoMAE", section 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mmssl.errors import ConfigError, InputError
from mmssl.lengths import patch_count, valid_mask, zero_padding
from mmssl.nn.patch import standardize_pictures
from mmssl.nn.vit import PatchEncoder
from mmssl.objectives.types import Encoded, Encoder, Hidden, View
from mmssl.types import Inputs, Layers, Padded
from mmssl.upstreams.audio_mae import AudioMAE
from mmssl.upstreams.base import Upstream
from mmssl.upstreams.mel_patches import MelRows, token_mask
from mmssl.upstreams.video_mae import TUBELET, VideoMAE
from mmssl.upstreams.vit_mae import MAE


class PictureEncoder(Encoder):
    """MAE's encoder in training.

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
        check_picture_size(upstream, pictures)
        only_streams(view, ("image",))
        pictures = standardize_pictures(pictures, upstream.image_mean, upstream.image_std, upstream.dtype)
        size = pictures.shape[-1] // upstream.encoder.positions.columns
        split = pictures.unfold(2, size, size).unfold(3, size, size).permute(0, 2, 3, 4, 5, 1)
        patches = _whole(split.reshape(len(pictures), upstream.encoder.positions.columns**2, -1))
        encoded = encode_visible(upstream.encoder, patches, view.hidden.get("image"))
        if len(set(encoded.output.lengths.tolist())) > 1:
            raise InputError(
                f"Every picture must keep the same number of patches, got {encoded.output.lengths.tolist()}: a mask is "
                "to hide the same share of each."
            )
        return {"image": encoded}


class MelEncoder(Encoder):
    """AudioMAE's encoder in training, on clips of any length.

    Taps: "patches" (B, N, patch * patch), the scaled log-mel values of every patch, time first; "class" (B, 1, D).

    Args:
        upstream: the model.

    Raises:
        ConfigError: another kind of upstream.
    """

    upstream: AudioMAE

    def __init__(self, upstream: AudioMAE) -> None:
        super().__init__()
        if not isinstance(upstream, AudioMAE):
            raise ConfigError(
                f"This objective trains a masked autoencoder of log-mel patches (audio_mae), "
                f"got {type(upstream).__name__}."
            )
        self.upstream = upstream

    def frame_lengths(self, inputs: Inputs) -> Mapping[str, Tensor]:
        """Patches of each clip; see `Encoder.frame_lengths`."""
        return {"audio": self.upstream.output_lengths(checked_waveforms(self.upstream, inputs).lengths)}

    def encode(self, view: View) -> Mapping[str, Encoded]:
        """Encode the waveforms of a view; see `Encoder.encode`."""
        only_streams(view, ("audio",))
        waveforms = checked_waveforms(self.upstream, view.inputs)
        patches = mel_patches(self.upstream.frames, waveforms, self.upstream.dtype)
        return {"audio": encode_visible(self.upstream.encoder, patches, view.hidden.get("audio"))}


class TubeletEncoder(Encoder):
    """VideoMAE's encoder in training, on videos of any length.

    Tap: "patches" (B, N, 2 * patch * patch * C), the pixels in [0, 1] of every tubelet: video frame, row, column,
    channel, the channel fastest.

    Args:
        upstream: the model.

    Raises:
        ConfigError: another kind of upstream.
    """

    upstream: VideoMAE

    def __init__(self, upstream: VideoMAE) -> None:
        super().__init__()
        if not isinstance(upstream, VideoMAE):
            raise ConfigError(f"This objective trains a masked autoencoder of video, got {type(upstream).__name__}.")
        self.upstream = upstream

    def frame_lengths(self, inputs: Inputs) -> Mapping[str, Tensor]:
        """Tubelets of each video; see `Encoder.frame_lengths`."""
        return {"video": self.upstream.output_lengths(checked_video(self.upstream, inputs).lengths)}

    def encode(self, view: View) -> Mapping[str, Encoded]:
        """Encode the videos of a view; see `Encoder.encode`."""
        only_streams(view, ("video",))
        upstream = self.upstream
        video = checked_video(upstream, view.inputs)
        patches = video_patches(video, upstream.encoder.positions.columns)
        colours = (upstream.image_mean, upstream.image_std)
        return {"video": encode_visible(upstream.encoder, patches, view.hidden.get("video"), colours=colours)}


def encode_visible(
    encoder: PatchEncoder,
    patches: Padded,
    hidden: Hidden | None,
    levels: Sequence[int] = (),
    colours: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Encoded:
    """Embed the patches that are left, and run the blocks on them.

    Args:
        encoder: an encoder whose patches do not overlap.
        patches: (B, N, P) values of all patches, channels last; lengths in patches.
        hidden: which are dropped; None for none.
        levels: numbers of blocks, from 1, whose normed outputs are kept as the taps "layer.K".
        colours: mean and deviation of each channel, which the encoder's input is standardised by; None where the
            patches are already.

    Returns:
        `output` and layers of the visible tokens in order, without a class token, whose output is the tap "class".

    Raises:
        ConfigError: the mask has a masker, or there is no such block.
        InputError: the mask does not fit, or leaves nothing of a clip.
    """
    mask = positions = None
    left = patches
    if hidden is not None:
        mask = _fitting(hidden, patches)
        positions, left = _visible(mask, patches)
    lengths = left.lengths
    valid = token_mask(lengths, left.data.shape[1])
    tokens = _embedded(encoder, left.data, colours)
    table = encoder.positions(patches.data.shape[1] // encoder.positions.columns, tokens)
    states = encoder.encode_tokens(tokens + (table if positions is None else table[positions]), valid)
    skip = 0 if encoder.cls_token is None else 1
    final = encoder.finish(states[-1])
    taps = {"patches": patches}
    if skip:
        taps["class"] = _whole(final[:, :1])
    if any(not 0 < level < len(states) for level in levels):
        raise ConfigError(f"The encoder has blocks 1 to {len(states) - 1}, asked for {', '.join(map(str, levels))}.")

    def kept(state: Tensor) -> Tensor:
        return state[:, skip:] if valid is None else zero_padding(state[:, skip:], lengths)

    for level in levels:
        normed = final if level == len(states) - 1 else encoder.finish(states[level])
        taps[f"layer.{level}"] = Padded(kept(normed), lengths)
    layers = Layers(tuple(kept(state) for state in states), (lengths,) * len(states))
    return Encoded(Padded(kept(final), lengths), layers, mask, positions, taps)


def mel_patches(frames: MelRows, waveforms: Padded, dtype: torch.dtype) -> Padded:
    """Values (B, N, patch * patch) of the patches of waveforms, time-major, time first; lengths in patches."""
    mel = frames(waveforms, dtype)
    size, columns = frames.patch_size, frames.columns
    patches = mel.data.unflatten(2, (columns, size)).unflatten(1, (-1, size)).transpose(2, 3)
    return Padded(patches.flatten(3).flatten(1, 2), mel.lengths * columns)


def video_patches(video: Padded, columns: int) -> Padded:
    """Values (B, N, P) of the tubelets of videos, see `tubelet_values`; lengths in tubelets."""
    return Padded(tubelet_values(video, columns), patch_count(video.lengths, TUBELET) * columns)


def tubelet_values(video: Padded, columns: int) -> Tensor:
    """Values (B, N, P) of the tubelets of videos (B, T, C, H, W), slice by slice; pixels (frame, row, column, channel).

    Args:
        video: square pictures.
        columns: tubelets of a slice, a square number.
    """
    frames = video.data[:, : int(patch_count(video.lengths, TUBELET).max()) * TUBELET]
    side = round(columns**0.5)
    size = frames.shape[-1] // side
    split = frames.unflatten(4, (side, size)).unflatten(3, (side, size)).unflatten(1, (-1, TUBELET))
    # slice, frame, channel, grid row, row, grid column, column -> slice, grid row, grid column, frame, row, column, ...
    return split.permute(0, 1, 4, 6, 2, 5, 7, 3).flatten(4).flatten(1, 3)


def checked_waveforms(upstream: Upstream, inputs: Inputs) -> Padded:
    """Waveforms of a batch, zero past each length.

    Raises:
        InputError: there are none, or one is too short or too long for the encoder.
    """
    if inputs.waveforms is None:
        raise InputError("This encoder takes waveforms, the batch has none: give a corpus with audio.")
    _check_range(inputs.waveforms, upstream.spec.min_length, upstream.spec.max_length, "samples")
    return _cleared(inputs.waveforms)


def checked_video(upstream: Upstream, inputs: Inputs) -> Padded:
    """Videos of a batch, zero past each length.

    Raises:
        InputError: there are none, or their size or number of frames does not fit the encoder.
    """
    if inputs.video is None:
        raise InputError("This encoder takes video, the batch has none: give a corpus with video.")
    longest = None if "waveforms" in upstream.spec.inputs else upstream.spec.max_length
    _check_range(inputs.video, TUBELET, longest, "video frames")
    check_picture_size(upstream, inputs.video.data)
    return _cleared(inputs.video)


def check_picture_size(upstream: Upstream, pictures: Tensor) -> None:
    """Raise InputError where pictures (..., H, W) are not of the encoder's size."""
    if tuple(pictures.shape[-2:]) != upstream.spec.image_size:
        raise InputError(
            f"The encoder takes pictures of {upstream.spec.image_size} pixels, got {tuple(pictures.shape[-2:])}."
        )


def only_streams(view: View, streams: Sequence[str]) -> None:
    """Raise ConfigError where a view hides something of a stream that the encoder does not have."""
    other = [stream for stream in view.hidden if stream not in streams]
    if other:
        raise ConfigError(f"This encoder has the streams {', '.join(streams)}; {other[0]!r} cannot be hidden from it.")


def _check_range(batch: Padded, shortest: int, longest: int | None, unit: str) -> None:
    for index, size in enumerate(batch.lengths.tolist()):
        if size < shortest or (longest is not None and size > longest):
            limit = f"at least {shortest}" if size < shortest else f"at most {longest}"
            raise InputError(f"Clip {index} of the batch has {size} {unit}; the encoder takes {limit}.")


def _cleared(batch: Padded) -> Padded:
    if int(batch.lengths.min()) == batch.data.shape[1]:
        return batch
    return Padded(zero_padding(batch.data, batch.lengths), batch.lengths)


def _embedded(encoder: PatchEncoder, values: Tensor, colours: tuple[Sequence[float], Sequence[float]] | None) -> Tensor:
    """Tokens (B, V, D) of patches (B, V, P), channels last, without positions.

    A convolution whose kernels do not overlap is a linear layer on each patch, so that the patches that are dropped
    need not be embedded.
    """
    projection = encoder.patch_embed.get_submodule("proj")
    weight = projection.get_parameter("weight")
    if colours is not None:
        mean, std = (torch.tensor(numbers, device=values.device) for numbers in colours)
        values = ((values.unflatten(-1, (-1, len(mean))).float() - mean) / std).flatten(-2)
    return F.linear(values.to(weight.dtype), weight.movedim(1, -1).flatten(1), projection.get_parameter("bias"))


def _fitting(hidden: Hidden, tokens: Padded) -> Tensor:
    """The mask (B, N), False past each clip's end."""
    if hidden.masker is not None:
        raise ConfigError("A masked autoencoder drops hidden patches; a masker that replaces them has no place here.")
    batch, count = tokens.data.shape[:2]
    mask = hidden.mask
    if mask.dtype != torch.bool or mask.dim() != 2 or len(mask) != batch or mask.shape[1] < count:
        raise InputError(f"The mask must be bool ({batch}, {count}), got {mask.dtype} {tuple(mask.shape)}.")
    return mask[:, :count] & valid_mask(tokens.lengths, count)


def _visible(mask: Tensor, tokens: Padded) -> tuple[Tensor, Padded]:
    """Places (B, V) of what is left of tokens (B, N, ...), in order, and those; past a clip's V_b arbitrary ones."""
    visible = valid_mask(tokens.lengths, mask.shape[1]) & ~mask
    left = visible.sum(1)
    if int(left.min()) == 0:
        raise InputError(
            f"Every clip must keep at least one patch, clip {int(left.argmin())} of the batch keeps none: lower the "
            "mask ratio or use longer clips."
        )
    positions = (~visible).to(torch.int8).argsort(dim=1, stable=True)[:, : int(left.max())]
    return positions, Padded(tokens.data.gather(1, positions[..., None].expand(-1, -1, tokens.data.shape[-1])), left)


def _pictures(inputs: Inputs) -> Tensor:
    if inputs.images is None:
        raise InputError("This encoder takes images, the batch has none: give a corpus of pictures.")
    return inputs.images


def _whole(data: Tensor) -> Padded:
    return Padded(data, torch.full((len(data),), data.shape[1], dtype=torch.int64, device=data.device))
