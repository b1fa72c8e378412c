"""What the audio-visual masked autoencoders share: tokens of both streams of a clip in one sequence."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmssl.errors import InputError
from mmssl.lengths import pad
from mmssl.types import Inputs, Layers, Padded


def check_pair(inputs: Inputs) -> None:
    """Raise InputError where a batch has waveforms and videos that are not of the same number of clips."""
    if inputs.waveforms is not None and inputs.video is not None:
        audio, video = len(inputs.waveforms.lengths), len(inputs.video.lengths)
        if audio != video:
            raise InputError(f"Got {audio} waveforms and {video} videos: give one of each per clip.")


def joined_layers(audio: Sequence[Padded], video: Sequence[Padded]) -> Layers:
    """Each clip's audio tokens, then its video tokens: a layer for each pair of (B, N, D) and (B, M, D)."""
    layers = [
        Padded(*pad([torch.cat(pair) for pair in zip(a.unpad(), v.unpad(), strict=True)]))
        for a, v in zip(audio, video, strict=True)
    ]
    return Layers(tuple(layer.data for layer in layers), tuple(layer.lengths for layer in layers))


def fusion_lengths(name: str) -> Tensor:
    """Refuse to tell the number of tokens of a fusion from one of its inputs."""
    raise InputError(
        f"The fusion of {name} has the tokens of audio and video together, so that its length follows from both: "
        "add the output lengths of the streams 'audio' and 'video'."
    )
