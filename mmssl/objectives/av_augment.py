"""Augmentations of sound and pictures that belong together: each by itself, the same for all pictures of a clip."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from mmssl.augment.base import Augmentation, Chain, Range, With, clip_generator
from mmssl.augment.level import Gain
from mmssl.augment.pictures import ColorJitter, HorizontalFlip, RandomResizedCrop
from mmssl.errors import ConfigError, did_you_mean
from mmssl.lengths import pad
from mmssl.types import Inputs, Padded

_AUDIO, _VIDEO = 201, 202


class PairAugmentation:
    """Random level of the sound; random crop, mirroring and colours of the pictures. Nothing moves in time.

    Source: Arandjelovic and Zisserman 2017, "Look, Listen and Learn", section 3.2 (crops, flips, brightness and
    saturation of the pictures, the level of the sound).

    Args:
        crop_scale: share of the area that a crop of the pictures keeps; it is brought to their size again. None: all.
        flip: probability that pictures are mirrored.
        jitter: strength of brightness, contrast and saturation; hues turn by a quarter of it.
        gain: the level of the sound changes by up to so many dB, up or down.

    Raises:
        ConfigError: a value out of range.
    """

    def __init__(
        self, crop_scale: Range | None = None, flip: float = 0.0, jitter: float = 0.0, gain: float = 0.0
    ) -> None:
        if gain < 0:
            raise ConfigError(f"gain must be 0 dB or more, got {gain}.")
        self.crop_scale, self.gain = crop_scale, gain
        self.colours: list[Augmentation] = []
        if flip:
            self.colours.append(With(flip, HorizontalFlip()))
        if jitter:
            self.colours.append(ColorJitter(jitter, jitter, jitter, min(jitter / 4, 0.5)))
        if crop_scale is not None:
            RandomResizedCrop(1, crop_scale)  # refuses a wrong range now and not at the first batch

    def __call__(self, inputs: Inputs, seeds: list[int]) -> Inputs:
        """Augment waveforms, and video or images.

        Args:
            inputs: of B clips.
            seeds: (B,) of the clips; what is drawn for one depends on its own seed alone.
        """
        if self.gain and inputs.waveforms is not None:
            louder = Gain((-self.gain, self.gain))
            sounds = _each(inputs.waveforms.unpad(), seeds, louder, _AUDIO)
            inputs = replace(inputs, waveforms=Padded(*pad(sounds)))
        if inputs.video is not None and (chain := self._pictures(inputs.video.data.shape[-1])) is not None:
            inputs = replace(inputs, video=Padded(*pad(_each(inputs.video.unpad(), seeds, chain, _VIDEO))))
        if inputs.images is not None and (chain := self._pictures(inputs.images.shape[-1])) is not None:
            inputs = replace(inputs, images=torch.stack(_each(list(inputs.images), seeds, chain, _VIDEO)))
        return inputs

    def _pictures(self, size: int) -> Augmentation | None:
        crop: list[Augmentation] = [] if self.crop_scale is None else [RandomResizedCrop(size, self.crop_scale)]
        return Chain([*crop, *self.colours]) if crop or self.colours else None


# or its arguments as a recipe gives them; None or none of them augments nothing
GivenAugmentation = PairAugmentation | Mapping[str, Any] | None


def pair_augmentation(given: GivenAugmentation) -> PairAugmentation:
    """A `PairAugmentation` of what an objective is given.

    Raises:
        ConfigError: an argument that it does not have, or a value out of range.
    """
    if isinstance(given, PairAugmentation):
        return given
    known = list(inspect.signature(PairAugmentation).parameters)
    given = given or {}
    for name in given:
        if name not in known:
            raise ConfigError(f"augment.{name}: no such key.{did_you_mean(name, known)} Keys: {', '.join(known)}.")
    return PairAugmentation(**given)


def _each(clips: list[torch.Tensor], seeds: list[int], chain: Augmentation, place: int) -> list[torch.Tensor]:
    return [chain(clip, clip_generator(seed, place)) for clip, seed in zip(clips, seeds, strict=True)]
