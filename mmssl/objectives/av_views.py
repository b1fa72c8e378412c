"""Views of audio-visual pretexts: which stretch of sound stands beside which stretch of pictures.

All are made from aligned examples: waveforms and video of the same stretch of time, or waveforms and one picture each.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

import torch
from torch import Tensor

from mmssl.errors import ConfigError, InputError
from mmssl.lengths import pad
from mmssl.objectives.av_augment import PairAugmentation
from mmssl.objectives.av_samplers import (
    check_control,
    partners,
    shifted_places,
    true_and_false,
)
from mmssl.objectives.schedule import Schedule, value_at
from mmssl.objectives.types import Encoder, Examples, View
from mmssl.objectives.views import Views
from mmssl.random import mix
from mmssl.types import Inputs, Padded

# places where something is drawn for a clip: two of them never draw the same numbers
_CROP, _SHIFT, _HARD = 11, 12, 13


def seeds_of(examples: Examples, generator: torch.Generator) -> list[int]:
    """The clips' own seeds, drawn where the examples have none."""
    return list(examples.seeds) or torch.randint(2**31, (batch_size(examples.inputs),), generator=generator).tolist()


def clip_generators(examples: Examples, place: int, generator: torch.Generator) -> list[torch.Generator]:
    """A generator for each clip, from its seed where the examples have seeds, so that no draw depends on the batch."""
    return [torch.Generator().manual_seed(mix(seed, place)) for seed in seeds_of(examples, generator)]


class AlignedCrops(Views):
    """One view: of each clip a stretch of sound, and pictures shown within it; for contrasts between clips.

    Args:
        audio_seconds: length of the sound; None for all of it.
        num_frames: pictures, one after another, at a random place within the stretch; None for all of it.
        control: see `check_control`.
        augment: of what was cropped, in training alone; None for nothing.

    Raises:
        ConfigError: a length that is not positive, or an unknown control.
    """

    def __init__(
        self,
        audio_seconds: float | None = None,
        num_frames: int | None = None,
        control: str = "none",
        augment: PairAugmentation | None = None,
    ) -> None:
        super().__init__()
        self.augment = augment
        if (audio_seconds is not None and not audio_seconds > 0) or (num_frames is not None and num_frames < 1):
            raise ConfigError(
                f"audio_seconds must be above 0 and num_frames at least 1, got {audio_seconds} and {num_frames}."
            )
        self.audio_seconds, self.num_frames, self.control = audio_seconds, num_frames, check_control(control)

    def forward(self, examples: Examples, encoder: Encoder, generator: torch.Generator) -> list[View]:
        """The view; see `Views.forward`."""
        return [View(self.cropped(examples, encoder, generator), ids=examples.ids, starts=examples.starts)]

    def cropped(self, examples: Examples, encoder: Encoder, generator: torch.Generator) -> Inputs:
        """What was cropped, after the control."""
        inputs = examples.inputs
        if inputs.waveforms is None or (inputs.video is None) == (inputs.images is None):
            raise InputError("This pretext takes waveforms, and either video or images: one of each for each clip.")
        if inputs.video is not None:
            inputs = self._with_video(examples, encoder, generator)
        elif self.audio_seconds is not None:
            raise ConfigError("audio_seconds is for video: with single pictures the sound is taken whole.")
        if self.augment is not None and self.training:
            inputs = self.augment(inputs, seeds_of(examples, generator))
        return controlled(inputs, groups_of(examples, None), self.control, generator)

    def _with_video(self, examples: Examples, encoder: Encoder, generator: torch.Generator) -> Inputs:
        waveforms, video = both(examples.inputs)
        rate, fps = rates(encoder)
        wanted = None if self.audio_seconds is None else round(self.audio_seconds * rate)
        sounds, pictures = [], []
        draws = clip_generators(examples, _CROP, generator)
        for sound, frames, draw in zip(waveforms.unpad(), video.unpad(), draws, strict=True):
            samples = len(sound) if wanted is None else wanted
            shown = len(frames) if wanted is None else int(samples * fps / rate + 1e-6)
            count = shown if self.num_frames is None else self.num_frames
            places = min(len(frames) - shown, int((len(sound) - samples) * fps / rate + 1e-6)) + 1
            if places < 1 or not 1 <= count <= shown:
                raise InputError(
                    f"A clip of {len(sound) / rate:.2f} s with {len(frames)} pictures is too short for "
                    f"{samples / rate:.2f} s of sound and {max(count, 1)} pictures within it: leave such clips out, "
                    "read longer segments, or lower audio_seconds or num_frames."
                )
            place = int(torch.randint(places, (), generator=draw))
            inner = int(torch.randint(shown - count + 1, (), generator=draw))
            start = round(place * rate / fps)
            sounds.append(sound[start : start + samples])
            pictures.append(frames[place + inner : place + inner + count])
        _check_one_length(sounds, pictures)
        return Inputs(Padded(*pad(sounds)), Padded(*pad(pictures)))


