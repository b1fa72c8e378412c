"""HiCMAE's encoders in masked training, and how much the decoders use the other modality.

Source: Sun et al. 2024, "HiCMAE: Hierarchical Contrastive Masked Autoencoder for Self-Supervised Audio-Visual Emotion
Recognition", sections 3.2 to 3.4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mmssl.errors import ConfigError, InputError
from mmssl.objectives.objective import Objective
from mmssl.objectives.patch_encoder import (
    checked_video,
    checked_waveforms,
    encode_visible,
    mel_patches,
    only_streams,
    video_patches,
)
from mmssl.objectives.types import Encoded, Encoder, Examples, Step, View
from mmssl.types import Inputs, Padded
from mmssl.upstreams.av_tokens import check_pair
from mmssl.upstreams.hicmae import HiCMAE
from mmssl.upstreams.vit_mae import IMAGENET_MEAN, IMAGENET_STD


class AudioVisualEncoder(Encoder):
    """HiCMAE's encoders and fusion in training, on the visible patches of both streams.

    Of each stream, `output` is what leaves the fusion, normed; `layers` are those of its own encoder. Taps: "patches",
    as `MelEncoder` and `TubeletEncoder` have them; "layer.K" (B, V, D), the output of block K through the encoder's
    last norm, which all levels share.

    Args:
        upstream: the model.
        levels: numbers of blocks, from 1, that are kept as taps.

    Raises:
        ConfigError: another kind of upstream, or no such blocks.
    """

    upstream: HiCMAE

    def __init__(self, upstream: HiCMAE, levels: Sequence[int] = (4, 7, 10)) -> None:
        super().__init__()
        if not isinstance(upstream, HiCMAE):
            raise ConfigError(
                f"This objective trains an audio-visual masked autoencoder (hicmae), got {type(upstream).__name__}."
            )
        blocks = len(upstream.audio.blocks)
        if len(set(levels)) < len(levels) or any(not 0 < level <= blocks for level in levels):
            raise ConfigError(
                f"levels are different numbers of blocks from 1 to {blocks}, got {list(levels)}: name others, or take "
                "an upstream with more layers."
            )
        self.upstream, self.levels = upstream, tuple(levels)

    def frame_lengths(self, inputs: Inputs) -> Mapping[str, Tensor]:
        """Patches of each clip in both streams; see `Encoder.frame_lengths`."""
        waveforms, video = self._checked(inputs)
        lengths = {"audio": waveforms.lengths, "video": video.lengths}
        return {stream: self.upstream.output_lengths(n, stream) for stream, n in lengths.items()}

    def encode(self, view: View) -> Mapping[str, Encoded]:
        """Encode both streams of a view and fuse them; see `Encoder.encode`."""
        only_streams(view, ("audio", "video"))
        up = self.upstream
        waveforms, video = self._checked(view.inputs)
        heard = mel_patches(up.frames, waveforms, up.dtype)
        audio = encode_visible(up.audio, heard, view.hidden.get("audio"), self.levels)
        shown = video_patches(video, up.video.positions.columns)
        colours = (IMAGENET_MEAN, IMAGENET_STD)
        seen = encode_visible(up.video, shown, view.hidden.get("video"), self.levels, colours)
        of_audio, of_video = up.fusion(audio.output, seen.output)
        fused_audio = Padded(up.fusion.norm_audio(of_audio[-1].data), audio.output.lengths)
        fused_video = Padded(up.fusion.norm(of_video[-1].data), seen.output.lengths)
        return {"audio": replace(audio, output=fused_audio), "video": replace(seen, output=fused_video)}

    def _checked(self, inputs: Inputs) -> tuple[Padded, Padded]:
        found = checked_waveforms(self.upstream, inputs), checked_video(self.upstream, inputs)
        check_pair(inputs)
        return found


@torch.no_grad()
def partner_gaps(
    objective: Objective, examples: Examples, generator: torch.Generator | None = None
) -> dict[str, tuple[float, float]]:
    """How well each stream is restored beside its own partner and beside another clip's.

    The same patches are hidden both times; only whose sound goes with whose video differs. Decoders that do not use the
    other modality, such as those at initialisation or after training on shuffled pairs, give equal errors.

    Args:
        objective: HiCMAE or another one whose terms "audio" and "video" restore patches; its mode is left as it is.
        examples: at least two clips with both streams.
        generator: of the masks; None for one with seed 0.

    Returns:
        "audio" and "video" -> mean error beside the own partner, and beside that of the next clip of the batch.

    Raises:
        InputError: fewer than two clips.
    """
    waveforms = examples.inputs.waveforms
    if waveforms is None or len(waveforms.lengths) < 2:
        raise InputError("Partners can be exchanged only among at least two clips with sound.")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    view = objective.views(examples, objective.encoder, generator)[0]
    order = torch.arange(1, len(waveforms.lengths) + 1) % len(waveforms.lengths)
    moved = Padded(waveforms.data[order], waveforms.lengths[order])
    hidden = dict(view.hidden)
    if "audio" in hidden:
        hidden["audio"] = replace(hidden["audio"], mask=hidden["audio"].mask[order])
    other = replace(view, inputs=replace(view.inputs, waveforms=moved), hidden=hidden)
    errors: dict[str, list[float]] = {"audio": [], "video": []}
    for number, shown in enumerate((view, other)):
        step = Step(0, [shown], {0: objective.encoder.encode(shown)}, objective.encoder, generator)
        for term in objective.terms:
            if term.name in errors:
                errors[term.name].append(float(term(step).loss))
        if any(len(found) != number + 1 for found in errors.values()):
            raise ConfigError("The objective needs the terms 'audio' and 'video', which restore patches.")
    return {name: (found[0], found[1]) for name, found in errors.items()}
