"""Conditions on columns of tables: which rows a filter keeps; beside ``store.tables`` the only door to pyarrow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from store.errors import InvalidInputError

_OPERATORS = {
    "==": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
Condition = tuple[str, str, Any]


def select(data: Any, where: Sequence[Condition]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return which rows of an Arrow table meet every ``(column, operator, value)`` of ``where``.

    Operators are ``== != < <= > >= in`` and, for bit flags, ``has`` and ``lacks``.
    """
    keep = np.ones(len(data), bool)
    for name, operator, value in where:
        try:
            met = _met(data.column(name), operator, value)
        except (pa.ArrowException, TypeError, OverflowError, NotImplementedError) as error:
            raise InvalidInputError(
                f"where has ({name!r}, {operator!r}, {value!r}), which does not fit the column's type "
                f"{data.column(name).type} ({error}). Nothing was read. Mend the filter.",
                kind="bad-where",
            ) from error
        keep &= np.asarray(pc.fill_null(met, False))  # noqa: FBT003 - Arrow's own signature
    return keep


def _met(values: Any, operator: str, value: Any) -> Any:
    if operator in _OPERATORS:
        return _OPERATORS[operator](values, value)
    if operator == "in":
        return pc.is_in(values, value_set=pa.array(sorted(value), type=values.type))
    if operator in {"has", "lacks"}:
        bits = pc.bit_wise_and(values, pa.scalar(value, type=values.type))
        return pc.equal(bits, pa.scalar(value if operator == "has" else 0, type=values.type))
    raise InvalidInputError(
        f"where has the operator {operator!r}; known: == != < <= > >= in has lacks. Nothing was read. "
        "Mend the filter.",
        kind="bad-where",
    )