class Correspondence(AlignedCrops):
    """One view of pairs of sound and pictures, half of them true ("match" 1), half with the sound of another clip.

    Every clip is encoded once and is in two pairs. Labels: "match", and "audio" and "video", the rows of either side.

    Source: Arandjelovic and Zisserman 2017, "Look, Listen and Learn": 1 s of sound and a picture shown within it.

    Args:
        audio_seconds, num_frames, control, augment: see `AlignedCrops`.
        different: label of the examples, such as "speaker", in which the clips of a false pair must differ.
        same: label in which they must agree, so that what goes with that label tells nothing; see `true_and_false`.

    Raises:
        ConfigError: see `AlignedCrops`; or both labels are given.
    """

    def __init__(
        self,
        audio_seconds: float | None = 1.0,
        num_frames: int | None = 1,
        control: str = "none",
        different: str | None = None,
        same: str | None = None,
        augment: PairAugmentation | None = None,
    ) -> None:
        super().__init__(audio_seconds, num_frames, control, augment)
        if different is not None and same is not None:
            raise ConfigError(f"False pairs either differ in {different!r} or agree in {same!r}: give one of the two.")
        self.different, self.same = different, same

    def forward(self, examples: Examples, encoder: Encoder, generator: torch.Generator) -> list[View]:
        """The view; see `Views.forward`."""
        inputs = self.cropped(examples, encoder, generator)
        groups = groups_of(examples, self.same or self.different)
        if self.same is not None:
            # of clips without the label nobody knows that they agree: each stands alone, in no pair
            groups = [(clip,) if group == -1 else group for clip, group in enumerate(groups)]
        audio, video, match = true_and_false(groups, generator, within=self.same is not None)
        labels = {"audio": audio, "video": video, "match": match}
        return [View(inputs, ids=examples.ids, labels=on_device(labels, inputs))]


class Synchrony(Views):
    """One view of pairs of sound and video, half of them of one time ("match" 1), half shifted within the segment.

    Of each clip's segment two crops are taken, at two places; sound and video of one place are a true pair, those of
    different places a false one. So each crop is in one true and one false pair, nothing is wrapped or padded, and the
    places of either side have one distribution in true and false pairs. Easy negatives take the sound of another clip.

    Sources: Owens and Efros 2018, "Audio-Visual Scene Analysis with Self-Supervised Multisensory Features"; easy and
    hard negatives of Korbar et al. 2018, "Cooperative Learning of Audio and Video Models from Self-Supervised
    Synchronization", section 3.3.

    Args:
        crop_seconds: of each crop.
        min_shift, max_shift: in seconds, of a false pair.
        hard_share: share of clips whose false pairs are shifted, the others being easy; a schedule goes by epochs.
        control: see `check_control`; "shuffled" gives each clip the whole sound of another before anything is cropped.
        augment: of each segment before it is cropped, in training alone; None for nothing.

    Raises:
        ConfigError: a value out of range.
    """

    def __init__(
        self,
        crop_seconds: float = 1.0,
        min_shift: float = 0.2,
        max_shift: float = 2.0,
        hard_share: float | Schedule = 1.0,
        control: str = "none",
        augment: PairAugmentation | None = None,
    ) -> None:
        super().__init__()
        self.augment = augment
        share = value_at(hard_share, 0)
        if not crop_seconds > 0 or not 0 < min_shift <= max_shift or not 0 <= share <= 1:
            raise ConfigError(
                f"Synchrony needs crop_seconds above 0, 0 < min_shift <= max_shift and hard_share in [0, 1], "
                f"got {crop_seconds}, {min_shift}, {max_shift} and {share}."
            )
        self.crop_seconds, self.min_shift, self.max_shift = crop_seconds, min_shift, max_shift
        self.hard_share, self.control = hard_share, check_control(control)

    def forward(self, examples: Examples, encoder: Encoder, generator: torch.Generator) -> list[View]:
        """The view: rows 2 b and 2 b + 1 are the two crops of clip b. See `Views.forward`."""
        rate, fps = rates(encoder)
        shifts = round(self.min_shift * fps), round(self.max_shift * fps)
        if shifts[0] < 1:
            raise ConfigError(f"min_shift = {self.min_shift} s is less than one picture at {fps:g} pictures a second.")
        groups = groups_of(examples, None)
        inputs = examples.inputs
        if self.augment is not None and self.training:
            inputs = self.augment(inputs, seeds_of(examples, generator))
        inputs = controlled(inputs, groups, self.control, generator)
        waveforms, video = both(inputs)
        frames, samples = round(self.crop_seconds * fps), round(self.crop_seconds * rate)
        sounds, pictures = [], []
        draws = clip_generators(examples, _SHIFT, generator)
        for sound, shown, draw in zip(waveforms.unpad(), video.unpad(), draws, strict=True):
            places = min(len(shown) - frames, int((len(sound) - samples) * fps / rate + 1e-6)) + 1
            for place in shifted_places(places, *shifts, draw):
                start = round(place * rate / fps)
                sounds.append(sound[start : start + samples])
                pictures.append(shown[place : place + frames])
        labels = self._pairs(examples, groups, generator)
        return [View(Inputs(Padded(*pad(sounds)), Padded(*pad(pictures))), labels=on_device(labels, inputs))]

    def _pairs(self, examples: Examples, groups: list[Hashable], generator: torch.Generator) -> dict[str, Tensor]:
        """Rows of either side and labels, 4 B pairs: each crop with its own sound, then with a false one."""
        count = len(groups)
        share = value_at(self.hard_share, examples.epoch)
        draws = clip_generators(examples, _HARD, generator)
        hard = [float(torch.rand((), generator=draw)) < share for draw in draws]
        easy = [clip for clip in range(count) if not hard[clip]]
        other = list(range(count))
        if len({groups[clip] for clip in easy}) > 1:
            order = partners([groups[clip] for clip in easy], generator).tolist()
            other = [easy[order[easy.index(clip)]] if clip in easy else clip for clip in range(count)]
        false = [
            2 * other[clip] + (crop if other[clip] != clip else 1 - crop) for clip in range(count) for crop in (0, 1)
        ]
        own = torch.arange(2 * count)
        match = torch.cat([torch.ones_like(own), torch.zeros_like(own)])
        return {"audio": torch.cat([own, torch.tensor(false)]), "video": own.repeat(2), "match": match}


