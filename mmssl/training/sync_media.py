"""Sound and pictures of real clips, shifted against each other by a known time before any encoder sees them.

The pictures of a pair are those of the clip's middle; its sound begins `shift` frames earlier, which makes it come that
much late. Both are cut out of one recording: nothing is rolled or padded, and no stream alone tells the shift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmssl.errors import DataError, MediaError
from mmssl.lengths import pad, seconds_to_samples
from mmssl.media.sync import load_audio_video
from mmssl.types import Clip, Inputs, Padded, UpstreamSpec

_FREE_SIZE = 96
"""Side of pictures for encoders that take any size."""


@dataclass(frozen=True)
class ShiftedPair:
    """Which sound goes with which pictures.

    Attributes:
        sound, pictures: clips; the same one, but for dubbed pairs.
        shift: frames of the video by which the sound comes late; negative for early.
    """

    sound: Clip
    pictures: Clip
    shift: int = 0


class MediaReader:
    """Reads whole clips as an encoder of sound and video takes them; the last few stay in memory.

    Args:
        spec: of the encoder.
        keep: clips that stay.

    Raises:
        DataError: the encoder does not take both.
    """

    def __init__(self, spec: UpstreamSpec, keep: int = 4) -> None:
        if spec.sample_rate is None or spec.video_fps is None:
            raise DataError(f"Synchrony needs an encoder of sound and video; this one takes {', '.join(spec.inputs)}.")
        self.spec, self.rate, self.fps, self.keep = spec, spec.sample_rate, spec.video_fps, keep
        self._kept: dict[Clip | str, tuple[Tensor, Tensor]] = {}

    def whole(self, clip: Clip) -> tuple[Tensor, Tensor]:
        """Waveform (T,) and pictures (F, 3, H, W) uint8 of the time for which the clip has both.

        Raises:
            DataError: the clip has no video.
            MediaError: a file cannot be read, or has no sound.
        """
        if clip.id in self._kept:
            return self._kept[clip.id]
        if clip.video is None:
            raise DataError(f"The clip {clip.id!r} has no video: synchrony compares sound and pictures.")
        both = load_audio_video(
            clip.video,
            audio=None if clip.audio in (None, clip.video) else clip.audio,
            fps=self.fps,
            size=self.spec.image_size or (_FREE_SIZE, _FREE_SIZE),
            sample_rate=self.rate,
            start=clip.start,
            duration=clip.duration,
            as_uint8=True,
        )
        self._kept[clip.id] = both.waveform, both.video
        while len(self._kept) > self.keep:
            del self._kept[next(iter(self._kept))]
        return both.waveform, both.video

    def inputs(self, clip: Clip) -> Inputs:
        """A batch of the whole clip.

        Raises:
            MediaError: it is shorter than the encoder takes.
        """
        return self._batch(clip, *self.whole(clip))

    def pair(self, pair: ShiftedPair, reach: int) -> Inputs:
        """A batch of one pair.

        Args:
            pair: what to read.
            reach: frames that stay free at both ends of the pictures, so that every shift of up to as many frames
                gives pairs of one length.

        Raises:
            DataError: a shift beyond the reach, or a clip that leaves nothing between both ends.
            MediaError: a file cannot be read, or less is left than the encoder takes.
        """
        if abs(pair.shift) > reach:
            raise DataError(f"A shift of {pair.shift} frames is beyond the reach of {reach}.")
        waveform, pictures = self.whole(pair.sound)[0], self.whole(pair.pictures)[1]
        sounding = int(len(waveform) * self.fps / self.rate + 1e-6)
        count = min(sounding, len(pictures)) - 2 * reach
        if count < 1:
            raise DataError(
                f"The clip {pair.pictures.id!r} has {count + 2 * reach} frames, too few for shifts of {reach} frames "
                "either way: leave it out, or lower max_shift."
            )
        begin = seconds_to_samples((reach - pair.shift) / self.fps, self.rate)
        size = seconds_to_samples(count / self.fps, self.rate)
        return self._batch(pair.pictures, waveform[begin : begin + size], pictures[reach : reach + count])

    def _batch(self, clip: Clip, waveform: Tensor, pictures: Tensor) -> Inputs:
        least, most = self.spec.min_length, self.spec.max_length
        if len(waveform) < least or (most is not None and len(waveform) > most):
            raise MediaError(
                f"The clip {clip.id!r} gives {len(waveform) / self.rate:.3f} s of sound and pictures; the encoder "
                f"takes {least / self.rate:.3f} s" + (" or more." if most is None else f" to {most / self.rate:.3f} s.")
            )
        video = Padded(*pad([pictures]))
        return Inputs(Padded(*pad([waveform])), Padded(video.data.float().div_(255), video.lengths))


class ShiftedPairs(Dataset[tuple[Inputs, Tensor]]):
    """Items are (inputs of one pair, shift in frames), read from media files.

    Args:
        reader: of the encoder's rates and sizes.
        pairs: what to read.
        reach: see `MediaReader.pair`.
    """

    def __init__(self, reader: MediaReader, pairs: Sequence[ShiftedPair], reach: int) -> None:
        self.reader, self.pairs, self.reach = reader, list(pairs), reach

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Inputs, Tensor]:
        pair = self.pairs[index]
        return self.reader.pair(pair, self.reach), torch.tensor(pair.shift)


def drawn_pairs(
    clips: Sequence[Clip], per_clip: int, max_shift: int, generator: torch.Generator, least: int = 0
) -> list[ShiftedPair]:
    """Pairs of each clip's own sound and pictures at different shifts, drawn without repetition.

    Args:
        clips: to draw for, in this order.
        per_clip: pairs of each, at most as many as there are shifts.
        max_shift: largest shift, in frames.
        generator: draws.
        least: smallest shift, either way.
    """
    shifts = torch.tensor([s for s in range(-max_shift, max_shift + 1) if abs(s) >= least])
    found = []
    for clip in clips:
        chosen = shifts[torch.randperm(len(shifts), generator=generator)[:per_clip]]
        found += [ShiftedPair(clip, clip, int(shift)) for shift in chosen]
    return found


def dubbed_pairs(clips: Sequence[Clip]) -> list[ShiftedPair]:
    """The pictures of each clip with the sound of another one: of the same speaker where there is one."""
    found = []
    for place, clip in enumerate(clips):
        others = [*clips[place + 1 :], *clips[:place]]
        alike = [other for other in others if other.speaker is not None and other.speaker == clip.speaker]
        found += [ShiftedPair((alike or others)[0], clip)] if others else []
    return found
