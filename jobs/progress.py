"""Progress of long work on the terminal: done, rate and time left; plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

_LINE_SECONDS = 5.0


class Progress:
    """Shows phases one after the other; callable as ``(phase, done, total)``.

    Parameters
    ----------
    quiet
        Show nothing (``--json``).
    check
        Called at every step, to end a run from a safe place.
    """

    def __init__(self, *, quiet: bool = False, check: Callable[[], None] = lambda: None) -> None:
        self._quiet = quiet
        self._check = check
        self._live: Any = None
        self._tasks: dict[str, Any] = {}
        self._began: dict[str, tuple[float, int]] = {}
        self._said = 0.0

    def __enter__(self) -> Self:
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bars

            self._live = Bars(
                TextColumn("{task.description:>9}", markup=False),
                BarColumn(bar_width=28),
                TextColumn("{task.fields[note]}", markup=False),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __call__(
        self, phase: str, done: int, total: int | None, note: str = "", unit: str = "rows"
    ) -> None:
        """Say that ``done`` of ``total`` rows (or another unit) of a phase are done."""
        self._check()
        if self._quiet:
            return
        now = time.monotonic()
        start, first = self._began.setdefault(phase, (now, done))
        rate = (done - first) / max(now - start, 1e-9)
        said = f"{done:,}" + (f" of {total:,}" if total else "") + f" {unit}"
        if rate and now - start > 1:
            said += f", {rate:,.0f} {unit}/s"
        said += f", {note}" if note else ""
        if self._live is not None:
            if phase not in self._tasks:
                self._tasks[phase] = self._live.add_task(phase, total=total, note="")
            self._live.update(self._tasks[phase], completed=done, total=total, note=said)
        elif now - self._said > _LINE_SECONDS or done == total:
            self._said = now
            left = (
                f", {(total - done) / rate:,.0f} s left" if total and rate and done < total else ""
            )
            sys.stderr.write(f"{phase}: {said}{left}\n")
            sys.stderr.flush()
