"""crc32c, by google-crc32c where it is installed, else by a slow NumPy form that says so once."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

_POLYNOMIAL = 0x82F63B78  # Castagnoli, reflected


@functools.cache
def _table() -> np.ndarray[Any, np.dtype[np.uint32]]:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1)
    return table.astype(np.uint32)


def slow_extend(crc: int, data: Any) -> int:
    """Continue a crc32c over more bytes in plain Python and NumPy (about 3 MB/s)."""
    table = _table().tolist()
    crc ^= 0xFFFFFFFF
    for byte in bytes(data):
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


@functools.cache
def _implementation() -> Callable[[int, Any], int]:
    try:
        import google_crc32c
    except ImportError:
        warnings.warn(
            "google-crc32c is not installed: checksums run in Python, about a thousand times slower. "
            "pip install google-crc32c",
            RuntimeWarning,
            stacklevel=3,
        )
        return slow_extend
    extend: Callable[[int, Any], int] = google_crc32c.extend
    return extend


def extend(crc: int, data: Any) -> int:
    """Continue ``crc`` over the bytes of an array, ``bytes`` or a memoryview."""
    if isinstance(data, memoryview | bytearray):
        data = np.frombuffer(data, np.uint8)
    elif isinstance(data, np.ndarray):
        data = data.reshape(-1).view(np.uint8)
    return _implementation()(crc, data)


def crc32c(data: Any) -> int:
    """Return the crc32c of the bytes of an array, ``bytes`` or a memoryview."""
    return extend(0, data)
