"""Which sound goes with which pictures: the draws of audio-visual pretexts, each a function that is tested by itself.

A pretext of true and false pairs is worth what its sampler is worth: if the sound alone, the pictures alone or the
places of the crops tell false from true, that is what will be learnt. Here every sound and every picture of a batch
therefore occurs in as many true pairs as in false ones, so that neither says anything by itself.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from mmssl.errors import ConfigError, InputError

CONTROLS = ("none", "shuffled", "audio_only", "video_only")


def check_control(control: str) -> str:
    """The name of a control.

    "none" trains on the true pairing; "shuffled" first gives each clip the sound of another, so that the two have
    nothing to do with each other; "audio_only" and "video_only" put noise in the place of the other modality. A
    pretext that is learnt under a control is learnt without the two modalities' having anything in common.

    Raises:
        ConfigError: there is no such control.
    """
    if control not in CONTROLS:
        raise ConfigError(f"control must be one of {', '.join(CONTROLS)}, got {control!r}.")
    return control


def partners(groups: Sequence[Hashable], generator: torch.Generator) -> Tensor:
    """For each clip another one of another group, each clip being somebody's partner once: a derangement.

    With one clip to a group the partner of a clip is uniform over all others. With larger groups every clip of another
    group may be drawn, those of large groups more often.

    Args:
        groups: of each clip; clips of one group (a speaker, or one clip that occurs twice) are never partners.
        generator: on the CPU.

    Returns:
        (B,) int64, a permutation.

    Raises:
        InputError: one group has more than half of the clips, so that there is no such permutation.
    """
    count = len(groups)
    sizes: dict[Hashable, int] = {}
    for group in groups:
        sizes[group] = sizes.get(group, 0) + 1
    largest = max(sizes.values(), default=0)
    if count < 2 or 2 * largest > count:
        raise InputError(
            f"A false pair takes its sound from another clip, but of the {count} clips of this batch {largest} are of "
            "one group (the same clip or speaker): use larger batches, or pairs within the speaker."
        )
    places = torch.randperm(count, generator=generator).tolist()
    names = list(sizes)
    rank = dict(zip(names, torch.randperm(len(names), generator=generator).tolist(), strict=True))
    places.sort(key=lambda clip: rank[groups[clip]])
    # Clips of a group lie together; a rotation by the size of the largest group leads out of each of them.
    chosen = torch.empty(count, dtype=torch.int64)
    for position, clip in enumerate(places):
        chosen[clip] = places[(position + largest) % count]
    return chosen


def partners_within(groups: Sequence[Hashable], generator: torch.Generator) -> Tensor:
    """For each clip another one of the same group, uniform over them, each clip being somebody's partner once.

    Args:
        groups: of each clip, such as its speaker.
        generator: on the CPU.

    Returns:
        (B,) int64, a permutation that leaves the one clip of a group in its place and no other.
    """
    chosen = torch.arange(len(groups))
    places: dict[Hashable, list[int]] = {}
    for clip, group in enumerate(groups):
        places.setdefault(group, []).append(clip)
    for clips in places.values():
        # along a random cycle through the group, the next clip is any of the others
        cycle = torch.tensor(clips)[torch.randperm(len(clips), generator=generator)]
        chosen[cycle] = cycle.roll(-1)
    return chosen


def true_and_false(
    groups: Sequence[Hashable], generator: torch.Generator, within: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """A true and a false pair for each clip; each sound and each picture is in one true and one false pair.

    Source: the task of Arandjelovic and Zisserman 2017, "Look, Listen and Learn", section 3, with a pair of each kind
    to a clip as in Owens and Efros 2018, section 3.

    Args:
        groups: of each clip, see `partners` and `partners_within`.
        generator: on the CPU.
        within: the two clips of a false pair are of one group, and not of two; clips alone in theirs are in no pair.

    Returns:
        Clip of the sound, clip of the pictures, 1 for true pairs and 0 for false ones: (2 P,) int64 each, of P clips.

    Raises:
        InputError: see `partners`; or no clip has another one in its group.
    """
    own = torch.arange(len(groups))
    other = partners_within(groups, generator) if within else partners(groups, generator)
    if within:
        kept = other != own
        if not kept.any():
            raise InputError(
                f"The clips of a false pair are to be of one group, but the {len(groups)} clips here are of as "
                "many groups: use larger batches, or make them of groups (pretrain.group_by)."
            )
        own, other = own[kept], other[kept]
    match = torch.cat([torch.ones_like(own), torch.zeros_like(own)])
    return torch.cat([own, other]), own.repeat(2), match


def shifted_places(places: int, min_shift: int, max_shift: int, generator: torch.Generator) -> tuple[int, int]:
    """Two places in a segment, at an allowed distance: uniform over all ordered pairs of places at such a distance.

    The draw is symmetric, so that first and second place have one distribution; both crops lie inside the segment, so
    that nothing is wrapped or padded.

    Source: the negatives of Owens and Efros 2018, "Audio-Visual Scene Analysis with Self-Supervised Multisensory
    Features", section 3, are shifted by 2.0 to 5.8 s.

    Args:
        places: places where a crop may start, 0 ... places - 1.
        min_shift, max_shift: smallest and largest distance.
        generator: on the CPU.

    Raises:
        ConfigError: shifts out of order, or a smallest shift of 0, at which false pairs would be true.
        InputError: the segment is too short for the smallest shift.
    """
    if not 1 <= min_shift <= max_shift:
        raise ConfigError(f"Shifts must be 1 <= min_shift <= max_shift, got {min_shift} and {max_shift}.")
    if places <= min_shift:
        raise InputError(
            f"A crop has {places} places in its segment, a shift takes at least {min_shift + 1}: read longer segments, "
            "crop less of them, or lower min_shift."
        )
    shifts = range(min_shift, min(max_shift, places - 1) + 1)
    weights = torch.tensor([places - shift for shift in shifts], dtype=torch.float64)
    shift = shifts[int(torch.multinomial(weights, 1, generator=generator))]
    first = int(torch.randint(places - shift, (), generator=generator))
    if int(torch.randint(2, (), generator=generator)):
        return first, first + shift
    return first + shift, first


def kept_modalities(dropout: float, audio_dropout: float, generator: torch.Generator) -> tuple[bool, bool]:
    """Whether sound and pictures are kept: with probability `dropout` one of them is not.

    Source: Shi et al. 2022, "Learning Audio-Visual Speech Representation by Masked Multimodal Cluster Prediction",
    section 3.4 (modality dropout).

    Args:
        dropout: probability that one modality is dropped.
        audio_dropout: probability that it is the sound.
        generator: on the CPU.
    """
    drops, drops_audio = torch.rand(2, generator=generator).tolist()
    if drops >= dropout:
        return True, True
    return not drops_audio < audio_dropout, drops_audio < audio_dropout


def other_spans(mask: Tensor, span: int, generator: torch.Generator) -> Tensor:
    """For each frame of a clip the frame that stands in its place: hidden spans take those of other places.

    A run of hidden frames is taken in pieces of at most `span` frames; each is replaced by a stretch of the same length
    of the same clip that does not overlap it, drawn uniformly among those. A piece for which there is no such stretch
    takes single frames from outside it, and one that is the whole clip is left as it is.

    Source: Shi et al. 2022, section 3.3 (masking by substitution).

    Args:
        mask: (T,) bool, True for hidden frames.
        span: frames of a piece.
        generator: on the CPU.

    Returns:
        (T,) int64 indices of frames.
    """
    size = len(mask)
    index = torch.arange(size)
    hidden = mask.cpu().tolist()
    start = 0
    while start < size:
        if not hidden[start]:
            start += 1
            continue
        end = start
        while end < min(size, start + span) and hidden[end]:
            end += 1
        length = end - start
        before, after = max(start - length + 1, 0), max(size - length + 1 - end, 0)
        if before + after:
            chosen = int(torch.randint(before + after, (), generator=generator))
            source = chosen if chosen < before else end + chosen - before
            index[start:end] = torch.arange(source, source + length)
        elif length < size:
            outside = torch.cat([torch.arange(start), torch.arange(end, size)])
            index[start:end] = outside[torch.randint(len(outside), (length,), generator=generator)]
        start = end
    return index
