"""Upstreams of speech as encoders that are trained: masks honoured, inner results at hand."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from mmssl.errors import ConfigError, InputError
from mmssl.nn.packed import Packed
from mmssl.objectives.types import Encoded, Encoder, Hidden, View
from mmssl.types import Inputs, Layers, Padded
from mmssl.upstreams.speech_transformer import SpeechTransformer
from mmssl.upstreams.tera import Tera


class SpeechEncoder(Encoder):
    """A speech transformer in training. Frames are hidden after the projection, before the positions.

    Taps: "latents" (output of the front end), "normed_latents" (after its layer norm), both of the whole clip whatever
    is hidden; with `feed_forward`, "feed_forward.K" of each block K (output of its feed-forward part before the
    residual connection).

    Args:
        upstream: the model.
        front_end_gradient: factor of the gradient that reaches the convolutional front end, in [0, 1]; 0.1 in the
            published base models of wav2vec 2.0 and HuBERT, 0 to keep it as it is.
        feed_forward: whether blocks' feed-forward outputs are kept.

    Raises:
        ConfigError: another kind of upstream, or a factor out of range.
    """

    upstream: SpeechTransformer

    def __init__(
        self, upstream: SpeechTransformer, front_end_gradient: float = 1.0, feed_forward: bool = False
    ) -> None:
        super().__init__()
        if not isinstance(upstream, SpeechTransformer):
            raise ConfigError(
                f"This objective trains a speech transformer (wav2vec2, hubert, wavlm, data2vec_audio ...), "
                f"got {type(upstream).__name__}."
            )
        if not 0 <= front_end_gradient <= 1:
            raise ConfigError(f"front_end_gradient must be in [0, 1], got {front_end_gradient}.")
        self.upstream = upstream
        self.front_end_gradient, self.feed_forward = front_end_gradient, feed_forward

    def frame_lengths(self, inputs: Inputs) -> Mapping[str, Tensor]:
        """Frames of each clip; see `Encoder.frame_lengths`."""
        return {"audio": self.upstream.output_lengths(_waveforms(inputs).lengths)}

    def encode(self, view: View) -> Mapping[str, Encoded]:
        """Encode the waveforms of a view; see `Encoder.encode`."""
        _only_audio(view)
        clips = _waveforms(view.inputs).unpad()
        _check_lengths(clips, self.upstream.spec.min_length)
        latents = self._latents(clips)
        features = self.upstream.features(latents)
        hidden = view.hidden.get("audio")
        mask = None
        if hidden is not None:
            features = Packed.of(_replaced(list(features.split()), hidden))
            mask = hidden.mask[:, : max(features.lengths)]
        kept: list[Tensor] = []
        handles = self._watch_feed_forward(kept)
        try:
            states = self.upstream.encoder.forward_packed(features)
        finally:
            for handle in handles:
                handle.remove()
        norm = self.upstream.feature_norm
        normed = latents if norm is None else latents.replace(norm(latents.data))
        taps = {"latents": latents.pad(), "normed_latents": normed.pad()}
        taps |= {f"feed_forward.{k}": features.replace(output).pad() for k, output in enumerate(kept)}
        output = states[-1].replace(self.upstream.encoder.finish(states[-1].data)).pad()
        return {"audio": Encoded(output, _layers(states), mask, None, taps)}

    def _latents(self, clips: list[Tensor]) -> Packed:
        scale = self.front_end_gradient
        if scale == 0:
            with torch.no_grad():
                return self.upstream.latents(clips)
        latents = self.upstream.latents(clips)
        if scale < 1:
            latents = latents.replace(latents.data * scale + latents.data.detach() * (1 - scale))
        return latents

    def _watch_feed_forward(self, kept: list[Tensor]) -> list[RemovableHandle]:
        if not self.feed_forward:
            return []
        blocks = self.upstream.encoder.blocks
        # a copy: without gradients the block adds to this tensor in place
        return [
            block.get_submodule("contract").register_forward_hook(lambda _, __, output: kept.append(output.clone()))
            for block in blocks
        ]


class FrameEncoder(Encoder):
    """A transformer on spectral frames (TERA, Mockingjay) in training. Frames are altered before the projection.

    Tap: "input", the frames as they were before.

    Args:
        upstream: the model.

    Raises:
        ConfigError: another kind of upstream.
    """

    upstream: Tera

    def __init__(self, upstream: Tera) -> None:
        super().__init__()
        if not isinstance(upstream, Tera):
            raise ConfigError(f"This objective trains a transformer on frames (tera), got {type(upstream).__name__}.")
        self.upstream = upstream

    def frame_lengths(self, inputs: Inputs) -> Mapping[str, Tensor]:
        """Frames of each clip; see `Encoder.frame_lengths`."""
        return {"audio": self.upstream.output_lengths(_waveforms(inputs).lengths)}

    def encode(self, view: View) -> Mapping[str, Encoded]:
        """Encode the waveforms of a view; see `Encoder.encode`."""
        _only_audio(view)
        clips = _waveforms(view.inputs).unpad()
        _check_lengths(clips, self.upstream.spec.min_length)
        with torch.no_grad():
            frames = [self.upstream.features(clip[None])[0].to(self.upstream.dtype) for clip in clips]
        taps = {"input": Packed.of(frames).pad()}
        hidden = view.hidden.get("audio")
        mask = None
        if hidden is not None:
            mask = hidden.mask[:, : max(len(f) for f in frames)]
            frames = _replaced(frames, hidden)
        whole = Packed.of(frames)
        limit = self.upstream.max_frames
        pieces = [piece for clip in frames for piece in clip.chunk(-(-len(clip) // limit) if limit else 1)]
        projected = Packed.of([self.upstream.projection(piece) for piece in pieces])
        states = [whole.replace(s.data) for s in self.upstream.encoder.forward_packed(projected)]
        output = whole.replace(self.upstream.encoder.finish(states[-1].data)).pad()
        return {"audio": Encoded(output, _layers(states), mask, None, taps)}


def _waveforms(inputs: Inputs) -> Padded:
    if inputs.waveforms is None:
        raise InputError("This encoder takes waveforms, the batch has none: give a corpus with audio.")
    return inputs.waveforms


def _only_audio(view: View) -> None:
    other = [stream for stream in view.hidden if stream != "audio"]
    if other:
        raise ConfigError(f"This encoder has the stream audio alone; {other[0]!r} cannot be hidden from it.")


def _check_lengths(clips: list[Tensor], shortest: int) -> None:
    for index, clip in enumerate(clips):
        if len(clip) < shortest:
            raise InputError(
                f"Clip {index} of the batch has {len(clip)} samples; the encoder takes at least {shortest}."
            )


def _replaced(clips: list[Tensor], hidden: Hidden) -> list[Tensor]:
    """Frames (T_b, D) of each clip after their masker."""
    masker, mask = hidden.masker, hidden.mask
    if masker is None:
        raise ConfigError("A transformer over time does not drop frames: give the mask a masker that replaces them.")
    longest = max(len(clip) for clip in clips)
    if mask.dtype != torch.bool or mask.dim() != 2 or len(mask) != len(clips) or mask.shape[1] < longest:
        raise InputError(f"The mask must be bool ({len(clips)}, {longest}), got {mask.dtype} {tuple(mask.shape)}.")
    seeds = hidden.seeds or tuple(range(len(clips)))
    return [masker(c, row[: len(c)], seed) for c, row, seed in zip(clips, mask, seeds, strict=True)]


def _layers(states: list[Packed]) -> Layers:
    padded = [state.pad() for state in states]
    return Layers(tuple(p.data for p in padded), tuple(p.lengths for p in padded))
