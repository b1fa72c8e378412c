"""The pictures of any file that FFmpeg reads through PyAV, with the time that each is on screen.

A picture is either what the encoder wrote or an error: the decoder is told to fail where it would patch a damaged
picture from its neighbours. Decoding starts at the beginning of the file unless its container has an index that
leads exactly to a key frame (mp4, mov, mkv, webm).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from mmssl.errors import MediaError
from mmssl.media.sound_file import truncated

_INDEXED = ("mov", "matroska", "webm")
# Containers round their durations, and the last picture's own is often unknown.
_DURATION_SLACK = Fraction(1, 4)
# Longer than any picture of a camera stays on screen; a screen recorder tells how long it does.
_LONGEST_GAP = Fraction(2)
_STILLS = ("image2", "_pipe")


@dataclass(frozen=True)
class Picture:
    """One decoded picture: on screen from `start` to `end` (s, on the container's clock); `frame` is PyAV's."""

    start: Fraction
    end: Fraction
    frame: Any


class Pictures:
    """An open container and the decoder of its first video stream (cover pictures of sound files do not count).

    Attributes:
        frame_rate: pictures per second that the file declares, exact: 30000/1001 for NTSC.
        tick: of the time stamps, in seconds.
        num_decoded: pictures decoded so far.

    Raises:
        MediaError: not a media file, no video stream, or (while reading) truncated or damaged.
    """

    container: Any
    stream: Any

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_decoded = 0
        self._end = self._reached = Fraction(0)
        self._sought = False
        self._open()
        self.frame_rate = self._declared_rate()
        self.tick = Fraction(self.stream.time_base)

    def __enter__(self) -> Pictures:
        return self

    def __exit__(self, *exception: object) -> None:
        self.container.close()

    def rewind(self) -> None:
        """Start again at the first picture, in a newly opened file."""
        self.container.close()
        self._open()

    def seek(self, time: Fraction) -> bool:
        """Go to a key frame at or before a time on the container's clock; False where that cannot be relied on."""
        import av

        if not any(name in self.container.format.name.split(",") for name in _INDEXED):
            return False
        try:
            self.container.seek(int(time / self.tick), stream=self.stream)
        except av.error.FFmpegError:
            return False
        self._sought = True
        return True

    def __iter__(self) -> Iterator[Picture]:
        """Pictures in the order of time from here to the end."""
        previous: Picture | None = None
        for frame in self._decoded():
            start = previous.end if previous is not None else Fraction(0)
            if frame.pts is not None:
                start = frame.pts * Fraction(frame.time_base)
            shown = frame.duration * Fraction(frame.time_base) if frame.duration else 1 / self.frame_rate
            if previous is not None:
                self._check_step(previous, start)
            elif self._sought and not frame.key_frame:
                raise LostError
            previous = Picture(start, start + shown, frame)
            self._reached = max(self._reached, previous.end)
            yield previous
        self._check_end()

    def packet_times(self) -> list[tuple[Fraction, Fraction]] | None:
        """Start and end of every picture without decoding any, unsorted; None where the container does not tell."""
        times = []
        for packet in self._packets():
            if packet.size == 0 or packet.is_discard:
                continue
            if packet.pts is None:
                return None
            start = packet.pts * self.tick
            times.append((start, start + (packet.duration * self.tick if packet.duration else 1 / self.frame_rate)))
        self._reached = max((end for _, end in times), default=Fraction(0))
        self._check_end()
        return times

    def empty(self) -> MediaError:
        """The error for a video stream that holds nothing."""
        return MediaError(
            f"{self.path} has a video stream, but no picture in it can be decoded: the file is truncated or damaged. "
            "Restore it from its source or leave the clip out."
        )

    def _open(self) -> None:
        import av

        self._end = self._reached = Fraction(0)
        self._sought = False
        try:
            # "file:" and the white list keep playlists and odd names from opening anything but local files
            self.container = av.open(f"file:{self.path}", options={"protocol_whitelist": "file"})
        except (av.error.FFmpegError, ValueError) as error:
            raise MediaError(
                f"{self.path} is not a video file that can be decoded ({getattr(error, 'strerror', error)}): it is "
                "damaged, truncated, or something else under this name. Check what it is with `file`."
            ) from error
        cover = av.stream.Disposition.attached_pic
        streams = [stream for stream in self.container.streams.video if not stream.disposition & cover]
        problem = ""
        if not streams:
            kinds = sorted({stream.type for stream in self.container.streams if stream.type != "video"})
            problem = f"holds no video stream, only {' and '.join(kinds) or 'nothing'}."
        elif any(self.container.format.name.endswith(name) for name in _STILLS):
            problem = "is a single picture, not a video: read it with load_image."
        if problem:
            self.container.close()
            raise MediaError(f"{self.path} {problem}")
        self.stream = streams[0]
        # without it, decoders fill damaged areas from elsewhere and say nothing
        self.stream.codec_context.options = {"err_detect": "explode"}
        self.stream.codec_context.thread_count = 1

    def _declared_rate(self) -> Fraction:
        guessed, average = self.stream.guessed_rate, self.stream.average_rate
        # of files with a variable rate the guess can be the rate of the clock
        rate = average if guessed and average and guessed > 2 * average else guessed or average
        if not rate or rate <= 0:
            self.container.close()
            raise MediaError(f"{self.path}: its video stream declares no frame rate. Convert it to mp4 first.")
        return Fraction(rate)

    def _packets(self) -> Iterator[Any]:
        cut = False
        for packet in self.container.demux():
            if packet.size:
                cut = packet.is_corrupt
            if packet.pts is not None and packet.time_base is not None:
                self._end = max(self._end, (packet.pts + (packet.duration or 0)) * packet.time_base)
            if packet.stream.index != self.stream.index:
                continue
            if packet.is_corrupt:
                break
            yield packet
        if cut:
            raise truncated(self.path, f"it breaks off within a packet after {float(self._end):.3f} s")

    def _decoded(self) -> Iterator[Any]:
        import av

        try:
            for packet in self._packets():
                for frame in packet.decode():
                    if frame.is_corrupt:
                        raise self._damaged("a picture is incomplete")
                    self.num_decoded += 1
                    yield frame
        except av.error.FFmpegError as error:
            raise self._damaged(error.strerror or type(error).__name__) from error

    def _damaged(self, reason: str) -> MediaError:
        return MediaError(
            f"{self.path}: decoding the video failed after {self.num_decoded} pictures, at about "
            f"{float(self._end):.3f} s ({reason}): the file is truncated or damaged. Restore it from its source or "
            "leave the clip out."
        )

    def _check_step(self, previous: Picture, start: Fraction) -> None:
        if start < previous.start or start - previous.end > _LONGEST_GAP:
            raise MediaError(
                f"{self.path}: the time stamps of the video jump from {float(previous.start):.3f} to "
                f"{float(start):.3f} s: pictures are missing or out of order. Encode the file anew or leave the clip "
                "out."
            )

    def _check_end(self) -> None:
        stream, container = self.stream, self.container
        held = declared = Fraction(0)
        if stream.duration:
            declared = stream.duration * self.tick
            held = self._reached - (stream.start_time or 0) * self.tick
        elif container.duration:
            # the longest stream sets it, so all that was read counts, of whatever stream
            declared = Fraction(container.duration, 1_000_000)
            held = max(self._reached, self._end) - Fraction(container.start_time or 0, 1_000_000)
        if held + _DURATION_SLACK < declared:
            raise truncated(self.path, f"it declares {float(declared):.3f} s, but ends after {float(held):.3f} s")


class LostError(Exception):
    """A seek led to no key frame: read from the beginning instead."""
