"""The waveform of a long sound file in windows, without ever holding all of it."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING

from mmssl.errors import InputError
from mmssl.lengths import resampled_length, seconds_to_samples
from mmssl.media import container, sound_file
from mmssl.media.audio import cancelled, check_extent, check_request, check_values, silent
from mmssl.media.remote import local_file
from mmssl.media.resampling import resample_stretch

if TYPE_CHECKING:
    import numpy
    from torch import Tensor


class AudioStream:
    """A sound file, or a stretch of it, that is decoded and resampled as it is asked for. Use as a context manager.

    What `read` gives are slices of what `load_audio` gives for the same file. Windows go forwards: each begins where
    the one before began, or later. Decoded samples before a window are forgotten.

    Args:
        path: as `load_audio`.
        sample_rate: rate of the result in Hz; None keeps the file's own.
        start: first moment, in seconds.
        duration: in seconds; None means to the end.

    Attributes:
        sample_rate: of the result, in Hz.
        num_samples: of the result.

    Raises:
        MediaError: as `load_audio`; faults within the file show when they are reached.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        sample_rate: int | None = None,
        start: float = 0.0,
        duration: float | None = None,
    ):
        self._resources = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            self._file = file = stack.enter_context(local_file(path))
            check_request(file, sample_rate, start, duration)
            try:
                rate, total, pieces = sound_file.stream(file, start, duration)
            except sound_file.UnreadableError:
                rate, total, pieces = container.stream(file, start, duration)
            first = seconds_to_samples(start, rate)
            last = total if duration is None else min(total, first + seconds_to_samples(duration, rate))
            self._total = max(last - first, 0)
            check_extent(file, self._total, rate, total, start, duration)
            self._resources = stack.pop_all()
        self._rate = rate
        self.sample_rate = rate if sample_rate is None else sample_rate
        self.num_samples = resampled_length(self._total, rate, self.sample_rate)
        self._pieces: Iterator[numpy.ndarray] = pieces
        self._held: deque[numpy.ndarray] = deque()
        self._begin = self._end = 0
        self._first = 0
        self._heard = self._mixed = False

    def __enter__(self) -> AudioStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # an open decoder ends with its generator
        self._pieces = iter(())
        self._held.clear()
        self._resources.__exit__(kind, error, at)

    def read(self, first: int, last: int) -> Tensor:
        """Samples first ... last - 1 of the waveform, (n,) float32; what lies past its end is left out.

        Raises:
            InputError: the window begins before the one before.
            MediaError: the file is damaged here, holds values that are no sound, or was silent up to its end.
        """
        if first < self._first:
            raise InputError(f"Windows of a stream go forwards: {first} lies before {self._first}.")
        self._first, last = first, min(last, self.num_samples)
        if self._rate == self.sample_rate:
            return self._decoded(first, last)
        return resample_stretch(self._decoded, self._total, self._rate, self.sample_rate, first, last)

    def _decoded(self, first: int, last: int) -> Tensor:
        """Samples at the file's own rate."""
        import numpy as np
        import torch

        while self._end < last:
            self._take()
        while self._held and self._begin + len(self._held[0]) <= first:
            self._begin += len(self._held.popleft())
        if first >= last:
            return torch.zeros(0)
        held = np.concatenate(self._held) if len(self._held) > 1 else self._held[0]
        return torch.from_numpy(held[first - self._begin : last - self._begin].copy())

    def _take(self) -> None:
        piece = next(self._pieces, None)
        if piece is None:
            raise sound_file.truncated(self._file, f"{self._total} samples are declared, but only {self._end} come")
        check_values(self._file, piece)
        mono = piece[0] if len(piece) == 1 else piece.mean(axis=0)
        self._heard, self._mixed = self._heard or bool(piece.any()), self._mixed or bool(mono.any())
        self._held.append(mono)
        self._end += len(mono)
        if self._end >= self._total and not self._mixed:
            raise cancelled(self._file) if self._heard else silent(self._file, self._total)
