"""Partial columns: one mergeable state a part, named arrays in one safetensors file.

A state is whole or absent, so it is read and checked whole. Its size is bounded by the format: what grows with the
rows belongs into dense or scalar columns, and a reader need not trust a file of any size.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from store.errors import CorruptError, InvalidInputError
from store.records import canonical

Array = np.ndarray[Any, np.dtype[Any]]
MAX_PARTIAL_BYTES = 64 << 20
DTYPES = frozenset(
    ("float32", "float64", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))
)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@=:/-]{0,255}")
_STATE = "Nothing of the part was written; committed parts stand."


def partial_path(column: str) -> str:
    """Return where a partial column lies below its attempt."""
    return f"{column}.partial.safetensors"


def encode_partial(arrays: Mapping[str, Any], column: str) -> bytes:
    """Return the file of a state; equal states give equal bytes.

    Raises
    ------
    InvalidInputError
        ``bad-name``, ``dtype-mismatch`` or ``partial-too-large``.
    """
    from safetensors.numpy import save

    plain = {name: _checked(name, arrays[name], column) for name in sorted(arrays)}
    need = sum(array.nbytes for array in plain.values())
    data = save(plain) if need <= MAX_PARTIAL_BYTES else b""
    if max(need, len(data)) > MAX_PARTIAL_BYTES:
        raise InvalidInputError(
            f"the state put into partial column {column!r} takes {max(need, len(data)):,} bytes; one part's may "
            f"take {MAX_PARTIAL_BYTES:,}. {_STATE} Keep sums and counts, not rows.",
            kind="partial-too-large",
            column=column,
        )
    return data


def _checked(name: str, values: Any, column: str) -> Array:
    array = np.asarray(values)
    if _NAME.fullmatch(name) is None:
        raise InvalidInputError(
            f"the state put into partial column {column!r} has an array called {name[:80]!r}; names are letters, "
            f"digits and _ . @ = : / -, at most 256, not starting with a sign. {_STATE} Choose another name.",
            kind="bad-name",
            column=column,
        )
    if array.dtype.name not in DTYPES:
        raise InvalidInputError(
            f"array {name!r} of the state put into partial column {column!r} is {array.dtype}; understood are "
            f"{', '.join(sorted(DTYPES))}. {_STATE} Convert it first.",
            kind="dtype-mismatch",
            column=column,
        )
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(array.shape)


def decode_partial(data: bytes, where: str) -> dict[str, Array]:
    """Return the arrays of a state, read-only, or raise ``CorruptError`` (``object-damaged``)."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    check_partial_size(len(data), where)
    try:
        arrays = load(data)
        good = all(
            array.dtype.name in DTYPES and _NAME.fullmatch(name) for name, array in arrays.items()
        )
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise _damaged(where, f"it cannot be read as one ({error})") from error
    if not good:
        raise _damaged(where, "it has arrays of other names or dtypes than a state has")
    for array in arrays.values():
        array.flags.writeable = False
    return dict(sorted(arrays.items()))


def check_partial_size(size_bytes: int, where: str) -> None:
    """Raise ``CorruptError`` where a file is larger than any state may be."""
    if size_bytes > MAX_PARTIAL_BYTES:
        raise _damaged(
            where, f"it takes {size_bytes:,} bytes, a state at most {MAX_PARTIAL_BYTES:,}"
        )


def _damaged(where: str, why: str) -> CorruptError:
    return CorruptError(
        f"{where} is no state: {why}. Nothing of it was returned. Make the group again under another name.",
        kind="object-damaged",
        path=where,
    )


def partial_hash(arrays: Mapping[str, Array]) -> str:
    """Return the hash of a state's names, dtypes, shapes and values, hex; how the file says it plays no part."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        total.update(canonical([name, array.dtype.name, list(array.shape)]) + b"\n")
        total.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
    return total.hexdigest()
