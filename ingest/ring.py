"""Rows on their way from the model to the store: landed in host memory, and written by a thread of their own.

From a GPU, values are copied into pinned memory on a stream of their own, so that neither the copy nor the writing holds up
the next forward. What is on its way is bounded in batches; whoever brings more waits, and that wait is what a harvest exposes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DEPTH = 2
"""Batches on their way at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Landing:
    """Values in host memory, or about to be."""

    values: dict[str, Tensor]
    """Not to be looked at before `wait`."""
    arrived: Any = None
    """The event behind the copies; None where the values were there."""

    def wait(self) -> dict[str, Tensor]:
        """Return the values once they are there."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.values


class Ring:
    """Lands values and writes them in order, one after the other.

    Parameters
    ----------
    device
        Where values come from.
    """

    def __init__(self, device: str | torch.device, depth: int = DEPTH) -> None:
        self._device = torch.device(device)
        self._depth = depth
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="actlake-write")
        self._under_way: deque[Future[float]] = deque()
        self._cpu_seconds = 0.0
        self._failed = False
        self._stream = _stream_of(self._device)
        self._pinned: list[dict[str, Tensor]] = [{} for _ in range(depth + 2)]
        self._turn = 0

    def land(self, values: Mapping[str, Tensor], *, lasting: bool = False) -> Landing:
        """Return values in host memory; from a GPU, while the copy is still under way.

        Parameters
        ----------
        lasting
            Whether somebody may hold on to them, so that their memory is not used again.

        Notes
        -----
        Pinned memory is used again ``depth + 2`` landings later: by then what was landed must have been written, which
        `submit` sees to when each landing is submitted before the next but one.
        """
        if self._stream is None:
            return Landing(values={name: value.cpu() for name, value in values.items()})
        pinned: dict[str, Tensor] = {}
        if not lasting:
            pinned = self._pinned[self._turn % len(self._pinned)]
            self._turn += 1
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        landed = {}
        with torch.cuda.stream(self._stream):
            for name, value in values.items():
                landed[name] = _room(pinned, name, value)
                landed[name].copy_(value, non_blocking=True)
                value.record_stream(self._stream)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record(self._stream)
        return Landing(values=landed, arrived=arrived)

    def submit(self, write: Callable[[], object]) -> None:
        """Have something written behind what was submitted before; wait while as much as there may be is under way.

        Raises
        ------
        BaseException
            What an earlier write raised; this one is not begun, and those behind the failed one were left out.
        """
        while len(self._under_way) >= self._depth:
            self._settle()
        self._under_way.append(self._thread.submit(self._run, write))

    def drain(self) -> None:
        """Wait until everything is written, or raise what a write raised."""
        while self._under_way:
            self._settle()

    def cancel(self) -> None:
        """Leave out what is not begun and wait for what is, whatever comes of it.

        An interrupt meanwhile is raised when that is over: whoever drops what was written must not do so while more is.
        """
        interrupt = None
        for one in self._under_way:
            one.cancel()
        while not all(one.done() for one in self._under_way):
            try:
                wait(self._under_way)
            except BaseException as error:  # noqa: BLE001 - raised below
                interrupt = error
        self._under_way.clear()
        self._failed = False
        if interrupt is not None:
            raise interrupt

    def cpu_seconds(self) -> float:
        """Return the CPU time of writing since this was asked before."""
        found, self._cpu_seconds = self._cpu_seconds, 0.0
        return found

    def close(self) -> None:
        """End the thread."""
        self.cancel()
        self._thread.shutdown()

    def _run(self, write: Callable[[], object]) -> float:
        """Write, and return the CPU time of it; behind a write that failed nothing is written."""
        began = time.thread_time()
        if not self._failed:
            try:
                write()
            except BaseException:
                self._failed = True
                raise
        return time.thread_time() - began

    def _settle(self) -> None:
        try:
            # It stays among those under way until it is over: an interrupt must find it there.
            cpu_seconds = self._under_way[0].result()
        except BaseException:
            self.cancel()
            raise
        self._under_way.popleft()
        self._cpu_seconds += cpu_seconds


def _stream_of(device: torch.device) -> Any:
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


def _room(pinned: dict[str, Tensor], name: str, value: Tensor) -> Tensor:
    """Return pinned memory of a value's shape and dtype, kept between landings and grown where it is too small."""
    size = value.numel() * value.element_size()
    held = pinned.get(name)
    if held is None or held.numel() < size:
        held = pinned[name] = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    return held[:size].view(value.dtype).view(value.shape)
