from __future__ import annotations

import io

import pytest

from mmssl.features.progress import Progress, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_lines_with_what_matters():
    output = io.StringIO()
    with Progress(10, 7200.0, output=output, interval=0.0) as progress:
        progress.update(clips=4, seconds=1800.0)
        progress.update(skipped=1)
    first, second = output.getvalue().splitlines()
    assert first.startswith("extract: 4/10 clips, 0.50/2.00 h, ")
    assert "x real time" in first
    assert " left" in first
    assert second.startswith("extract: 5/10 clips")
    assert second.endswith("1 skipped")
    assert progress.speed == pytest.approx(1800 / progress.elapsed, rel=0.5)


def test_lines_come_no_faster_than_the_interval_and_quiet_shows_none():
    for arguments in ({"interval": 1000.0}, {"interval": 0.0, "show": False}):
        output = io.StringIO()
        with Progress(10, 1.0, output=output, **arguments) as progress:
            progress.update(clips=1, seconds=0.1)
        assert output.getvalue() == ""
        assert progress.done == 1


def test_a_terminal_gets_a_bar():
    output = Terminal()
    with Progress(2, 10.0, output=output) as progress:
        progress.update(clips=2, seconds=10.0)
    assert "2/2" in output.getvalue()


def test_duration():
    assert [duration(s) for s in (0, 59.6, 3600, 36061)] == ["0:00", "1:00", "1:00:00", "10:01:01"]