def controlled(inputs: Inputs, groups: list[Hashable], control: str, generator: torch.Generator) -> Inputs:
    """Inputs after a control: see `check_control`. Noise stands in the place of a modality that is left out.

    It is noise and not zeros, because a batch norm that has only met zeros has no scale.
    """
    waveforms, video, images = inputs.waveforms, inputs.video, inputs.images
    if control == "shuffled" and waveforms is not None:
        order = partners(groups, generator).to(inputs.device)
        return replace(inputs, waveforms=Padded(waveforms.data[order], waveforms.lengths[order]))
    if control == "video_only" and waveforms is not None:
        noise = 0.1 * torch.randn(waveforms.data.shape, generator=generator)
        return replace(inputs, waveforms=Padded(noise.to(waveforms.data), waveforms.lengths))
    if control == "audio_only" and video is not None:
        noise = torch.rand(video.data.shape, generator=generator)
        return replace(inputs, video=Padded(noise.to(video.data), video.lengths))
    if control == "audio_only" and images is not None:
        return replace(inputs, images=torch.rand(images.shape, generator=generator).to(images))
    return inputs


def groups_of(examples: Examples, label: str | None) -> list[Hashable]:
    """What false pairs go by: the value of a label, else the clip.

    Raises:
        InputError: the examples do not have that label.
    """
    if label is None:
        return list(examples.ids) or list(range(batch_size(examples.inputs)))
    if label not in examples.labels:
        raise InputError(
            f"False pairs go by {label!r}, which these examples do not have "
            f"(they have {', '.join(examples.labels) or 'no labels'}): name it in pretrain.labels."
        )
    return examples.labels[label].tolist()


def both(inputs: Inputs) -> tuple[Padded, Padded]:
    """Waveforms and video.

    Raises:
        InputError: one of them is missing.
    """
    if inputs.waveforms is None or inputs.video is None:
        raise InputError("This pretext takes waveforms and video of the same clips: give a corpus with both.")
    return inputs.waveforms, inputs.video


def rates(encoder: Encoder) -> tuple[int, float]:
    """Sample rate and pictures a second of an encoder of both.

    Raises:
        ConfigError: it takes one of them only.
    """
    spec = encoder.upstream.spec
    if spec.sample_rate is None or spec.video_fps is None:
        raise ConfigError(f"{type(encoder.upstream).__name__} takes {' and '.join(spec.inputs)}; both are needed here.")
    return spec.sample_rate, spec.video_fps


def _check_one_length(sounds: list[Tensor], pictures: list[Tensor]) -> None:
    if len({len(sound) for sound in sounds}) > 1 or len({len(shown) for shown in pictures}) > 1:
        raise InputError(
            "Sound and pictures of clips of unequal length would be paired by their length alone: read segments of one "
            "length, or set audio_seconds and num_frames."
        )


def on_device(labels: dict[str, Tensor], inputs: Inputs) -> dict[str, Tensor]:
    """Labels where the inputs are."""
    return {name: values.to(inputs.device) for name, values in labels.items()}


def batch_size(inputs: Inputs) -> int:
    """Number of clips."""
    for item in (inputs.waveforms, inputs.video):
        if item is not None:
            return len(item.lengths)
    return 0 if inputs.images is None else len(inputs.images)
