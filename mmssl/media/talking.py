"""What a drawn face does while it speaks: the mouth follows the phonemes, the rest follows the emotion.

Emotions are departures from the face's own look at rest, as they are departures from a voice's own manner in the sound:
they scatter from speaker to speaker and from clip to clip, come in different strengths, and overlap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from mmssl.media.face import HAIR_STYLES, Colour, Expression, Identity, Pose

if TYPE_CHECKING:
    import numpy

    from mmssl.media.mini import Phone

# Shape of the mouth for each sound: opening, spread, teeth, tongue.
_VISEMES = {
    **dict.fromkeys("mbp", (0.0, -0.1, 0.0, 0.0)),
    **dict.fromkeys("fv", (0.06, 0.1, 0.9, 0.0)),
    **dict.fromkeys("sz", (0.12, 0.5, 1.0, 0.0)),
    **dict.fromkeys("tdn", (0.16, 0.2, 0.7, 0.3)),
    **dict.fromkeys("ʃʒ", (0.2, -0.6, 0.8, 0.0)),
    **dict.fromkeys("θð", (0.17, 0.2, 0.4, 1.0)),
    **dict.fromkeys("kɡgŋh", (0.25, 0.0, 0.2, 0.2)),
    **dict.fromkeys("iɪj", (0.24, 0.9, 0.7, 0.0)),
    **dict.fromkeys("eɛ", (0.5, 0.55, 0.5, 0.2)),
    **dict.fromkeys("aæ", (0.85, 0.3, 0.4, 0.3)),
    **dict.fromkeys("ɑʌɐ", (0.8, -0.05, 0.3, 0.2)),
    **dict.fromkeys("ɒɔ", (0.65, -0.6, 0.1, 0.1)),
    **dict.fromkeys("əɜᵻ", (0.4, 0.0, 0.3, 0.2)),
    **dict.fromkeys("uʊw", (0.2, -1.0, 0.0, 0.0)),
    "o": (0.45, -0.8, 0.0, 0.0),
    "l": (0.3, 0.1, 0.4, 0.9),
    "ɹ": (0.22, -0.5, 0.3, 0.2),
}
VOWELS = frozenset("aæɑɒɔeɛəɜiɪuʊʌɐoᵻ")
_SILENT = (0.0, 0.0, 0.0, 0.0)
_UNKNOWN = (0.25, 0.0, 0.2, 0.1)
# A vowel shorter than this is over before the jaw has come all the way.
_JAW_TIME = 0.12

# brow_raise, brow_tilt, lids, corners; articulation and movement are factors of the speaker's own.
_EMOTIONS = {
    "neutral": (0.0, 0.0, 0.0, 0.0),
    "happy": (0.35, 0.1, -0.15, 0.95),
    "sad": (0.1, 0.9, -0.3, -0.75),
    "angry": (-0.6, -0.9, 0.1, -0.45),
}
_ARTICULATION = {"neutral": 1.0, "happy": 1.1, "sad": 0.75, "angry": 1.2}
_MOVEMENT = {"neutral": 1.0, "happy": 1.4, "sad": 0.6, "angry": 1.5}
_DROOP = {"neutral": 0.0, "happy": -0.1, "sad": 0.35, "angry": 0.1}
_REST_SPREAD, _HABIT_SPREAD, _CLIP_SPREAD = 0.16, 0.14, 0.2
_BLINK = (-0.5, -1.0, -1.0, -0.7, -0.3)
_BLINKS_PER_SECOND = 0.4


@dataclass(frozen=True)
class Actor:
    """A face and its habits.

    Attributes:
        identity: what is drawn.
        rest: brow_raise, brow_tilt, lids and corners at rest.
        habits: emotion -> departure from `rest`.
        articulation: factor on how far the mouth opens.
        movement: factor on how much the head moves.
    """

    identity: Identity
    rest: tuple[float, ...]
    habits: dict[str, tuple[float, ...]]
    articulation: float
    movement: float


def make_actor(rng: numpy.random.Generator, gender: str) -> Actor:
    """Draw a face; `gender` ("male" or "female") only changes how likely some features are."""
    female = gender == "female"
    skin = _mix(rng, ((250, 222, 198), (226, 176, 138), (172, 118, 82), (104, 68, 48)))
    hair = _mix(rng, ((38, 28, 24), (96, 58, 32), (196, 152, 84), (158, 66, 36), (150, 148, 146)))
    styles = dict.fromkeys(HAIR_STYLES, 1.0) | (
        {"bald": 0.0, "short": 0.5, "long": 2.0, "bun": 2.0}
        if female
        else {"long": 0.4, "bun": 0.0, "short": 2.0, "side": 2.0}
    )
    weights = [styles[name] for name in HAIR_STYLES]
    extras = [name for name, share in (("beard", 0.0 if female else 0.35), ("glasses", 0.3)) if rng.random() < share]
    redness = rng.uniform(0.1, 0.7) if female else rng.uniform(0.0, 0.35)
    identity = Identity(
        skin=skin,
        hair_colour=hair,
        iris=_mix(rng, ((70, 110, 160), (84, 120, 70), (104, 66, 36), (60, 44, 34))),
        lips=_blend(_blend(skin, (150, 60, 60), 0.45), (190, 40, 60), redness),
        shirt=(int(rng.integers(30, 220)), int(rng.integers(30, 220)), int(rng.integers(30, 220))),
        width=rng.uniform(0.7, 0.86),
        jaw=rng.uniform(0.12, 0.36),
        eyes=(rng.uniform(0.28, 0.36), rng.uniform(0.85, 1.2)),
        nose=(rng.uniform(0.28, 0.42), rng.uniform(0.08, 0.16)),
        mouth=(rng.uniform(0.24, 0.34), rng.uniform(0.04, 0.085)),
        brow=rng.uniform(0.05, 0.08) if female else rng.uniform(0.065, 0.11),
        hair=str(rng.choice(HAIR_STYLES, p=[weight / sum(weights) for weight in weights])),
        extras=tuple(extras),
    )
    expressiveness = rng.uniform(0.8, 1.15)
    habits = {
        name: tuple(
            expressiveness * value + (_HABIT_SPREAD * _cut_normal(rng) if name != "neutral" else 0.0)
            for value in emotion
        )
        for name, emotion in _EMOTIONS.items()
    }
    rest = tuple(_REST_SPREAD * _cut_normal(rng) for _ in range(4))
    return Actor(identity, rest, habits, rng.uniform(0.85, 1.15), rng.uniform(0.7, 1.3))


def perform(
    rng: numpy.random.Generator, actor: Actor, emotion: str, phones: Sequence[Phone], num_frames: int, fps: int
) -> list[tuple[Expression, Pose]]:
    """Expression and pose of every picture of a clip.

    Args:
        rng: of what differs from clip to clip.
        actor: who speaks.
        emotion: "neutral", "happy", "sad" or "angry".
        phones: of the clip, without gaps from 0.
        num_frames: pictures to draw.
        fps: pictures per second; each shows the middle of the time that it is on screen.
    """
    import numpy as np

    times = (np.arange(num_frames) + 0.5) / fps
    mouth = _mouth(phones, times)
    reach = actor.articulation * _ARTICULATION[emotion] * math.exp(0.1 * _cut_normal(rng))
    strength = rng.uniform(0.45, 1.15)
    look = [
        at_rest + strength * departure + _CLIP_SPREAD * _cut_normal(rng)
        for at_rest, departure in zip(actor.rest, actor.habits[emotion], strict=True)
    ]
    # an expression comes up and swells while the clip lasts
    swell = np.minimum(1.0, 0.55 + times / 0.8) * (1 + 0.12 * np.sin(2 * np.pi * (0.6 * times + rng.random())))
    lids = _blinks(rng, num_frames, fps)
    gaze = 0.5 * _wander(rng, times, 0.5)
    poses = _poses(rng, actor, emotion, times, mouth[:, 0])
    frames = []
    for index, pose in enumerate(poses):
        raised, tilt, wide, corners = (float(value * swell[index]) for value in look)
        opening, spread, teeth, tongue = (float(value) for value in mouth[index])
        expression = Expression(
            brow_raise=raised + 0.15 * opening,
            brow_tilt=tilt,
            lids=max(-1.0, min(0.5, wide) + float(lids[index])),
            gaze=float(gaze[index]),
            corners=max(-1.2, min(1.2, corners)),
            opening=min(1.15, opening * reach),
            spread=max(-1.0, min(1.0, spread + 0.25 * corners)),
            teeth=teeth,
            tongue=tongue,
        )
        frames.append((expression, pose))
    return frames


def shapes(symbol: str) -> list[tuple[float, float, float, float]]:
    """Shapes that the mouth takes for a phoneme in IPA: two for diphthongs and affricates, else one."""
    letters = [letter for letter in symbol if letter not in "ːˈˌ"]
    if symbol == "sil":
        return [_SILENT]
    return [_VISEMES.get(letter, _UNKNOWN) for letter in letters[:2]] or [_UNKNOWN]


def _mouth(phones: Sequence[Phone], times: numpy.ndarray) -> numpy.ndarray:
    """(T, 4) shape of the mouth at each time: held in the middle of a phoneme, straight between two."""
    import numpy as np

    moments, targets = [0.0], [_SILENT]
    for phone in phones:
        length = phone.end - phone.start
        found = shapes(phone.symbol)
        for place, shape in zip((0.3, 0.7), (found * 2)[:2], strict=True):
            short = phone.symbol[0] in VOWELS and length < _JAW_TIME
            opening = shape[0] * (0.5 + 0.5 * length / _JAW_TIME) if short else shape[0]
            moments.append(phone.start + place * length)
            targets.append((opening, *shape[1:]))
    columns = np.array(targets).T
    return np.stack([np.interp(times, moments, column) for column in columns], axis=1)


def _blinks(rng: numpy.random.Generator, num_frames: int, fps: int) -> numpy.ndarray:
    import numpy as np

    lids = np.zeros(num_frames)
    for frame in np.flatnonzero(rng.random(num_frames) < _BLINKS_PER_SECOND / fps):
        part = lids[frame : frame + len(_BLINK)]
        np.minimum(part, _BLINK[: len(part)], out=part)
    return lids


def _poses(
    rng: numpy.random.Generator, actor: Actor, emotion: str, times: numpy.ndarray, opening: numpy.ndarray
) -> list[Pose]:
    size = actor.movement * _MOVEMENT[emotion] * math.exp(0.25 * _cut_normal(rng))
    first = Pose(
        x=0.5 + 0.025 * _cut_normal(rng),
        y=0.49 + 0.02 * _cut_normal(rng),
        scale=0.335 * math.exp(0.05 * _cut_normal(rng)),
        roll=0.04 * _cut_normal(rng),
        yaw=0.3 * _cut_normal(rng),
        pitch=0.2 * _cut_normal(rng) + _DROOP[emotion],
    )
    spreads = {"x": 0.008, "y": 0.006, "roll": 0.035, "yaw": 0.25, "pitch": 0.15}
    moved = {name: spread * size * _wander(rng, times, 0.7) for name, spread in spreads.items()}
    # heads nod a little with what they say
    moved["pitch"] = moved["pitch"] + 0.12 * size * opening
    own = {field.name: getattr(first, field.name) for field in fields(first)}
    return [
        replace(first, **{name: float(own[name] + values[index]) for name, values in moved.items()})
        for index in range(len(times))
    ]


def _wander(rng: numpy.random.Generator, times: numpy.ndarray, rate: float) -> numpy.ndarray:
    """Smooth movement about 0 with a standard deviation of about 1, slower than 2 * `rate` Hz."""
    import numpy as np

    waves = [
        np.sin(2 * np.pi * (rate * factor * times + rng.random())) * rng.uniform(0.5, 1.0) for factor in (0.4, 1.0, 1.7)
    ]
    return np.sum(waves, axis=0)


def _cut_normal(rng: numpy.random.Generator) -> float:
    return float(max(-2.0, min(2.0, rng.standard_normal())))


def _blend(one: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (round((1 - share) * a + share * b) for a, b in zip(one, other, strict=True))
    return red, green, blue


def _mix(rng: numpy.random.Generator, colours: Sequence[Colour]) -> Colour:
    """A colour between two neighbours of a list."""
    place = rng.uniform(0, len(colours) - 1)
    low = min(int(place), len(colours) - 2)
    return _blend(colours[low], colours[low + 1], place - low)
