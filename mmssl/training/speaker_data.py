"""Batches for speaker training: every speaker equally often, speeds as speakers of their own, crops of one length.

Batch number k of a run is a function of the clips, the settings, the seed and k alone, so that a run can be resumed at
any batch and read by any number of workers.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from mmssl.augment.base import Augmentation, integer, uniform
from mmssl.augment.speed import resampled
from mmssl.data.files import natural_key, some
from mmssl.errors import ConfigError, DataError, MediaError
from mmssl.lengths import samples_to_seconds, seconds_to_samples
from mmssl.random import mix
from mmssl.training.readers import AudioReader, Item
from mmssl.types import Clip, Padded

_ORDER, _CLIPS, _CROP, _LENGTH = 1, 2, 3, 4  # streams of random numbers


@dataclass(frozen=True)
class SpeakerBatch:
    """A batch of crops.

    Attributes:
        waveforms: (B, T), all of one length.
        labels: (B,) classes: speaker + number of speakers * place of the speed.
        seeds: one per clip, for what is drawn later.
        ids: of the clips.
        number: how many batches came before it.
    """

    waveforms: Padded
    labels: Tensor
    seeds: tuple[int, ...]
    ids: tuple[str, ...]
    number: int


def speaker_names(clips: Iterable[Clip]) -> list[str]:
    """The speakers of clips, sorted: the place in this list is a speaker's class.

    Raises:
        DataError: a clip has no speaker.
    """
    nameless = [clip.id for clip in clips if not clip.speaker]
    if nameless:
        raise DataError(f"{len(nameless)} clips have no speaker: {some(nameless)}. Give one, or leave them out.")
    return sorted({str(clip.speaker) for clip in clips}, key=natural_key)


def hold_out_speakers(clips: Sequence[Clip], count: int, seed: int = 0) -> tuple[list[Clip], list[Clip]]:
    """Set speakers of the training part aside for development trials.

    Args:
        clips: of the training part.
        count: speakers to set aside, at least 2; at least 2 must be left.
        seed: the choice depends on it and the names alone.

    Returns:
        Clips to train on, and clips of the speakers set aside, in the order given.

    Raises:
        DataError: there are too few speakers, or a clip has none.
    """
    names = speaker_names(clips)
    if not 2 <= count <= len(names) - 2:
        raise DataError(
            f"From {len(names)} speakers 2 to {max(len(names) - 2, 2)} can be set aside for development (2 must be "
            f"left to train on), got {count}."
        )
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(mix(seed))).tolist()
    aside = {names[place] for place in order[:count]}
    train = [clip for clip in clips if clip.speaker not in aside]
    return train, [clip for clip in clips if clip.speaker in aside]


def refuse_overlap(train: Sequence[Clip], dev: Sequence[Clip]) -> None:
    """Refuse speakers or clips that are in both parts.

    Raises:
        DataError: with their names, or a clip has no speaker.
    """
    speakers = set(speaker_names(train)) & set(speaker_names(dev))
    if speakers:
        raise DataError(
            f"{len(speakers)} speakers are both in training and development: "
            f"{some(sorted(speakers, key=natural_key))}. Trials of speakers that are trained on say nothing about "
            "others: set whole speakers aside (hold_out_speakers)."
        )
    places = {(c.audio, c.start) for c in train} & {(c.audio, c.start) for c in dev}
    if places:
        raise DataError(
            f"{len(places)} stretches of sound are both in training and development, under different speakers: "
            f"{some(sorted(str(audio) for audio, _ in places))}. Correct the labels."
        )


def usable_clips(
    clips: Sequence[Clip], reader: AudioReader, min_seconds: float, min_clips: int, on_error: str
) -> tuple[list[Clip], dict[str, str]]:
    """Clips that can be used, and why the others cannot.

    Args:
        clips: to look at.
        reader: measures them.
        min_seconds: shorter clips cannot be used.
        min_clips: speakers with fewer clips cannot be used.
        on_error: "raise", or "skip" to leave out what cannot be used.

    Raises:
        DataError, MediaError: with "raise", for the first kind of trouble that there is.
    """
    if on_error not in ("raise", "skip"):
        raise ConfigError(f"on_error must be 'raise' or 'skip', got {on_error!r}.")
    least = max(seconds_to_samples(min_seconds, reader.sample_rate), reader.least)
    skipped: dict[str, str] = {}
    good: list[Clip] = []
    for clip in clips:
        try:
            extent = reader.measure(clip)
        except (MediaError, DataError) as error:
            if on_error == "raise":
                raise
            skipped[clip.id] = str(error)
            continue
        if extent >= least:
            good.append(clip)
            continue
        seconds, limit = (samples_to_seconds(n, reader.sample_rate) for n in (extent, least))
        skipped[clip.id] = f"It lasts {seconds:.3f} s, shorter than the {limit:.3f} s that are needed."
    if on_error == "raise" and skipped:
        first, why = next(iter(skipped.items()))
        raise DataError(
            f"{len(skipped)} of {len(clips)} clips are too short for speaker training, the first is {first!r}: {why} "
            "Leave them out, lower min_seconds, or have them left out (on_error=skip)."
        )
    counts: dict[str, int] = defaultdict(int)
    for clip in good:
        counts[str(clip.speaker)] += 1
    few = sorted((name for name, count in counts.items() if count < min_clips), key=natural_key)
    if few and on_error == "raise":
        raise DataError(
            f"{len(few)} speakers have fewer than {min_clips} usable clips: {some(few)}. What varies within a speaker "
            "cannot be learned from them: leave them out, lower min_clips, or have them left out (on_error=skip)."
        )
    for clip in good:
        if str(clip.speaker) in few:
            skipped[clip.id] = f"Its speaker {clip.speaker} has fewer than {min_clips} usable clips."
    return [clip for clip in good if clip.id not in skipped], skipped


class SpeakerBatches(Dataset[SpeakerBatch]):
    """Batch number k of a run, for any k.

    Speakers come in passes: in each every speaker once, in a new order, with `clips_per_speaker` clips; a speaker's own
    clips come in passes as well. So speakers are equally frequent however many clips they have, and of each all clips
    are. With speed perturbation each clip is played at a speed that is drawn, and every speed of a speaker is a class:
    label + number of speakers * place of the speed.

    Args:
        clips: usable ones, of at least two speakers.
        reader: how they are read, whole.
        batch_size: clips of a batch; a multiple of `clips_per_speaker`.
        crop: shortest and longest crop in samples; one length is drawn per batch. Shorter clips are repeated.
        clips_per_speaker: in a row.
        speeds: factors, the first of them 1; (1.0,) for none.
        augmentation: of the crops, or None.
        seed: of all that is drawn.
        cache_bytes: memory for decoded clips, per process.

    Attributes:
        speakers: their names; the place is the label.

    Raises:
        ConfigError: a setting out of range.
        DataError: fewer than two speakers.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        reader: AudioReader,
        batch_size: int,
        crop: tuple[int, int],
        *,
        clips_per_speaker: int = 1,
        speeds: Sequence[float] = (1.0,),
        augmentation: Augmentation | None = None,
        seed: int = 0,
        cache_bytes: int = 0,
    ) -> None:
        if clips_per_speaker < 1 or batch_size < 2 or batch_size % clips_per_speaker:
            raise ConfigError(
                f"batch_size must be at least 2 and a multiple of clips_per_speaker, got {batch_size} and "
                f"{clips_per_speaker}."
            )
        if not reader.least <= crop[0] <= crop[1]:
            raise ConfigError(f"A crop must have {reader.least} samples at least, shortest first, got {crop}.")
        self.speeds = check_speeds(speeds)
        self.clips, self.reader, self.batch_size, self.crop = list(clips), reader, batch_size, crop
        self.clips_per_speaker, self.augmentation, self.seed = clips_per_speaker, augmentation, seed
        self.speakers = speaker_names(clips)
        if len(self.speakers) < 2:
            raise DataError(f"Speaker training needs at least two speakers, got {len(self.speakers)}.")
        place = {name: number for number, name in enumerate(self.speakers)}
        self._members: list[list[int]] = [[] for _ in self.speakers]
        for index, clip in enumerate(self.clips):
            self._members[place[str(clip.speaker)]].append(index)
        self._cache: dict[int, Item] = {}
        self._free = cache_bytes
        self._orders: dict[tuple[int, ...], list[int]] = {}

    def chosen(self, number: int) -> list[tuple[int, int]]:
        """(speaker, clip) of every item of a batch."""
        per_batch = self.batch_size // self.clips_per_speaker
        items = []
        for draw in range(number * per_batch, (number + 1) * per_batch):
            turn, place = divmod(draw, len(self.speakers))
            speaker = self._order((_ORDER, turn), len(self.speakers))[place]
            members = self._members[speaker]
            for count in range(turn * self.clips_per_speaker, (turn + 1) * self.clips_per_speaker):
                turn_of_clips, clip = divmod(count, len(members))
                items.append((speaker, members[self._order((_CLIPS, speaker, turn_of_clips), len(members))[clip]]))
        return items

    def __getitem__(self, number: int) -> SpeakerBatch:
        """Batch `number` of the run.

        Raises:
            MediaError: a file that cannot be read.
        """
        size = integer(*self.crop, torch.Generator().manual_seed(mix(self.seed, _LENGTH, number)))
        crops, labels, seeds, ids = [], [], [], []
        for place, (speaker, index) in enumerate(self.chosen(number)):
            seeds.append(mix(self.seed, _CROP, number, place))
            generator = torch.Generator().manual_seed(seeds[-1])
            speed = integer(0, len(self.speeds) - 1, generator)
            crop = self._crop(self._read(index), self.speeds[speed], size, generator)
            crops.append(crop if self.augmentation is None else self.augmentation(crop, generator))
            labels.append(speaker + len(self.speakers) * speed)
            ids.append(self.clips[index].id)
        lengths = torch.full((len(crops),), size)
        return SpeakerBatch(Padded(torch.stack(crops), lengths), torch.tensor(labels), tuple(seeds), tuple(ids), number)

    def _crop(self, wave: Tensor, speed: Fraction, size: int, generator: torch.Generator) -> Tensor:
        """`size` samples of a clip played at a speed, from a random place."""
        needed = -(-size * speed.numerator // speed.denominator)
        start = uniform(0, 1, generator)
        if len(wave) < needed:
            # repeated from a random place on, so that the end of a short clip is not always where the crop begins
            wave = wave.repeat(-(-needed // len(wave)) + 1)
        first = int(start * (len(wave) - needed + 1))
        stretch = wave[first : first + needed]
        return (stretch if speed == 1 else resampled(stretch, speed))[:size]

    def _read(self, index: int) -> Tensor:
        item = self._cache.get(index)
        if item is None:
            clip = self.clips[index]
            item = self.reader.load(clip, 0, 2**62)
            if item.nbytes <= self._free:
                self._cache[index] = item
                self._free -= item.nbytes
        assert item.waveform is not None
        return item.waveform

    def _order(self, place: tuple[int, ...], size: int) -> list[int]:
        """A shuffle of 0 ... size - 1 that belongs to a place in the run."""
        if place not in self._orders:
            if len(self._orders) > 4 * len(self.speakers) + 16:
                self._orders.clear()
            generator = torch.Generator().manual_seed(mix(self.seed, *place))
            self._orders[place] = torch.randperm(size, generator=generator).tolist()
        return self._orders[place]


def check_speeds(speeds: Sequence[float]) -> tuple[Fraction, ...]:
    """Speeds as fractions of a hundred.

    Raises:
        ConfigError: the first is not 1, one is out of [0.5, 2], or one occurs twice.
    """
    exact = tuple(Fraction(round(100 * speed), 100) for speed in speeds)
    if not exact or exact[0] != 1 or not all(0.5 <= s <= 2 for s in exact) or len(set(exact)) < len(exact):
        raise ConfigError(
            f"speeds must be different factors from 0.5 to 2, the first of them 1 (such as 1.0, 0.9, 1.1), got "
            f"{list(speeds)}."
        )
    return exact


class _Onwards(Sampler[int]):
    """Numbers from a first one on."""

    def __init__(self, first: int, end: int) -> None:
        self.first, self.end = first, end

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.end))


def speaker_loader(batches: SpeakerBatches, first: int, end: int, num_workers: int = 0) -> DataLoader[SpeakerBatch]:
    """Batches `first` ... `end` - 1 of a run, in order, whatever the number of workers."""
    generator = torch.Generator().manual_seed(0)
    return DataLoader(
        batches, batch_size=None, sampler=_Onwards(first, end), num_workers=num_workers, generator=generator
    )


def fingerprint(clips: Sequence[Clip], settings: Mapping[str, object]) -> str:
    """A short name for clips and settings, by which a run that is resumed knows its own."""
    digest = hashlib.sha256()
    for clip in clips:
        digest.update(repr((clip.id, clip.speaker, clip.start, clip.duration)).encode())
    digest.update(repr(sorted(settings.items())).encode())
    return digest.hexdigest()[:16]
