"""What checks say again and again: this call is refused so, these threads begin together."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from store.errors import StoreError


def refused(error: type[StoreError], kind: str, call: Callable[..., Any], *given: Any) -> None:
    """Assert that a call raises an error of a class and kind."""
    try:
        found = call(*given)
    except error as caught:
        assert caught.kind == kind, f"{kind} was due, {caught.kind} came: {caught}"  # noqa: PT017
        return
    msg = f"{kind} was due, {found!r} came"
    raise AssertionError(msg)


def together(run: Callable[[int], None], count: int) -> None:
    """Call a function with 0, 1, … in as many threads, which start together."""
    begin = threading.Barrier(count)

    def started(number: int) -> None:
        begin.wait()
        run(number)

    threads = [threading.Thread(target=started, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
