"""Ctrl-C and SIGTERM: at once where that is safe, after the step where a loop asks for it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interrupts:
    """Turns SIGINT and SIGTERM into ``KeyboardInterrupt``, or into a flag inside ``deferred``.

    A second signal always raises. A signal that is ignored when we come (``nohup``, a shell's background job)
    stays ignored. Outside the main thread signals cannot be caught; nothing changes there.
    """

    def __init__(self) -> None:
        self._asked = False
        self._deferred = False

    def asked(self) -> bool:
        """Return whether a signal arrived."""
        return self._asked

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        again, self._asked = self._asked, True
        if not self._deferred or again:
            raise KeyboardInterrupt

    def check(self) -> None:
        """Raise where a signal came and its exception was lost, as one raised in a finalizer is."""
        if self._asked and not self._deferred:
            raise KeyboardInterrupt

    @contextmanager
    def installed(self) -> Iterator[Interrupts]:
        """Catch signals for a while."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before: dict[int, Any] = {
            number: signal.signal(number, self._handle)
            for number in (signal.SIGINT, signal.SIGTERM)
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        try:
            yield self
        finally:
            for number, handler in before.items():
                # None: it was set outside Python, which cannot put it back.
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Only set the flag while inside, for loops that end cleanly by themselves.

        Raises
        ------
        KeyboardInterrupt
            On leaving, where a signal came and the loop ended without looking.
        """
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self._asked:
            raise KeyboardInterrupt
