"""Sound files that libsndfile reads: wav, flac, ogg, aiff, au, caf and relatives, and the headers of mp3 files.

The format is taken from a file's content, never from its name.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmssl.errors import MediaError
from mmssl.lengths import seconds_to_samples

if TYPE_CHECKING:
    import numpy

# What writers put into a header when they cannot seek back to fill in the size: not a sign of a cut file.
_UNKNOWN_SIZE = 0x7FFF_0000
# libsndfile gives 2**63 - 1 frames where the header leaves the number open.
_UNKNOWN_FRAMES = 2**48
# A RIFF size that is off by its own header is a common and harmless mistake of writers; a data size is not.
_DATA_CHUNKS = ("data", "ssnd", "data size")
_HEADER_SLACK = 64
_OGG_HEADER = 27
_OGG_PAGE = _OGG_HEADER + 255 + 255 * 255
# Opus and Vorbis need what came before.
_OGG_PREROLL = 1.0
_BLOCK = 2**16
_PIECE = 2**18


class UnreadableError(Exception):
    """libsndfile does not know the format: another decoder may."""


def inspect(path: Path) -> tuple[int, int, int]:
    """Sample rate in Hz, number of samples per channel and number of channels of a sound file.

    Raises:
        UnreadableError: libsndfile cannot open it.
        MediaError: the file is cut short.
    """
    with _open(path) as file:
        if file.frames > 0 and file.format != "MP3":
            _refuse_undecodable_end(path, file)
        return file.samplerate, file.frames, file.channels


def read(path: Path, start: float, duration: float | None) -> tuple[numpy.ndarray, int, int | None]:
    """Read a stretch of a sound file; what lies outside is not read.

    Args:
        path: the file.
        start: in seconds.
        duration: in seconds; None means to the end.

    Returns:
        Samples (C, T) float32 that the file holds of the stretch, the sample rate in Hz, and the number of samples of
        the whole file.

    Raises:
        UnreadableError: libsndfile cannot open it, or cannot seek in it exactly (mp3).
        MediaError: the file is cut short or damaged.
    """
    with _open_exact(path) as file:
        first, wanted = _stretch(file, start, duration)
        if not wanted:
            return _empty(file.channels), file.samplerate, file.frames
        with _explain(path, file, first, wanted):
            _go_to(path, file, first)
            samples = file.read(wanted, dtype="float32", always_2d=True)
        _refuse_short(path, file, first + len(samples), first + wanted)
        return samples.T, file.samplerate, file.frames


def stream(path: Path, start: float, duration: float | None) -> tuple[int, int, Iterator[numpy.ndarray]]:
    """Read a stretch of a sound file in pieces, as `read` does at once.

    Returns:
        The sample rate in Hz, the number of samples of the whole file, and an iterator over pieces (C, n) float32,
        which raises MediaError where the file breaks.

    Raises:
        UnreadableError, MediaError: as `read`.
    """
    with _open_exact(path) as file:
        return file.samplerate, file.frames, _pieces(path, start, duration)


def _pieces(path: Path, start: float, duration: float | None) -> Iterator[numpy.ndarray]:
    with _open_exact(path) as file:
        first, wanted = _stretch(file, start, duration)
        position, last = first, first + wanted
        with _explain(path, file, first, wanted):
            _go_to(path, file, first)
        while position < last:
            with _explain(path, file, first, wanted):
                samples = file.read(min(_PIECE, last - position), dtype="float32", always_2d=True)
            position += len(samples)
            if len(samples) < _PIECE:
                _refuse_short(path, file, position, last)
            yield samples.T


def _stretch(file: Any, start: float, duration: float | None) -> tuple[int, int]:
    """First sample, and number of samples that the file holds of a stretch."""
    first = seconds_to_samples(start, file.samplerate)
    whole = file.frames if duration is None else first + seconds_to_samples(duration, file.samplerate)
    return first, max(min(file.frames, whole) - first, 0)


@contextlib.contextmanager
def _explain(path: Path, file: Any, first: int, wanted: int) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError) as error:
        raise MediaError(
            f"{path}: decoding stopped in the samples {first} to {first + wanted} of {file.frames} "
            f"({error or 'no reason'}): the file is truncated or damaged. Restore it from its source or leave the clip "
            "out."
        ) from error


def _refuse_short(path: Path, file: Any, reached: int, last: int) -> None:
    if reached < last:
        raise truncated(path, f"the header declares {file.frames} samples, but only {reached} can be decoded")


def truncated(path: Path, what: str) -> MediaError:
    """The error for a file that ends before its declared end."""
    return MediaError(f"{path} is truncated: {what}. Restore the file from its source or leave the clip out.")


def _empty(channels: int) -> numpy.ndarray:
    import numpy as np

    return np.zeros((channels, 0), dtype=np.float32)


def _open(path: Path) -> Any:
    import soundfile

    try:
        file = soundfile.SoundFile(path)
    # soundfile asks for a rate (TypeError) where the name ends in .raw
    except (RuntimeError, OSError, TypeError, ValueError) as error:
        raise UnreadableError(str(error)) from error
    try:
        if file.frames >= _UNKNOWN_FRAMES:
            raise UnreadableError("the header leaves the number of samples open")
        _refuse_truncated(path, file)
    except BaseException:
        file.close()
        raise
    return file


def _open_exact(path: Path) -> Any:
    file = _open(path)
    if file.format == "MP3":
        file.close()
        # libsndfile seeks in mp3 by the bit rate, even after each read: it lands anywhere where that varies
        raise UnreadableError("mp3 is left to the other decoder")
    return file


def _refuse_truncated(path: Path, file: Any) -> None:
    """Libsndfile shortens what a header declares to what the file holds; its log tells."""
    for line in file.extra_info.splitlines():
        match = re.match(r"\s*(.+?)\s*:\s*(\d+) \(should be (\d+)\)", line)
        if match is None:
            continue
        name, declared, held = match[1].strip().lower(), int(match[2]), int(match[3])
        slack = 0 if name in _DATA_CHUNKS else _HEADER_SLACK
        if held + slack < declared < _UNKNOWN_SIZE:
            raise truncated(path, f"its header declares {declared} bytes ({match[1].strip()}), but it holds {held}")
    if file.format == "OGG" and not _ogg_is_complete(path):
        raise truncated(path, "the last Ogg page is cut or does not end the stream")


def _go_to(path: Path, file: Any, first: int) -> None:
    """Go to a sample so that what is read next is what reading from the beginning gives."""
    if file.format != "OGG":
        file.seek(first)
        return
    # libsndfile takes the last Ogg page to be full, and lands beside the mark when it seeks into it
    start = min(first, _start_of_last_ogg_page(path, file.samplerate))
    start = max(0, start - round(_OGG_PREROLL * file.samplerate))
    file.seek(start)
    while start < first:
        skipped = len(file.read(min(_BLOCK, first - start), dtype="float32"))
        if not skipped:
            raise truncated(path, f"the header declares {file.frames} samples, but only {start} can be decoded")
        start += skipped


def _refuse_undecodable_end(path: Path, file: Any) -> None:
    """The number of samples that flac declares says nothing about whether they are there."""
    try:
        file.seek(file.frames - 1)
        held = len(file.read(1))
    except (RuntimeError, OSError):
        held = 0
    if not held:
        raise truncated(path, f"the header declares {file.frames} samples, but the last one cannot be decoded")


def _last_ogg_pages(path: Path) -> tuple[bytes, bytes]:
    """The last two pages of an Ogg file, from their first bytes to the end of the file (RFC 3533, section 6)."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 2 * _OGG_PAGE))
        tail = file.read()
    last = tail.rfind(b"OggS")
    previous = tail.rfind(b"OggS", 0, max(last, 0))
    return tail[previous:] if previous >= 0 else b"", tail[last:] if last >= 0 else b""


def _ogg_is_complete(path: Path) -> bool:
    """Whether the last page is whole and carries the end-of-stream flag."""
    page = _last_ogg_pages(path)[1]
    if len(page) < _OGG_HEADER:
        return False
    lacing = page[_OGG_HEADER : _OGG_HEADER + page[26]]
    whole = len(lacing) == page[26] and len(page) >= _OGG_HEADER + len(lacing) + sum(lacing)
    return whole and bool(page[5] & 0x04)


def _start_of_last_ogg_page(path: Path, rate: int) -> int:
    """A sample at or before the first one of the last page; 0 where the page before does not tell."""
    page = _last_ogg_pages(path)[0]
    if len(page) < _OGG_HEADER:
        return 0
    position = int.from_bytes(page[6:14], "little", signed=True)
    # Opus counts at 48 kHz, whatever rate it is decoded at (RFC 7845, section 4)
    opus_rate = 48_000
    return max(0, min(position, position * rate // opus_rate))
