"""The embedded corpus `mini`: synthetic emotional speech, made on the spot and the same to the bit for a seed.

A formant synthesiser speaks plain sentences as speakers that differ in voice, vocal tract, pitch, pace and loudness.
Four emotions are four ways to depart from the speaker's own manner: in pitch, pitch range, pace, loudness and
brightness. The departures scatter and overlap, and differ from speaker to speaker, so that a speaker who was not
trained on is a real test. It is no substitute for human speech: scores on it say that a pipeline works, not how
well a model hears emotion. The time of every phoneme is written beside the sound, so that a face can be drawn to it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmssl.errors import DataError
from mmssl.lengths import resampled_length, samples_to_seconds, seconds_to_samples
from mmssl.media.espeak import Request, Utterance, synthesize
from mmssl.media.paths import write_atomically
from mmssl.types import Clip

if TYPE_CHECKING:
    import numpy

SAMPLE_RATE = 16_000
SILENCE = "sil"
SENTENCES = (
    "The window is open.",
    "My sister lives near the river.",
    "We will meet again on Thursday.",
    "The keys are on the kitchen table.",
    "He put the letter in a blue box.",
    "The train leaves at a quarter past nine.",
    "There are seven apples in the bag.",
    "She wrote her name on the first page.",
    "They moved to another house last year.",
    "The dog is asleep under the chair.",
    "I have heard that song before.",
    "Our neighbour has bought a new bicycle.",
    "The shop will close in half an hour.",
    "You left your coat in the office.",
    "The water in the lake was very cold.",
    "Please bring me the other cup.",
    "It has been raining since the morning.",
    "The boy showed the map to his father.",
    "Everybody knew about the plan.",
    "Tomorrow I will clean the garage.",
)

# Raised when the sound of a given seed changes, so that folders made before are made anew.
_VERSION = 1
_STAMP = "mini.json"
_VARIANTS = {"male": ("m1", "m3", "m4", "m6", "m7", "m8"), "female": ("f1", "f2", "f3", "f4", "f5", "linda")}
_SEMITONES_PER_STEP = 8.7 / 50  # of eSpeak's pitch parameter, measured
_LEVEL = -28.0  # dB re full scale, RMS of the speech of an average speaker
_PEAK = 0.95
# Separate streams of random numbers, so that a speaker or clip is the same in a corpus of any size.
_SPEAKER_STREAM, _CLIP_STREAM = 1, 2


@dataclass(frozen=True)
class Phone:
    """A phoneme of a clip: start and end in seconds on the clip's own time axis, and its IPA symbol, or "sil"."""

    start: float
    end: float
    symbol: str


@dataclass(frozen=True)
class _Manner:
    """A way to speak, or a departure from one: manners add up."""

    pitch: float  # semitones from the voice's own
    range: float  # log2 of the factor on the pitch range
    pace: float  # natural logarithm of the factor on the rate
    level: float  # dB
    tilt: float  # coefficient of the filter x[t] - tilt * x[t - 1]: above 0 is brighter

    def plus(self, other: _Manner, scale: float = 1.0) -> _Manner:
        mine, its = asdict(self), asdict(other)
        return _Manner(**{name: mine[name] + scale * its[name] for name in mine})


# Directions as in Juslin and Laukka, "Communication of emotions in vocal expression and music performance",
# Psychological Bulletin 129 (2003); sizes chosen so that the classes overlap.
_EMOTIONS = {
    "neutral": _Manner(0.0, 0.0, 0.0, 0.0, 0.0),
    "happy": _Manner(4.0, 0.6, 0.10, 2.0, 0.05),
    "sad": _Manner(-2.0, -0.8, -0.20, -4.0, -0.25),
    "angry": _Manner(1.0, 0.3, 0.15, 5.0, 0.30),
}
EMOTIONS = tuple(_EMOTIONS)
_SPEAKER_SPREAD = _Manner(1.5, 0.20, 0.08, 1.5, 0.06)
_HABIT_SPREAD = _Manner(0.6, 0.12, 0.03, 0.6, 0.03)
_CLIP_SPREAD = _Manner(0.8, 0.20, 0.05, 1.2, 0.05)


