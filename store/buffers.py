"""Memory that is used again: fresh memory costs page faults, which take longer than filling it.

``Scratch`` holds what one call needs until its end; ``Pool`` hands out arrays that callers keep as long as they like.
"""

from __future__ import annotations

import math
import threading
import weakref
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


class Scratch(threading.local):
    """Buffers kept between calls, for all shards of a view, per thread."""

    def __init__(self) -> None:
        self._held: dict[str, Array] = {}

    def take(self, name: str, size_bytes: int) -> Array:
        """Return ``uint8[size_bytes]`` whose contents the next call of that name may overwrite."""
        held = self._held.get(name)
        if held is None or len(held) < size_bytes:
            held = self._held[name] = np.empty(size_bytes, np.uint8)
        found: Array = held[:size_bytes]
        return found

    def array(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return an array whose contents the next call of that name may overwrite."""
        dtype = np.dtype(dtype)
        held: Array = self.take(name, math.prod(shape) * dtype.itemsize).view(dtype)
        return held.reshape(shape)


class _Loan:
    """Owns memory for the arrays that look at it; when the last one dies, the memory goes back."""

    def __init__(self, memory: Array, pool: Pool) -> None:
        self._memory, self._pool = memory, weakref.ref(pool)
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        pool = self._pool()
        if pool is not None:
            pool.free.append(self._memory)


class Pool:
    """Arrays whose memory is lent again once nothing looks at it any more, views and tensors included.

    Memory goes with the pool: what is lent when the pool is dropped is freed by whoever drops it last. Threads may share one.
    """

    def __init__(self) -> None:
        self.free: list[Array] = []
        self._lock = threading.Lock()

    def take(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return an array of undefined contents that is the caller's alone."""
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        with self._lock:  # a loan that ends meanwhile only adds to what is free
            fitting = [at for at, held in enumerate(self.free) if len(held) >= size]
            memory = (
                self.free.pop(min(fitting, key=lambda at: len(self.free[at]))) if fitting else None
            )
            if memory is None:
                self.free.clear()  # too small for what is asked now, so for what follows
        if memory is None:
            memory = np.empty(size, np.uint8)
        lent: Array = np.asarray(_Loan(memory, self))[:size].view(dtype)
        return lent.reshape(shape)
