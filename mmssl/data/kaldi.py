"""Kaldi data folders: wav.scp, segments, utt2spk, text, and one utt2<label> file for each other label.

Two things go beyond Kaldi and do not disturb it: `video.scp` and `image.scp` list other media of the same recordings,
and `utt2split` holds `Clip.split`. Where a clip has no speaker, the utterance is its own speaker, as Kaldi advises.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from decimal import Context, Decimal, InvalidOperation
from pathlib import Path

from mmssl.data.files import read_text, resolve_media, some, write_text
from mmssl.errors import DataError, did_you_mean
from mmssl.files import is_url
from mmssl.types import Clip

# Kaldi's own utt2* files, which are no labels
_NOT_LABELS = ("spk", "split", "dur", "num_frames", "uniq")
_MEDIA = {"audio": "wav.scp", "video": "video.scp", "image": "image.scp"}
_EXACT = Context(prec=400)


def import_kaldi(
    folder: str | os.PathLike[str],
    *,
    split: str | None = None,
    numeric: Sequence[str] = (),
    root: str | os.PathLike[str] | None = None,
) -> list[Clip]:
    """Read a Kaldi data folder. Its files need not be sorted.

    Args:
        folder: with wav.scp; segments, utt2spk, text and utt2<label> are optional.
        split: of all clips; None takes it from utt2split where that is there.
        numeric: labels whose values are numbers.
        root: folder from which relative paths in wav.scp are seen; None takes the current folder, as Kaldi does, or the
            data folder where only that has the file.

    Returns:
        One clip for each utterance, in the order of segments, or of wav.scp where there are none.

    Raises:
        DataError: a file is missing or has a bad line, wav.scp holds a command, or files name different utterances.
    """
    source = Path(folder)
    if not source.is_dir():
        raise DataError(f"The Kaldi folder {source} does not exist. Give the folder that holds wav.scp.")
    if not (source / "wav.scp").is_file():
        raise DataError(f"{source} has no wav.scp, so that it is no Kaldi data folder. Give the folder that holds it.")
    media = {field: _read_scp(source, name, root) for field, name in _MEDIA.items() if (source / name).is_file()}
    if (source / "segments").is_file():
        segments = _read_segments(source / "segments", media["audio"])
    else:
        segments = {recording: (recording, 0.0, None) for recording in media["audio"]}
    speakers = _read_optional(source / "utt2spk", segments)
    splits = _read_optional(source / "utt2split", segments)
    labels = _read_labels(source, segments, numeric)
    return [
        Clip(
            id=utterance,
            audio=media["audio"][recording],
            video=media.get("video", {}).get(recording),
            image=media.get("image", {}).get(recording),
            start=start,
            duration=duration,
            labels={name: values[utterance] for name, values in labels.items() if utterance in values},
            speaker=speakers[utterance] if speakers.get(utterance, utterance) != utterance else None,
            split=split or splits.get(utterance),
        )
        for utterance, (recording, start, duration) in segments.items()
    ]


def export_kaldi(clips: Iterable[Clip], folder: str | os.PathLike[str]) -> None:
    """Write a Kaldi data folder, whole or not at all; `import_kaldi` gives equal clips back, sorted by id.

    Files are sorted by code point (LC_ALL=C). Segments are written where a clip is not a whole file. The label `text`
    goes to text; label `x` goes to utt2x. Paths are absolute. Labels come back as strings unless `numeric` names them.

    Args:
        clips: all with audio; ids, speakers and splits without white space.
        folder: must not exist yet, or be empty.

    Raises:
        DataError: a clip cannot be said in Kaldi's format, or the folder is in use or cannot be written.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"{target} exists and is not an empty folder. Choose another name, or remove it.")
    ordered = sorted(clips, key=lambda clip: clip.id)
    files = _tables(ordered)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.absolute().parent, prefix=f".{target.name}."))
        temporary.chmod(0o755)
    except OSError as error:
        raise DataError(f"{target} cannot be written: {error}. Make room or choose another folder.") from error
    try:
        for name, rows in files.items():
            write_text(
                temporary / name, "".join(f"{key} {value}".rstrip(" ") + "\n" for key, value in sorted(rows.items()))
            )
        temporary.replace(target)
    except OSError as error:
        raise DataError(f"{target} cannot be written: {error}. Make room or choose another folder.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _rows(path: Path, *, empty: bool = False) -> dict[str, tuple[int, str]]:
    """A two-column file -> key -> (number of the line, rest of it)."""
    rows: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(read_text(path, "Kaldi file").split("\n"), start=1):
        if not line.strip():
            continue
        key, *rest = re.split(r"[ \t]+", line.strip(" \t\r"), maxsplit=1)
        if not rest and not empty:
            raise DataError(f"{path}:{number}: {key!r} has no value. Write '{key} <value>'.")
        if key in rows:
            raise DataError(f"{path}:{number}: {key!r} is already in line {rows[key][0]}. Keep one of them.")
        rows[key] = (number, rest[0] if rest else "")
    return rows


def _read_scp(folder: Path, name: str, root: str | os.PathLike[str] | None) -> dict[str, str]:
    """Recording -> absolute path."""
    rows = _rows(folder / name)
    if not rows:
        raise DataError(f"{folder / name} is empty. Write one '<id> <path>' a line.")
    found = {}
    for recording, (number, value) in rows.items():
        if value.endswith("|") or value.startswith("|") or value == "-":
            raise DataError(
                f"{folder / name}:{number}: {recording!r} is a command ({value[:60]!r}), which is not run. Run it "
                f"once, store its output as a file (wav-copy in Kaldi), and write the file's path instead."
            )
        if re.search(r"\.ark:\d+$", value):
            raise DataError(
                f"{folder / name}:{number}: {recording!r} lies inside an archive ({value[:60]!r}). "
                f"Copy it to a file of its own (wav-copy in Kaldi), and write the file's path instead."
            )
        bases = [Path(root)] if root is not None else [Path.cwd(), folder]
        paths = [resolve_media(value, base) for base in bases]
        found[recording] = next((p for p in paths if not is_url(p) and Path(p).exists()), paths[0])
    return found


def _read_segments(path: Path, recordings: Mapping[str, str]) -> dict[str, tuple[str, float, float | None]]:
    """Utterance -> (recording, start, duration); an end of -1 is the end of the file."""
    found: dict[str, tuple[str, float, float | None]] = {}
    for utterance, (number, rest) in _rows(path).items():
        try:
            recording, *times = rest.split()
            start, end = map(Decimal, times)
            if not start.is_finite() or not end.is_finite():
                raise ValueError
        except (ValueError, InvalidOperation) as error:
            expected = f"Write '{utterance} <recording> <start> <end>', in seconds."
            raise DataError(f"{path}:{number}: {rest!r} is no segment. {expected}") from error
        if recording not in recordings:
            hint = did_you_mean(recording, recordings)
            raise DataError(f"{path}:{number}: the recording {recording!r} is not in wav.scp.{hint} Add it there.")
        if end != -1 and end <= start:
            raise DataError(
                f"{path}:{number}: the segment ends at {end} s, not after its start at {start} s. Correct it."
            )
        found[utterance] = (recording, float(start), None if end == -1 else float(_EXACT.subtract(end, start)))
    return found


def _read_optional(path: Path, utterances: Mapping[str, object], *, empty: bool = False) -> dict[str, str]:
    if not path.is_file():
        return {}
    rows = _rows(path, empty=empty)
    unknown = [key for key in rows if key not in utterances]
    if unknown:
        raise DataError(
            f"{path} names {len(unknown)} utterances that wav.scp (or segments) does not have: {some(unknown)}. "
            f"Remove those lines, as utils/fix_data_dir.sh of Kaldi does."
        )
    return {key: value for key, (_, value) in rows.items()}


def _read_labels(
    folder: Path, utterances: Mapping[str, object], numeric: Sequence[str]
) -> dict[str, dict[str, str | float]]:
    """Label name -> utterance -> value."""
    paths = {p.name.removeprefix("utt2"): p for p in sorted(folder.glob("utt2*")) if p.is_file()}
    paths = {name: p for name, p in paths.items() if name and name not in _NOT_LABELS}
    if (folder / "text").is_file():
        paths["text"] = folder / "text"
    for name in numeric:
        if name not in paths:
            raise DataError(f"{folder} has no utt2{name} to read numbers from.{did_you_mean(name, paths)}")
    labels: dict[str, dict[str, str | float]] = {}
    for name, path in paths.items():
        values: dict[str, str | float] = {}
        for utterance, value in _read_optional(path, utterances, empty=name == "text").items():
            values[utterance] = _number(value, path, utterance) if name in numeric else value
        labels[name] = values
    return labels


def _number(value: str, path: Path, utterance: str) -> float:
    with contextlib.suppress(ValueError):
        if math.isfinite(number := float(value)):
            return number
    raise DataError(f"{path}: the value of {utterance!r} is {value!r}, not a number. Correct it, or read it as text.")


def _tables(clips: Sequence[Clip]) -> dict[str, dict[str, str]]:
    """File name -> key -> rest of its line."""
    if not clips:
        raise DataError("There is no clip to write as a Kaldi folder.")
    without = [clip.id for clip in clips if clip.audio is None]
    if without:
        raise DataError(
            f"Kaldi folders hold audio, but {len(without)} clips have none: {some(without)}. Leave them out."
        )
    files: dict[str, dict[str, str]] = {"wav.scp": {}, "utt2spk": {}}
    recordings = _recordings(clips)
    whole = all(clip.start == 0 and clip.duration is None for clip in clips) and len(recordings) == len(clips)
    for clip in clips:
        utterance = _word(clip.id, "id", clip.id)
        if utterance in files["utt2spk"]:
            raise DataError(f"Two clips have the id {utterance!r}. Give every clip an id of its own.")
        sources = (clip.audio, clip.video, clip.image)
        recording = utterance if whole else recordings[sources]
        for name, path in zip(_MEDIA.values(), sources, strict=True):
            if path is not None:
                files.setdefault(name, {})[recording] = _one_line(resolve_media(path, Path.cwd()), name, clip)
        if not whole:
            files.setdefault("segments", {})[utterance] = f"{recording} {_segment(clip)}"
        files["utt2spk"][utterance] = _word(clip.speaker or utterance, "speaker", clip.id)
        if clip.split is not None:
            files.setdefault("utt2split", {})[utterance] = _word(clip.split, "split", clip.id)
        for label, value in clip.labels.items():
            if value is not None:
                files.setdefault(_file_of(label, clip), {})[utterance] = _one_line(
                    _text(value, label, clip), label, clip
                )
    members: dict[str, list[str]] = {}
    for utterance, speaker in sorted(files["utt2spk"].items()):
        members.setdefault(speaker, []).append(utterance)
    files["spk2utt"] = {speaker: " ".join(ids) for speaker, ids in members.items()}
    return files


def _recordings(clips: Sequence[Clip]) -> dict[tuple[str | None, ...], str]:
    """(audio, video, image) -> recording id, from the file's name."""
    names: dict[tuple[str | None, ...], str] = {}
    used: set[str] = set()
    for sources in sorted({(c.audio, c.video, c.image) for c in clips}, key=lambda s: tuple(p or "" for p in s)):
        stem = re.sub(r"\s+", "_", Path(sources[0] or "").stem) or "recording"
        name, number = stem, 2
        while name in used:
            name, number = f"{stem}-{number}", number + 1
        used.add(name)
        names[sources] = name
    return names


def _segment(clip: Clip) -> str:
    if not (math.isfinite(clip.start) and clip.start >= 0):
        raise DataError(f"Clip {clip.id!r} starts at {clip.start} s, which a Kaldi segment cannot. Correct the start.")
    start = Decimal(repr(float(clip.start)))
    if clip.duration is None:
        return f"{start:f} -1"
    if not (math.isfinite(clip.duration) and clip.duration > 0):
        raise DataError(
            f"Clip {clip.id!r} lasts {clip.duration} s, which a Kaldi segment cannot. Correct the duration."
        )
    # decimal sums keep start and duration exact, so that reading gives the same numbers back
    return f"{start:f} {_EXACT.add(start, Decimal(repr(float(clip.duration)))):f}"


def _word(value: str, field: str, clip: str) -> str:
    if not value or re.search(r"\s", value):
        raise DataError(
            f"The {field} {value!r} of clip {clip!r} is empty or has white space, which Kaldi forbids. Rename it."
        )
    return value


def _one_line(value: str, field: str, clip: Clip) -> str:
    if value != value.strip(" \t\r") or re.search(r"[\n\r]", value) or (field.endswith(".scp") and value.endswith("|")):
        raise DataError(
            f"Clip {clip.id!r}: the value {value[:60]!r} of {field} has white space at an end, a line break or a final "
            f"'|', which a Kaldi file cannot hold. Change it."
        )
    return value


def _text(value: object, label: str, clip: Clip) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number and not (isinstance(value, str) and (value or label == "text")):
        raise DataError(f"Clip {clip.id!r}: label {label!r} is {value!r}; Kaldi files hold words and numbers only.")
    return value if isinstance(value, str) else repr(value)


def _file_of(label: str, clip: Clip) -> str:
    if label == "text":
        return "text"
    if not re.fullmatch(r"[\w.-]+", label) or label in _NOT_LABELS:
        raise DataError(
            f"Clip {clip.id!r}: the label name {label!r} cannot be part of a file name utt2<label>, or is one of "
            f"Kaldi's own ({', '.join(_NOT_LABELS)}). Rename the label."
        )
    return f"utt2{label}"
