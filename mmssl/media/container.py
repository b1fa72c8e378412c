"""The sound of any file that FFmpeg reads through PyAV: mp3, m4a, mp4, mkv, webm, mpg and the rest.

Positions count samples from the first decoded one, whatever time stamp it bears. A segment lies exactly where it lies
in the whole decode: after a seek the place is recovered from time stamps only where they determine the sample;
where they do not, decoding starts at the beginning. What a decoder makes up is drawn anew after a seek: the noise that
stands for high bands in AAC (perceptual noise substitution) and the dither of MPEG layer 2.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmssl.errors import MediaError
from mmssl.lengths import seconds_to_samples
from mmssl.media.sound_file import truncated

if TYPE_CHECKING:
    import numpy

# Decoding starts this long before a segment, so that the decoder's memory of what came before has faded in.
_PREROLL = 2.0
# The first frames after a seek into an MPEG program stream can bear the time stamp of another frame.
_SETTLING = 4
_TIME_STAMP_JUMP = 0.05
# Containers round their durations, and mp4 counts what its edit list takes away: up to 5,000 samples of AAC's delay.
_DURATION_SLACK = 0.25
# Xing headers of mp3 files count frames.
_MP3_SLACK = 0.02
# Opus frames last a multiple of 2.5 ms, at the 48 kHz that the decoder gives (RFC 6716, section 2.1.4).
_OPUS_GRID = 120
# Their frames have one size at a constant bit rate, up to a padding slot of 4 bytes.
_MPEG_LAYERS = ("mp1", "mp1float", "mp2", "mp2float")
_MPEG_PADDING = 4
_INTEGER_SCALE = {"u8": 2.0**7, "s16": 2.0**15, "s32": 2.0**31, "s64": 2.0**63}


def inspect(path: Path) -> tuple[int, int, int]:
    """Sample rate in Hz, number of samples per channel and number of channels of a container's first sound stream.

    The whole stream is decoded: containers state durations, not numbers of samples.

    Raises:
        MediaError: no sound stream, or it cannot be decoded to its end.
    """
    with _Sound(path) as sound:
        channels = total = 0
        for frame in sound.frames():
            channels, total = frame.layout.nb_channels, total + frame.samples
        return sound.rate, total, channels


def first_time(path: Path) -> Fraction:
    """When the first sample of the first sound stream is heard, in seconds on the container's clock.

    Raises:
        MediaError: no sound stream, or no sample in it.
    """
    with _Sound(path) as sound:
        frame = next(sound.frames(), None)
        if frame is None:
            raise MediaError(f"{path} has a sound stream without a single sample. Leave the clip out.")
        return frame.pts * Fraction(frame.time_base) if frame.pts is not None else Fraction(0)


def read(path: Path, start: float, duration: float | None) -> tuple[numpy.ndarray, int, int | None]:
    """Read a stretch of the first sound stream.

    Args:
        path: the file.
        start: in seconds from the first sample.
        duration: in seconds; None means to the end.

    Returns:
        Samples (C, T) float32 that the stream holds of the stretch, the sample rate in Hz, and the number of samples
        of the whole stream, None where its end was not reached.

    Raises:
        MediaError: no sound stream, or it is truncated or damaged.
    """
    with _Sound(path) as sound:
        first, last, position = _go_to(sound, start, duration)
        pieces = list(_pieces(sound, first, last, position))
        return _joined(pieces), sound.rate, sound.total


def stream(path: Path, start: float, duration: float | None) -> tuple[int, int, Iterator[numpy.ndarray]]:
    """Read a stretch of the first sound stream in pieces, as `read` does at once.

    Returns:
        The sample rate in Hz, the number of samples of the whole stream (which is decoded to count them), and an
        iterator over pieces (C, n) float32.

    Raises:
        MediaError: no sound stream, or it is truncated or damaged.
    """
    rate, total, _ = inspect(path)

    def pieces() -> Iterator[numpy.ndarray]:
        with _Sound(path) as sound:
            yield from _pieces(sound, *_go_to(sound, start, duration))

    return rate, total, pieces()


def _go_to(sound: _Sound, start: float, duration: float | None) -> tuple[int, int | None, int]:
    """First sample of a stretch, the one after its last, and the sample that will be decoded next, before the first."""
    position = 0
    first = seconds_to_samples(start, sound.rate)
    if start > 1.25 * _PREROLL:
        landed = sound.seek(start - _PREROLL)
        if landed is not None and landed <= first:
            position = landed
        else:
            sound.rewind()
    return first, None if duration is None else first + seconds_to_samples(duration, sound.rate), position


def _pieces(sound: _Sound, first: int, last: int | None, position: int) -> Iterator[numpy.ndarray]:
    """Frames within a stretch (C, n); `sound.total` is set where the end of the stream is reached."""
    channels = 0
    for frame in sound.frames():
        begin, position = position, position + frame.samples
        if position > first:
            piece = _to_float(frame, sound.path)
            if channels and len(piece) != channels:
                raise MediaError(
                    f"{sound.path}: the number of channels changes from {channels} to {len(piece)} within the "
                    "stream. Convert the file to wav first."
                )
            channels = len(piece)
            yield piece[:, max(first - begin, 0) : None if last is None else last - begin]
        if last is not None and position >= last:
            return
    sound.total = position


def _joined(pieces: list[numpy.ndarray]) -> numpy.ndarray:
    import numpy as np

    return np.concatenate(pieces, axis=1) if pieces else np.zeros((1, 0), dtype=np.float32)


class _Sound:
    """An open container and the decoder of its first sound stream."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._container: Any = None
        self._stream: Any = None
        self._pending: Iterator[Any] | None = None
        self._end = self._reached = Fraction(0)
        self.rate = 0
        self.total: int | None = None
        self._open()

    def __enter__(self) -> _Sound:
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()

    def rewind(self) -> None:
        """Start again at the first sample. Opening anew is exact in every container; seeking to 0 is not."""
        self._close()
        self._open()

    def frames(self) -> Iterator[Any]:
        """Decoded frames from here to the end of the stream; raises MediaError where the stream breaks."""
        import av

        expected: Fraction | None = None
        frames = self._pending if self._pending is not None else self._decoded()
        self._pending = None
        while True:
            try:
                frame = next(frames, None)
            except av.error.FFmpegError as error:
                at = f" after {float(expected):.3f} s" if expected is not None else ""
                raise MediaError(
                    f"{self.path}: decoding the sound failed{at} ({error.strerror}): the file is truncated or damaged. "
                    "Restore it from its source or leave the clip out."
                ) from error
            if frame is None:
                break
            if frame.sample_rate != self.rate:
                raise MediaError(
                    f"{self.path}: the sample rate changes from {self.rate} to {frame.sample_rate} Hz within the "
                    "stream. Convert the file to wav first."
                )
            if frame.pts is not None:
                time = frame.pts * frame.time_base
                self._refuse_jump(time, expected)
                expected = self._reached = time + Fraction(frame.samples, self.rate)
            yield frame
        self._refuse_truncated()

    def seek(self, seconds: float) -> int | None:
        """Go to a place before `seconds` and return which sample comes next, or None where that is not certain."""
        import av

        head = list(itertools.islice(self._decoded(), 2))
        if len(head) < 2 or any(frame.pts is None for frame in head):
            return None
        grid = self._grid(head[1])
        if grid is None:
            return None
        origin = head[0].pts * head[0].time_base
        try:
            self._container.seek(int((origin + Fraction(seconds)) / self._stream.time_base), stream=self._stream)
        except av.error.FFmpegError:
            return None
        frames = self._after_seek()
        settled = list(itertools.islice(frames, _SETTLING))
        if len(settled) < _SETTLING or any(frame.pts is None for frame in settled):
            return None
        before, frame = settled[-2:]
        if abs((frame.pts - before.pts) * frame.time_base - Fraction(before.samples, self.rate)) > 2 * frame.time_base:
            return None
        self._pending = frames
        self._reached = frame.pts * frame.time_base + Fraction(frame.samples, self.rate)
        # Decoders trim starts of frames, so the ends tell.
        end = (frame.pts * frame.time_base - origin) * self.rate + frame.samples
        steps = round((end - head[0].samples) / grid)
        exact = head[0].samples + steps * grid
        certain = abs(exact - end) < Fraction(grid, 2) if grid > 1 else abs(exact - end) <= Fraction(1, 2)
        return exact if certain else None

    def _grid(self, frame: Any) -> int | None:
        """Distance in samples of the places where frames can end, coarser than the time stamps' rounding."""
        rounding = frame.time_base * self.rate
        codec = self._stream.codec_context
        if rounding <= 1:
            return 1
        grid = _OPUS_GRID if codec.name in ("opus", "libopus") else frame.samples if codec.frame_size else 0
        return grid if grid > 2 * rounding else None

    def _packets(self) -> Iterator[Any]:
        """Packets of the sound stream; those of other streams only tell how far the file goes."""
        sizes = (0, 0)
        for packet in self._container.demux():
            if packet.pts is not None and packet.time_base is not None:
                self._end = max(self._end, (packet.pts + (packet.duration or 0)) * packet.time_base)
            if packet.stream.index != self._stream.index:
                continue
            if packet.is_corrupt:
                raise self._broken_off()
            if packet.size:
                sizes = (sizes[1], packet.size)
            yield packet
        # MPEG program streams declare no duration, and FFmpeg decodes what is left of a cut MPEG frame to noise
        if self._stream.codec_context.name in _MPEG_LAYERS and sizes[1] < sizes[0] - _MPEG_PADDING:
            raise self._broken_off()

    def _broken_off(self) -> MediaError:
        return truncated(self.path, f"its sound breaks off within a packet after {float(self._end):.3f} s")

    def _decoded(self) -> Iterator[Any]:
        for packet in self._packets():
            yield from packet.decode()

    def _after_seek(self) -> Iterator[Any]:
        """Like `_decoded`, but a decoder that finds itself amid a frame may fail until the next one begins."""
        import av

        started = False
        for packet in self._packets():
            try:
                decoded = packet.decode()
            except av.error.FFmpegError:
                if started:
                    raise
                continue
            started = started or bool(decoded)
            yield from decoded

    def _open(self) -> None:
        import av

        self._end = self._reached = Fraction(0)
        self._pending = None
        try:
            # "file:" and the white list keep playlists and odd names from opening anything but local files
            self._container = av.open(f"file:{self.path}", options={"protocol_whitelist": "file"})
        except (av.error.FFmpegError, ValueError) as error:
            raise MediaError(
                f"{self.path} is not a sound or video file that can be decoded ({getattr(error, 'strerror', error)}): "
                "it is damaged, truncated, or something else under this name. Check what it is with `file`."
            ) from error
        if not self._container.streams.audio:
            kinds = sorted({stream.type for stream in self._container.streams})
            self._close()
            raise MediaError(f"{self.path} holds no sound stream, only {' and '.join(kinds) or 'nothing'}.")
        self._stream = self._container.streams.audio[0]
        self.rate = int(self._stream.codec_context.sample_rate)
        if self.rate <= 0:
            self._close()
            raise MediaError(f"{self.path}: its sound stream has no sample rate: the file is damaged.")

    def _close(self) -> None:
        if self._container is not None:
            self._container.close()

    def _refuse_jump(self, time: Fraction, expected: Fraction | None) -> None:
        if expected is not None and abs(time - expected) > _TIME_STAMP_JUMP:
            raise MediaError(
                f"{self.path}: the time stamps of the sound jump from {float(expected):.3f} to {float(time):.3f} s: "
                "sound is missing or doubled. Fill the gap with `ffmpeg -i FILE -af aresample=async=1 OUT.wav`, or "
                "leave the clip out."
            )

    def _refuse_truncated(self) -> None:
        stream, container, reached = self._stream, self._container, self._reached
        held = declared = Fraction(0)
        if stream.duration:
            declared = stream.duration * stream.time_base
            held = reached - (stream.start_time or 0) * stream.time_base
        elif container.duration:
            # the longest stream sets it, so all that was read counts, of whatever stream
            declared = Fraction(container.duration, 1_000_000)
            held = max(reached, self._end) - Fraction(container.start_time or 0, 1_000_000)
        slack = _MP3_SLACK if container.format.name == "mp3" else _DURATION_SLACK
        if held + Fraction(slack) < declared:
            raise truncated(self.path, f"it declares {float(declared):.3f} s, but ends after {float(held):.3f} s")


def _to_float(frame: Any, path: Path) -> numpy.ndarray:
    """Samples (C, T) float32 of a decoded frame of any sample format."""
    import numpy as np

    name, planar = frame.format.name, frame.format.is_planar
    data = frame.to_ndarray()
    if not planar:
        data = data.reshape(-1, frame.layout.nb_channels).T
    kind = name.removesuffix("p")
    if kind in ("flt", "dbl"):
        return data.astype(np.float32)
    if kind not in _INTEGER_SCALE:
        raise MediaError(f"{path}: the sample format {name!r} is not supported. Convert the file to wav first.")
    centred = data.astype(np.float64) - (2.0**7 if kind == "u8" else 0.0)
    return (centred / _INTEGER_SCALE[kind]).astype(np.float32)
