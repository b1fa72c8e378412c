"""Views that are augmentations of one clip."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmssl.augment.base import Augmentation, Chain, With, clip_generator, integer, uniform
from mmssl.augment.level import BandLimit, Gain, LimitPeak
from mmssl.augment.noise import AdditiveNoise
from mmssl.augment.pictures import ColorJitter, GaussianBlur, Grayscale, HorizontalFlip, RandomResizedCrop, Solarize
from mmssl.augment.reverb import Reverberation
from mmssl.augment.spectrogram import LinearFader, SpectrogramCrop, log_mixup_exp
from mmssl.errors import ConfigError, InputError
from mmssl.lengths import pad
from mmssl.objectives.types import Encoder, Examples, View
from mmssl.objectives.view_encoders import SpectrogramView, SpectrogramViewEncoder
from mmssl.objectives.views import Views
from mmssl.types import Inputs, Padded

KINDS = ("waveforms", "video", "images")
# what a number of a seed is for
_VIEW, _CROP = 101, 102


class Augmented(Views):
    """View k of a clip is a chain applied to it with generators of the clip's own seed and k.

    Args:
        chain: for all views, or a list of one chain for each view, which may give sizes of their own (multi-crop).
        num_views: how many; with a list its length, or None.
        inputs: which of "waveforms", "video", "images" is augmented; the others are left out.

    Raises:
        ConfigError: fewer than one view, or a number that is not that of the chains.
    """

    def __init__(
        self, chain: Augmentation | Sequence[Augmentation], num_views: int | None = None, inputs: str = "images"
    ) -> None:
        super().__init__()
        if isinstance(chain, Augmentation):
            self.chains: tuple[Augmentation, ...] = (chain,) * (2 if num_views is None else num_views)
        else:
            self.chains = tuple(chain)
        if not self.chains or (num_views is not None and num_views != len(self.chains)):
            raise ConfigError(
                f"Augmented needs at least one view and as many chains as views, got num_views = {num_views} and "
                f"{len(self.chains)} chains."
            )
        if inputs not in KINDS:
            raise ConfigError(f"inputs must be one of {', '.join(KINDS)}, got {inputs!r}.")
        self.inputs = inputs

    def forward(self, examples: Examples, encoder: Encoder, generator: torch.Generator) -> list[View]:
        """The views; see `Views.forward`.

        Raises:
            InputError: the batch does not have that input, or clips of one view differ in size.
        """
        clips = _clips(examples.inputs, self.inputs)
        seeds = clip_seeds(examples, len(clips), generator)
        views = []
        for number, chain in enumerate(self.chains):
            made = [chain(clip, clip_generator(seed, _VIEW, number)) for clip, seed in zip(clips, seeds, strict=True)]
            views.append(View(_inputs(made, self.inputs), ids=examples.ids, labels=examples.labels))
        return views


class MixedSpectrograms(Views):
    """BYOL-A's views: a crop of the log-mel spectrogram, mixed with another clip, boxed and faded, twice.

    Steps: a crop of `frames` frames at a random place (a shorter clip is put at a random place into silence, as by the
    authors); normalisation by the upstream's corpus statistics; then for each view log-mixup-exp with another clip of
    the batch, random resize crop and random linear fader; at last both views together are brought to mean 0 and
    deviation 1 over the batch. The authors mix with clips of a queue; a clip of the batch needs no state.

    Sources: Niizumi et al. 2021, "BYOL for Audio", section III-B; the fader of Niizumi et al. 2023.

    Args:
        frames: of a crop; 96 in the paper.
        mixup: largest share of the other clip, 0.4 in the paper; 0 for none.
        crop: random resize crop; None for none.
        fader: largest gain of the fader, in units of normalised log-mel; 0 for none.
        post_normalize: whether views are normalised over the batch.

    Raises:
        ConfigError: a value out of range.
    """

    def __init__(
        self,
        frames: int = 96,
        mixup: float = 0.4,
        crop: SpectrogramCrop | None = None,
        fader: float = 1.0,
        post_normalize: bool = True,
    ) -> None:
        super().__init__()
        if frames < 8 or not 0 <= mixup <= 1:
            raise ConfigError(f"frames must be at least 8 and mixup in [0, 1], got {frames} and {mixup}.")
        self.frames, self.mixup, self.post_normalize = frames, mixup, post_normalize
        steps: list[Augmentation] = [] if crop is None else [crop]
        self.chain = Chain([*steps, LinearFader(fader)] if fader else steps)

    def forward(self, examples: Examples, encoder: Encoder, generator: torch.Generator) -> list[View]:
        """Two views; see `Views.forward`."""
        if not isinstance(encoder, SpectrogramViewEncoder):
            raise ConfigError(f"MixedSpectrograms makes views for byol_a, not for a {type(encoder).__name__}.")
        waveforms = _clips(examples.inputs, "waveforms")
        if self.mixup and len(waveforms) < 2:
            raise InputError("Mixup needs at least 2 clips in a batch, got 1: use larger batches, or mixup = 0.")
        upstream = encoder.upstream
        samples = (self.frames - 1) * upstream.log_mel.hop_length
        seeds = clip_seeds(examples, len(waveforms), generator)
        with torch.no_grad():
            crops = [_crop(w, samples, clip_generator(s, _CROP)) for w, s in zip(waveforms, seeds, strict=True)]
            mel = (upstream.log_mel(torch.stack(crops)) - upstream.mean) / upstream.std
            views = torch.stack([self._view(mel, seeds, number) for number in range(2)])
            if self.post_normalize:
                views = (views - views.mean()) / views.std().clamp(min=1e-5)
        return [
            SpectrogramView(examples.inputs, ids=examples.ids, labels=examples.labels, spectrograms=view)
            for view in views
        ]

    def _view(self, mel: Tensor, seeds: Sequence[int], number: int) -> Tensor:
        rows = []
        for index, (clip, seed) in enumerate(zip(mel, seeds, strict=True)):
            draw = clip_generator(seed, _VIEW, number)
            if self.mixup:
                other = (index + integer(1, len(mel) - 1, draw)) % len(mel)
                clip = log_mixup_exp(clip, mel[other], uniform(0, self.mixup, draw))
            rows.append(self.chain(clip, draw))
        return torch.stack(rows)


def clip_seeds(examples: Examples, count: int, generator: torch.Generator) -> Sequence[int]:
    """The clips' own seeds; drawn where the examples have none."""
    if examples.seeds:
        return examples.seeds
    return torch.randint(2**62, (count,), generator=generator).tolist()


