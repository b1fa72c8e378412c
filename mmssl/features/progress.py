"""Progress of an extraction: a bar on a terminal, a line every few seconds in a log, or nothing."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, TextIO


class Progress:
    """Counts clips and hours of audio and shows them. Use as a context manager.

    Args:
        clips: number to do.
        seconds: of audio to do.
        show: False shows nothing.
        output: where to; standard error by default.
        interval: seconds between two lines where the output is no terminal.
    """

    def __init__(
        self, clips: int, seconds: float, *, show: bool = True, output: TextIO | None = None, interval: float = 10.0
    ):
        self.clips, self.seconds = clips, seconds
        self.done, self.done_seconds, self.skipped = 0, 0.0, 0
        self.show, self.output, self.interval = show, output or sys.stderr, interval
        self._bar: Any = None
        self._task: Any = None
        self._started = self._printed = time.monotonic()

    def __enter__(self) -> Progress:
        if self.show and self.output.isatty():
            self._open_bar()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    @property
    def speed(self) -> float:
        """Seconds of audio per second (the inverse of the real-time factor)."""
        return self.done_seconds / max(self.elapsed, 1e-9)

    def update(self, clips: int = 0, seconds: float = 0.0, skipped: int = 0) -> None:
        """Count what has been done or left out since the last call."""
        self.done += clips
        self.done_seconds += seconds
        self.skipped += skipped
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done + self.skipped, state=self._state())
        elif self.show and time.monotonic() - self._printed >= self.interval:
            self._printed = time.monotonic()
            print(
                f"extract: {self.done + self.skipped}/{self.clips} clips, {self._state()}", file=self.output, flush=True
            )

    def _state(self) -> str:
        remaining = (self.seconds - self.done_seconds) / self.speed if self.done_seconds else None
        parts = [
            f"{self.done_seconds / 3600:.2f}/{self.seconds / 3600:.2f} h",
            f"{self.speed:.1f}x real time",
            f"{duration(remaining)} left" if remaining is not None else "",
            f"{self.skipped} skipped" if self.skipped else "",
        ]
        return ", ".join(part for part in parts if part)

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("extract"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[state]}"))
        self._bar = Bar(*columns, console=Console(file=self.output))
        self._task = self._bar.add_task("extract", total=self.clips, state="")
        self._bar.start()


def duration(seconds: float) -> str:
    """Seconds as "1:02:03" or "2:03"."""
    whole = max(round(seconds), 0)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