@dataclass(frozen=True)
class _Speaker:
    name: str
    gender: str
    voice: str
    warp: float
    manners: dict[str, _Manner]
    sentences: tuple[int, ...]


@dataclass(frozen=True)
class _Plan:
    """All that determines a clip."""

    clip: Clip
    request: Request
    warp: float
    manner: _Manner
    snr: float
    silences: tuple[float, float]
    noise: tuple[int, ...]


def make_mini(
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    num_speakers: int = 12,
    num_sentences: int = 20,
    sentences_per_speaker: int = 10,
    video: bool = False,
) -> list[Clip]:
    """Make the corpus in a folder, or find it there complete.

    Every speaker says `sentences_per_speaker` of the sentences in all four emotions. Written are `wav/<id>.wav`
    (16 kHz, mono, 16 bit), `phones/<id>.tsv` (start, end, phone; see `read_phones`) and, last of all, `mini.json`.
    A folder made by other settings is made anew. With `video`, a drawn face speaks each clip: `video/<id>.mp4` (96x96
    pixels, 25 per second, with the sound) and `mini_video.json`; the sound is the same with and without.

    Args:
        folder: where the corpus goes.
        seed: of all that is drawn.
        num_speakers: at least 1; male and female by turns.
        num_sentences: how many of the 20 sentences are in use.
        sentences_per_speaker: how many of these each speaker says, at most `num_sentences`.
        video: make the videos too.

    Returns:
        num_speakers * 4 * sentences_per_speaker clips with labels emotion, sentence, gender and text, and no split;
        `audio` is the wav file, `video` the mp4 or None.

    Raises:
        DataError: a number is out of range, or the folder cannot be written.
        MediaError: the synthesiser or a process that draws does not run.
    """
    settings = {
        "seed": seed,
        "num_speakers": num_speakers,
        "num_sentences": num_sentences,
        "sentences_per_speaker": sentences_per_speaker,
    }
    _check_settings(**settings)
    made_by = {**settings, "version": _VERSION, "espeakng_loader": _synthesiser_version()}
    root = Path(folder)
    try:
        clips = _finished(root, made_by) or _make(root, made_by)
        if video:
            from mmssl.media.mini_video import add_videos

            clips = add_videos(root, clips, seed, _sums(root))
    except OSError as error:
        raise DataError(f"The corpus mini cannot be written to {root}: {error}. Choose another folder.") from error
    return clips