def simclr_chain(
    size: int, scale: tuple[float, float] = (0.08, 1.0), strength: float = 1.0, blur: float = 0.5
) -> Chain:
    """SimCLR's augmentations of pictures (Chen et al. 2020, appendix A).

    Args:
        size: of the crops, in pixels.
        scale: range of their area.
        strength: of the colour jitter.
        blur: probability of the blur, whose widths are the paper's at 224 pixels and scaled with the size.
    """
    jitter = ColorJitter(0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength)
    return Chain(
        [
            RandomResizedCrop(size, scale),
            With(0.5, HorizontalFlip()),
            With(0.8, jitter),
            With(0.2, Grayscale()),
            With(blur, _blur(size)),
        ]
    )


def dino_chains(
    global_size: int,
    local_size: int,
    num_local: int = 8,
    global_scale: tuple[float, float] = (0.4, 1.0),
    local_scale: tuple[float, float] = (0.05, 0.4),
    strength: float = 1.0,
) -> list[Chain]:
    """DINO's multi-crop: two global chains, the second with solarisation, and `num_local` local ones.

    `strength` is that of the colour jitter, whose hues turn by .5 at most.

    Source: Caron et al. 2021, appendix C, and the authors' code. Blurs are scaled with the size, as in SimCLR.
    """
    colours = [
        With(0.5, HorizontalFlip()),
        With(0.8, ColorJitter(0.4 * strength, 0.4 * strength, 0.2 * strength, min(0.1 * strength, 0.5))),
        With(0.2, Grayscale()),
    ]
    large, blur = RandomResizedCrop(global_size, global_scale), _blur(global_size)
    first = Chain([large, *colours, blur])
    second = Chain([large, *colours, With(0.1, blur), With(0.2, Solarize())])
    local = Chain([RandomResizedCrop(local_size, local_scale), *colours, With(0.5, _blur(local_size))])
    return [first, second, *[local] * num_local]


def waveform_chain(sample_rate: int) -> Chain:
    """Augmentations of waveforms for views of sounds: room, noise, band, level; none is clipped."""
    half = sample_rate / 2
    return Chain(
        [
            With(0.3, Reverberation(sample_rate=sample_rate)),
            With(0.8, AdditiveNoise((5.0, 25.0))),
            With(0.3, BandLimit((0.0, 0.04 * half), (0.4 * half, 0.8 * half), sample_rate, 0.02 * half)),
            Gain((-6.0, 6.0)),
            LimitPeak(1.0),
        ]
    )


def _blur(size: int) -> GaussianBlur:
    return GaussianBlur((0.1 * size / 224, 2.0 * size / 224)) if size >= 23 else GaussianBlur((0.01, 0.2))


def _crop(waveform: Tensor, samples: int, generator: torch.Generator) -> Tensor:
    if len(waveform) >= samples:
        start = integer(0, len(waveform) - samples, generator)
        return waveform[start : start + samples]
    start = integer(0, samples - len(waveform), generator)
    out = waveform.new_zeros(samples)
    out[start : start + len(waveform)] = waveform
    return out


def _clips(inputs: Inputs, kind: str) -> list[Tensor]:
    value = {"waveforms": inputs.waveforms, "video": inputs.video, "images": inputs.images}[kind]
    if value is None:
        raise InputError(f"These views are of {kind}, the batch has none: give a corpus that has them.")
    return value.unpad() if isinstance(value, Padded) else list(value)


def _inputs(clips: list[Tensor], kind: str) -> Inputs:
    """Augmented clips as a batch."""
    if kind == "waveforms":
        return Inputs(waveforms=Padded(*pad(clips)))
    if kind == "video":
        return Inputs(video=Padded(*pad(clips)))
    if len({clip.shape for clip in clips}) > 1:
        sizes = sorted({tuple(clip.shape) for clip in clips})
        raise InputError(f"Pictures of a view differ in size: {sizes[:3]}. End the chain with a crop to one size.")
    return Inputs(images=torch.stack(clips))
