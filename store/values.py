"""What callers put: values checked and turned into the dtype a column stores, before a byte is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from store import tables
from store.codecs import CODECS
from store.errors import InvalidInputError
from store.schema import Column
from store.summary import bfloat16_bits, float32_of_bits

Array = np.ndarray[Any, np.dtype[Any]]
_STATE = "The unfinished part was dropped; committed parts stand."


@dataclass(frozen=True, kw_only=True, slots=True)
class Codes:
    """Active latents of some rows: ``row int64[N]``, ``latent uint32[N]``, ``value float32[N]``."""

    row: Array
    latent: Array
    value: Array

    @classmethod
    def of(cls, data: Any) -> Codes:
        """Return the codes of a table, stored or joined of several."""
        row, latent, value = (tables.column(data, name) for name in ("row", "latent", "value"))
        return cls(row=row, latent=latent, value=value)


def check_codes(values: Any, rows: Array, place: str, state: str) -> None:
    """Raise ``codes-mismatch`` unless ``values`` are codes of ``rows``, by ascending row."""
    if not isinstance(values, Codes):
        what = f"are a {type(values).__name__}; a codes column takes store.Codes"
    else:
        row, latent = np.asarray(values.row), np.asarray(values.latent)
        lengths = {len(row), len(latent), len(np.asarray(values.value))}
        if len(lengths) != 1 or (len(row) and {row.dtype.kind, latent.dtype.kind} - set("iu")):
            what = (
                f"have arrays of {sorted(lengths)} items, or rows or latents that are no integers"
            )
        elif (np.diff(row) < 0).any() or not np.isin(row, rows).all():
            what = "name rows that were not put with them, or not in ascending order"
        elif len(latent) and not 0 <= int(latent.min()) <= int(latent.max()) < 1 << 32:
            what = f"have latents from {latent.min()} to {latent.max()}; they fit in uint32"
        else:
            return
    raise InvalidInputError(
        f"codes put into {place} {what}. {state} Mend them.", kind="codes-mismatch"
    )


def check_columns(group: str, columns: Mapping[str, Column], *, masked: bool) -> None:
    """Raise ``column-kind`` unless columns of these kinds may be written together."""
    kinds = [column.kind for column in columns.values()]
    known = {"dense", "scalar", "codes", "partial"}
    if (
        not columns
        or set(kinds) - known
        or kinds.count("codes") > 1
        or {"codes", "scalar"} <= set(kinds)
        or {"partial"} < set(kinds)
        or (masked and "partial" in kinds)
    ):
        raise InvalidInputError(
            f"group {group!r} would have columns {', '.join(f'{c.name}: {c.spec}' for c in columns.values())}"
            "; a group holds dense columns with scalar columns or with one codes column, or partial columns "
            "alone and of all rows. Nothing was written. Split it into two groups.",
            kind="column-kind",
        )
    for column in columns.values():
        why = CODECS.get(column.codec)().refuses(column) if column.kind == "dense" else None
        if why is not None:
            raise InvalidInputError(
                f"column {column.name!r} of group {group!r} cannot be coded as {column.codec!r}: {why}. Nothing was "
                "written. Use the codec raw.",
                kind="not-codable",
                column=column.name,
            )


def check_shape(values: Any, column: Column, rows: int, place: str, state: str) -> None:
    """Raise ``width-mismatch`` or ``rows-mismatch`` unless values are ``rows`` rows of a column."""
    shape = tuple(np.shape(values))
    if shape[1:] != column.shape:
        raise InvalidInputError(
            f"rows put into {place} have shape {list(shape[1:])}; column {column.name!r} holds "
            f"{list(column.shape)}. {state} Put rows of the column's width.",
            kind="width-mismatch",
            column=column.name,
        )
    if shape[0] != rows:
        raise InvalidInputError(
            f"{rows} row ids but {shape[0]} rows of column {column.name!r} were put into {place}. {state} "
            "Give one id a row.",
            kind="rows-mismatch",
        )


def rows_of(values: Any, rows: Array, low: int, high: int) -> Any:
    """Return the values of ``rows[low:high]``."""
    if isinstance(values, Codes):
        first, last = np.searchsorted(values.row, [rows[low], rows[high - 1] + 1])
        return Codes(
            row=values.row[first:last],
            latent=values.latent[first:last],
            value=values.value[first:last],
        )
    return np.asarray(values)[low:high]


def stored_values(values: Any, column: Column, *, raw: bool) -> Array:
    """Return values in the stored dtype.

    Floats are rounded to nearest even and may become infinite there; integers that do not fit are refused.
    """
    values = np.asarray(values)
    if column.dtype == "bfloat16":
        if raw:
            if values.dtype != np.uint16:
                raise InvalidInputError(
                    f"raw=True takes uint16 bits for bfloat16 column {column.name!r}; found {values.dtype}. "
                    f"{_STATE} Put the bits, or float32 without raw.",
                    kind="dtype-mismatch",
                )
            bits = np.ascontiguousarray(values)
        else:
            bits = bfloat16_bits(_cast(values, np.dtype(np.float32), column))
        return bits if column.bits else float32_of_bits(bits)
    return _cast(values, column.stored, column)


def _cast(values: Array, target: np.dtype[Any], column: Column) -> Array:
    if not np.can_cast(values.dtype, target, "same_kind"):
        raise InvalidInputError(
            f"column {column.name!r} holds {column.dtype}; found {values.dtype}. {_STATE} Convert the values "
            "first.",
            kind="dtype-mismatch",
        )
    if target.kind in "iu" and values.size and not np.can_cast(values.dtype, target, "safe"):
        low, high = int(values.min()), int(values.max())
        if low < np.iinfo(target).min or high > np.iinfo(target).max:
            raise InvalidInputError(
                f"column {column.name!r} holds {column.dtype}; found values from {low} to {high}. {_STATE} "
                "Use a wider dtype.",
                kind="out-of-range",
            )
    with np.errstate(over="ignore"):  # what becomes infinite is found by the summary
        return np.ascontiguousarray(values, target)
