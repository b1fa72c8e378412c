"""What local/prepare.py of speaker corpora need: files to clips with speakers, and who is tested."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmssl.data.files import natural_key, some
from mmssl.errors import ConfigError, DataError, did_you_mean
from mmssl.stages.corpus import corpus_files
from mmssl.types import Clip

SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".aiff", ".au", ".sph", ".g722", ".wma")
FIRST_FOLDER = "^([^/]+)/"
ANY_FILE = "**/*"
_KEYS = ("path", "files", "speaker", "test_speakers", "dev_speakers")


def speaker_files(root: Path, name: str = "", files: str = ANY_FILE, speaker: str = FIRST_FOLDER) -> list[Clip]:
    """Clips of the sound files below a folder, each with the speaker that its path names.

    Args:
        root: the folder.
        name: of the corpus, put before ids and speakers and given as the label `corpus`; "" for none.
        files: glob pattern below the root.
        speaker: regular expression that is searched in the path below the root; its groups, joined by "-", are the
            speaker.

    Raises:
        DataError: no such folder, no sound file, a path that names no speaker, or two files of one id.
        ConfigError: the expression cannot be read or has no group.
    """
    if not root.is_dir():
        raise DataError(f"The folder {root} does not exist. Give one with a folder of sound files for each speaker.")
    try:
        pattern = re.compile(speaker)
    except re.error as error:
        raise ConfigError(f"The expression for speakers {speaker!r} cannot be read: {error}.") from error
    if not pattern.groups:
        raise ConfigError(f"The expression for speakers {speaker!r} needs a group in parentheses: what names them.")
    paths = sorted(
        (p for p in root.glob(files) if p.is_file() and p.suffix.lower() in SUFFIXES and not p.name.startswith(".")),
        key=lambda p: natural_key(p.as_posix()),
    )
    if not paths:
        raise DataError(f"{root} holds no sound file like {files!r} ({' '.join(SUFFIXES)}).")
    clips: dict[str, Clip] = {}
    for path in paths:
        below = path.relative_to(root).as_posix()
        found = pattern.search(below)
        if found is None or not any(found.groups()):
            raise DataError(
                f"{path}: {below!r} names no speaker by {speaker!r}. Expected is a folder for each speaker, or another "
                "expression: data.options.speaker."
            )
        who = "-".join([*([name] if name else []), *(part for part in found.groups() if part)])
        # ids stand in trial lists, whose fields white space divides
        key = re.sub(r"\s+", "_", (f"{name}/" if name else "") + below)
        if key in clips:
            raise DataError(f"{path} and {clips[key].audio} have the same id {key!r}: rename one.")
        labels = {"speaker": who, **({"corpus": name} if name else {})}
        clips[key] = Clip(key, audio=str(path), labels=labels, speaker=who)
    return list(clips.values())


def with_splits(
    clips: Sequence[Clip],
    test_speakers: int | Sequence[str] | None = None,
    dev_speakers: int | Sequence[str] | None = 0,
) -> list[Clip]:
    """Clips with the split of their speaker: "test", "dev" or "train".

    Args:
        clips: with speakers.
        test_speakers: their names, or how many: the last ones in natural order; None for a third of them, rounded up
            to an even number.
        dev_speakers: names, or how many: those before the tested ones. 0 leaves the choice to the protocol.

    Raises:
        ConfigError: a name that no clip has, or a number out of range.
    """
    names = sorted({str(clip.speaker) for clip in clips}, key=natural_key)
    if test_speakers is None:
        third = -(-len(names) // 3)
        test_speakers = min(third + third % 2, len(names))
    tested = _picked(names, test_speakers, "test_speakers")
    left = [name for name in names if name not in tested]
    aside = _picked(left, dev_speakers or 0, "dev_speakers")
    parts = dict.fromkeys(tested, "test") | dict.fromkeys(aside, "dev")
    return [replace(clip, split=parts.get(str(clip.speaker), "train")) for clip in clips]


def one_corpus(name: str, patterns: Sequence[str], layout: str, speaker: str) -> Callable[..., list[Clip]]:
    """The `prepare` of a local/prepare.py, for a corpus whose file names tell the speaker.

    Args:
        name: of the corpus.
        patterns: glob patterns that its files may have below the root, see `corpus_files`.
        layout: what the folder should look like, in words.
        speaker: regular expression, see `speaker_files`.
    """

    def prepare(
        root: Path | None,
        folder: Path,
        test_speakers: int | Sequence[str] | None = None,
        dev_speakers: int | Sequence[str] = 0,
        sources: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> list[Clip]:
        """Clips with speaker and split, and those of others to train on as well.

        Args:
            root: of the corpus.
            folder: of the data.
            test_speakers, dev_speakers: see `with_splits`.
            sources: the others, see `pooled`; their paths are absolute.

        Raises:
            ConfigError, DataError: as `corpus_files`, `speaker_files`, `with_splits` and `pooled`.
        """
        files = corpus_files(root, name, patterns, layout)
        assert root is not None  # corpus_files refuses None
        pattern = next(p for p in patterns if files[0] in root.glob(p))
        clips = with_splits(speaker_files(root, files=pattern, speaker=speaker), test_speakers, dev_speakers)
        return clips + pooled(sources or {}, None, folder.parent)

    return prepare


def _picked(names: Sequence[str], asked: int | Sequence[str], option: str) -> list[str]:
    if isinstance(asked, int):
        if not 0 <= asked <= len(names):
            raise ConfigError(f"{option}={asked}: there are {len(names)} speakers to take them from: {some(names)}.")
        return list(names[len(names) - asked :])
    if isinstance(asked, str):
        raise ConfigError(f"{option} must be a number or a list of names, got {asked!r}: write [{asked}].")
    wanted = [str(name) for name in asked]
    for name in wanted:
        if name not in names:
            raise ConfigError(f"{option}: no speaker {name!r}.{did_you_mean(name, names)} Speakers: {some(names, 30)}.")
    return wanted


def pooled(sources: Mapping[str, Mapping[str, Any] | None], root: Path | None, folder: Path) -> list[Clip]:
    """Clips of several corpora, with splits.

    Args:
        sources: name of a corpus -> `path` (below `root` if relative; null for the root itself), `files`, `speaker`
            (see `speaker_files`), `test_speakers` and `dev_speakers` (see `with_splits`; 0 where they are not given).
        root: what `data.root` gave.
        folder: that relative paths are seen from where there is no root.

    Raises:
        ConfigError, DataError: as `speaker_files` and `with_splits`, or an unknown key.
    """
    found: list[Clip] = []
    for name, source in sources.items():
        if source is None:
            continue
        for key in source:
            if key not in _KEYS:
                raise ConfigError(
                    f"The corpus {name!r} has no key {key!r}.{did_you_mean(key, _KEYS)} Keys: {', '.join(_KEYS)}."
                )
        where = (root or folder) / Path(str(source.get("path") or ".")).expanduser()
        clips = speaker_files(where, name, source.get("files") or ANY_FILE, source.get("speaker") or FIRST_FOLDER)
        parts = [
            [_prefixed(name, value) for value in given] if isinstance(given, list | tuple) else given
            for given in (source.get("test_speakers") or 0, source.get("dev_speakers") or 0)
        ]
        found += with_splits(clips, *parts)
    return found


def _prefixed(name: str, speaker: Any) -> str:
    return str(speaker) if str(speaker).startswith(f"{name}-") else f"{name}-{speaker}"
