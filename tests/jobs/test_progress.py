"""What long work says of itself, on a terminal and into a file."""

from __future__ import annotations

import io

import pytest

import jobs.progress
from jobs.progress import Progress


class Clock:
    """A clock that moves when told."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(jobs.progress.time, "monotonic", made.monotonic)
    return made


def run(capsys, calls, clock, **options):
    with Progress(**options) as progress:
        for seconds, call in calls:
            clock.now += seconds
            progress(*call)
    return capsys.readouterr().err.splitlines()


def test_lines_come_every_few_seconds_with_rate_and_time_left(capsys, clock):
    calls = [(0, ("train", 0, 1000))] + [(1, ("train", 10 * n, 1000)) for n in range(1, 13)]
    assert run(capsys, calls, clock) == [
        "train: 0 of 1,000 rows",
        "train: 60 of 1,000 rows, 10 rows/s, 94 s left",
        "train: 120 of 1,000 rows, 10 rows/s, 88 s left",
    ]


def test_the_end_is_always_said(capsys, clock):
    calls = [(0, ("tokens", 1, 3)), (0.1, ("tokens", 2, 3)), (0.1, ("tokens", 3, 3))]
    assert run(capsys, calls, clock)[-1] == "tokens: 3 of 3 rows"


def test_work_without_a_known_end_and_with_a_note(capsys, clock):
    calls = [
        (6, ("verify", 0, None, "quick [a]", "MiB")),
        (10, ("verify", 2048, None, "quick [a]", "MiB")),
    ]
    assert run(capsys, calls, clock) == [
        "verify: 0 MiB, quick [a]",
        "verify: 2,048 MiB, 205 MiB/s, quick [a]",
    ]


def test_a_resumed_phase_counts_its_rate_from_where_it_began(capsys, clock):
    calls = [(6, ("harvest", 900, 1000)), (10, ("harvest", 950, 1000))]
    assert run(capsys, calls, clock)[-1] == "harvest: 950 of 1,000 rows, 5 rows/s, 10 s left"


def test_quiet_says_nothing(capsys, clock, monkeypatch):
    monkeypatch.setattr("sys.stderr", Screen())
    with Progress(quiet=True) as progress:
        progress("train", 1, 1)
    assert jobs.progress.sys.stderr.getvalue() == ""


def test_a_terminal_gets_a_bar_for_each_phase(monkeypatch):
    screen = Screen()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with Progress() as progress:
        progress("tokens", 5, 5)
        progress("train", 1, 10, "FVU [0.5]")
        progress("train", 10, 10, "FVU [0.4]")
    text = screen.getvalue()
    assert "tokens" in text
    assert "5 of 5 rows" in text
    assert "FVU [0.4]" in text
    assert progress._live is None


def test_the_terminal_is_given_back_after_an_error(monkeypatch):
    screen = Screen()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm")

    def work():
        with Progress() as progress:
            progress("train", 1, None)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert screen.getvalue().endswith("\x1b[?25h")  # the cursor is shown again
