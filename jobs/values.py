"""Values of settings: what a flag, a file or a Python caller says becomes the one value they all mean.

Strict where types are concerned (a YAML ``true`` is no number, ``out: 3`` no name) and lenient in spelling: 400k,
"4k,16k", one name where several may stand.
"""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

DECIMAL: Mapping[str, int] = {"k": 1000, "m": 1000**2, "g": 1000**3}
BINARY: Mapping[str, int] = {"k": 1024, "m": 1024**2, "g": 1024**3}


def count(text: str, units: Mapping[str, int]) -> int:
    """Return ``400k``, ``1.5M`` or ``4096`` as a number, or raise ``ValueError`` unless it is 1, 2, 3, …."""
    plain = text.strip().replace("_", "").lower()
    unit = units.get(plain[-1:], 1)
    digits = plain[:-1] if unit > 1 else plain
    number = Fraction(0)
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", digits):
        number = Fraction(digits) * unit  # exact: in floats 2.01k is not whole
    if number.denominator != 1 or number <= 0:
        msg = f"{text!r} is not a positive whole number, as 4096, 16k or 1.5M"
        raise ValueError(msg)
    return int(number)


def share(text: str) -> float:
    """Return a number in (0, 1], ``.25``, or raise ``ValueError``."""
    number = float(text)
    if not 0 < number <= 1:
        msg = f"{text!r} is not a share: a number above 0 and at most 1, as .25"
        raise ValueError(msg)
    return number


def grid(text: str, read: Callable[[str], Any]) -> tuple[Any, ...]:
    """Return the values between commas, at least one."""
    return _some(tuple(read(item.strip()) for item in text.split(",") if item.strip()))


def split_names(text: str) -> tuple[str, ...]:
    """Split at commas that are not inside braces: ``blocks.{3,5}.resid_post,embed`` has two names."""
    names, depth, current = [], 0, ""
    for character in text:
        depth += (character == "{") - (character == "}")
        if character == "," and depth == 0:
            names.append(current)
            current = ""
        else:
            current += character
    return _some(tuple(name.strip() for name in [*names, current] if name.strip()))


def _some(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values:
        msg = "at least one is needed"
        raise ValueError(msg)
    return values


def fitted(declared: Any, value: Any) -> Any:
    """Return a value as the flag of a setting would give it.

    Parameters
    ----------
    declared
        The setting's type; where it is annotated with a reader (``instance_from_str``), that reads text.

    Raises
    ------
    ValueError
        The value does not fit.
    """
    if typing.get_origin(declared) in {types.UnionType, typing.Union}:
        if value is None:
            return None
        declared = next(o for o in typing.get_args(declared) if o is not types.NoneType)
    hints: list[Any] = []
    if typing.get_origin(declared) is typing.Annotated:
        declared, *hints = typing.get_args(declared)
    read = next((hint.instance_from_str for hint in hints if _reads(hint)), None)
    if typing.get_origin(declared) is tuple:
        items = value if isinstance(value, tuple | list) else (value,)
        if read is None:
            return tuple(map(_text, items))
        word = _figure if typing.get_args(declared)[0] is float else _word
        return _some(tuple(found for item in items for found in read([word(item)])))
    return _PLAIN[declared](value) if read is None else read([_word(value)])


def _reads(hint: Any) -> bool:
    return hasattr(hint, "instance_from_str")


def _refused(value: Any, wanted: str) -> ValueError:
    return ValueError(f"it is {type(value).__name__}, not {wanted}")


def _word(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _refused(value, "a whole number or text")
    return str(value)


def _figure(value: Any) -> str:
    return repr(value) if isinstance(value, float) else _word(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _refused(value, "text; put it in quotes")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _refused(value, "true or false")
    return value


def _real(value: Any) -> float:
    number = value if isinstance(value, float) else float(_word(value))
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not finite")
    return number


_PLAIN: Mapping[Any, Callable[[Any], Any]] = {
    str: _text,
    bool: _flag,
    int: lambda value: int(_word(value)),
    float: _real,
}


def counted(number: int, word: str, words: str | None = None) -> str:
    """Return ``1 part``, ``2 parts``."""
    return f"{number:,} {word if number == 1 else words or word + 's'}"