def read_phones(path: str | os.PathLike[str]) -> list[Phone]:
    """Phonemes of a clip from its tsv file: without gaps from 0 to the clip's end.

    Raises:
        DataError: the file is missing or not such a table.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        return [Phone(float(a), float(b), symbol) for a, b, symbol in (line.split("\t") for line in lines[1:])]
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} is not a table of phonemes (start, end, phone): {error}. Make the corpus anew."
        ) from error


def _make(root: Path, made_by: dict[str, Any]) -> list[Clip]:
    seed, size = made_by["seed"], (made_by["num_sentences"], made_by["sentences_per_speaker"])
    speakers = [_speaker(seed, index, *size) for index in range(made_by["num_speakers"])]
    plans = [
        _plan(seed, index, speaker, sentence, emotion)
        for index, speaker in enumerate(speakers)
        for sentence in speaker.sentences
        for emotion in EMOTIONS
    ]
    return _write(root, made_by, plans, synthesize([plan.request for plan in plans]))


def _synthesiser_version() -> str:
    try:
        return metadata.version("espeakng-loader")
    except metadata.PackageNotFoundError as error:
        raise DataError("The corpus mini needs the package espeakng-loader: pip install espeakng-loader.") from error


def _check_settings(seed: int, num_speakers: int, num_sentences: int, sentences_per_speaker: int) -> None:
    ranges = {
        "seed": (seed, 0, 2**63 - 1),
        "num_speakers": (num_speakers, 1, 1000),
        "num_sentences": (num_sentences, 1, len(SENTENCES)),
        "sentences_per_speaker": (sentences_per_speaker, 1, num_sentences),
    }
    for name, (value, low, high) in ranges.items():
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise DataError(f"{name} of the corpus mini must be a whole number from {low} to {high}, got {value!r}.")


def _speaker(seed: int, index: int, num_sentences: int, sentences_per_speaker: int) -> _Speaker:
    import numpy as np

    rng = np.random.default_rng((seed, _SPEAKER_STREAM, index))
    gender = ("male", "female")[index % 2]
    variants = _VARIANTS[gender]
    own = _scatter(rng, _SPEAKER_SPREAD)
    expressiveness = rng.uniform(0.75, 1.25)
    manners = {
        name: own.plus(emotion, expressiveness).plus(_scatter(rng, _HABIT_SPREAD))
        for name, emotion in _EMOTIONS.items()
    }
    warp = rng.uniform(0.93, 1.07)
    sentences = sorted(int(k) for k in rng.permutation(num_sentences)[:sentences_per_speaker])
    return _Speaker(
        name=f"spk{index + 1:02d}",
        gender=gender,
        voice=f"en+{variants[index // 2 % len(variants)]}",
        warp=round(warp * 22_050 / 50) * 50 / 22_050,
        manners=manners,
        sentences=tuple(sentences),
    )


def _scatter(rng: numpy.random.Generator, spread: _Manner) -> _Manner:
    """A draw per property, from a normal distribution cut at two deviations."""
    return _Manner(**{name: size * max(-2.0, min(2.0, rng.standard_normal())) for name, size in asdict(spread).items()})


def _plan(seed: int, index: int, speaker: _Speaker, sentence: int, emotion: str) -> _Plan:
    import numpy as np

    stream = (seed, _CLIP_STREAM, index, sentence, EMOTIONS.index(emotion))
    rng = np.random.default_rng(stream)
    manner = speaker.manners[emotion].plus(_scatter(rng, _CLIP_SPREAD))
    exclaims = rng.random() < {"neutral": 0.0, "happy": 0.4, "sad": 0.0, "angry": 0.6}[emotion]
    text = SENTENCES[sentence]
    # warping raises pitch and pace with the formants, so both are asked for lower
    pitch = 50 + (manner.pitch - 12 * math.log2(speaker.warp)) / _SEMITONES_PER_STEP
    request = Request(
        text=text.replace(".", "!") if exclaims else text,
        voice=speaker.voice,
        rate=_within(165 * math.exp(manner.pace) / speaker.warp, 80, 400),
        pitch=_within(pitch, 0, 99),
        range=_within(50 + 50 * manner.range, 0, 99),
        seed=int(rng.integers(1, 2**31 - 1)),
    )
    clip = Clip(
        id=f"{speaker.name}-s{sentence + 1:02d}-{emotion}",
        labels={"emotion": emotion, "sentence": f"s{sentence + 1:02d}", "gender": speaker.gender, "text": text},
        speaker=speaker.name,
    )
    silences = (float(rng.uniform(0.05, 0.25)), float(rng.uniform(0.05, 0.25)))
    return _Plan(clip, request, speaker.warp, manner, float(rng.uniform(20, 35)), silences, (*stream, 1))


def _within(value: float, low: int, high: int) -> int:
    return max(low, min(high, round(value)))


def _render(plan: _Plan, utterance: Utterance) -> tuple[numpy.ndarray, list[Phone]]:
    """Samples (T,) int16 at 16 kHz and phonemes of a clip."""
    import numpy as np
    from scipy.signal import lfilter, resample_poly

    # taking the samples for ones of another rate moves the formants, as a shorter or longer vocal tract does
    rate = round(utterance.sample_rate * plan.warp)
    gcd = math.gcd(rate, SAMPLE_RATE)
    speech = resample_poly(utterance.samples / 2.0**15, SAMPLE_RATE // gcd, rate // gcd)
    speech = lfilter((1.0, -plan.manner.tilt), (1.0,), speech)
    speech *= 10 ** ((_LEVEL + plan.manner.level) / 20) / math.sqrt(np.mean(speech**2))
    rng = np.random.default_rng(plan.noise)
    lead, tail = (seconds_to_samples(silence, SAMPLE_RATE) for silence in plan.silences)
    noise = lfilter((1.0,), (1.0, -0.9), rng.standard_normal(lead + len(speech) + tail))
    noise *= math.sqrt(np.mean(speech**2) / np.mean(noise**2)) * 10 ** (-plan.snr / 20)
    noise[lead : lead + len(speech)] += speech
    noise *= min(1.0, _PEAK / np.abs(noise).max())
    phones = _phones(utterance, rate, lead, len(noise))
    return np.round(noise * 32767).astype(np.int16), phones


def _phones(utterance: Utterance, rate: int, lead: int, length: int) -> list[Phone]:
    """Phonemes on the clip's time axis, pauses joined, without gaps from 0 to its end."""
    starts: list[tuple[int, str]] = [(0, SILENCE)]
    for sample, mark in utterance.phones:
        start = lead + resampled_length(sample, rate, SAMPLE_RATE)
        symbol = mark.strip("ˈˌ") or SILENCE
        if start <= starts[-1][0]:
            starts.pop()
        if not starts or symbol != SILENCE or starts[-1][1] != SILENCE:
            starts.append((start, symbol))
    ends = [start for start, _ in starts[1:]] + [length]
    return [
        Phone(samples_to_seconds(start, SAMPLE_RATE), samples_to_seconds(end, SAMPLE_RATE), symbol)
        for (start, symbol), end in zip(starts, ends, strict=True)
    ]


def _write(root: Path, settings: dict[str, Any], plans: Sequence[_Plan], utterances: Sequence[Utterance]) -> list[Clip]:
    import io

    import soundfile

    _remove_former(root)
    for name in ("wav", "phones"):
        (root / name).mkdir(parents=True, exist_ok=True)
    clips, sums = [], {}
    for plan, utterance in zip(plans, utterances, strict=True):
        samples, phones = _render(plan, utterance)
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, SAMPLE_RATE, subtype="PCM_16", format="WAV")
        name = f"wav/{plan.clip.id}.wav"
        rows = [f"{phone.start:.7f}\t{phone.end:.7f}\t{phone.symbol}\n" for phone in phones]
        write_atomically(root / name, buffer.getvalue())
        write_atomically(root / "phones" / f"{plan.clip.id}.tsv", ("start\tend\tphone\n" + "".join(rows)).encode())
        clips.append(replace(plan.clip, audio=name, duration=samples_to_seconds(len(samples), SAMPLE_RATE)))
        sums[plan.clip.id] = hashlib.sha256(buffer.getvalue()).hexdigest()
    stamp = {"settings": settings, "sha256": sums, "clips": [asdict(clip) for clip in clips]}
    write_atomically(root / _STAMP, json.dumps(stamp, indent=1).encode())
    return [replace(clip, audio=str(root / str(clip.audio))) for clip in clips]


def _read_stamp(root: Path) -> dict[str, Any] | None:
    try:
        stamp = json.loads((root / _STAMP).read_text(encoding="utf-8"))
        return stamp if {"settings", "sha256", "clips"} <= stamp.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _sums(root: Path) -> dict[str, str]:
    """Checksum of each clip's sound in a finished folder."""
    stamp = _read_stamp(root)
    return dict(stamp["sha256"]) if stamp else {}


def _finished(root: Path, settings: dict[str, Any]) -> list[Clip] | None:
    """The clips of a folder that these settings made and that nobody changed, else None."""
    stamp = _read_stamp(root)
    if stamp is None or stamp["settings"] != settings:
        return None
    clips = [Clip(**fields) for fields in stamp["clips"]]
    for clip in clips:
        sound = root / str(clip.audio)
        if not sound.is_file() or not (root / "phones" / f"{clip.id}.tsv").is_file():
            return None
        if hashlib.sha256(sound.read_bytes()).hexdigest() != stamp["sha256"][clip.id]:
            return None
    return [replace(clip, audio=str(root / str(clip.audio))) for clip in clips]


def _remove_former(root: Path) -> None:
    """Take away the stamp and then the clips of a corpus made before, so that no foreign clip stays behind."""
    from mmssl.media.mini_video import remove_videos

    remove_videos(root)
    stamp = _read_stamp(root)
    (root / _STAMP).unlink(missing_ok=True)
    for clip_id in stamp["sha256"] if stamp else ():
        (root / "wav" / f"{clip_id}.wav").unlink(missing_ok=True)
        (root / "phones" / f"{clip_id}.tsv").unlink(missing_ok=True)
