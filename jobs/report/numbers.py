"""Numbers as people read them: few digits, units, thousands apart.

Pure functions from values to text; none of them escapes or knows HTML. Thin spaces (U+2009) part
thousands, no-break spaces part a number from its unit.
"""

from __future__ import annotations

import math

_THIN, _SPACE, _MINUS = "\u2009", "\u00a0", "\u2212"
_BYTES = ("B", "kB", "MB", "GB", "TB", "PB")


def count(value: float) -> str:
    """Return a whole number with its thousands apart: ``400 000``."""
    if not math.isfinite(value):
        return "–"
    return _signed(f"{round(value):,}".replace(",", _THIN))


def size(value: float) -> str:
    """Return a number of bytes in decimal units, three digits: ``307 MB``."""
    power = 0
    while value >= 999.5 and power < len(_BYTES) - 1:
        value /= 1000
        power += 1
    digits = 0 if power == 0 or value >= 99.95 else 1
    return f"{value:.{digits}f}{_SPACE}{_BYTES[power]}"


def share(value: float) -> str:
    """Return a share in percent, three digits, small ones kept apart from zero: ``0.042 %``."""
    if not math.isfinite(value):
        return "–"
    percent = 100 * value
    if percent and abs(percent) < 0.001:
        return f"<{_THIN}0.001{_SPACE}%"
    return f"{decimal(percent)}{_SPACE}%"


def decimal(value: float, digits: int = 3, *, trim: bool = True) -> str:
    """Return a number with so many significant digits, without an exponent where it reads well.

    ``trim`` leaves out zeros at the end: right in prose, wrong in a column of like numbers.
    """
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if exponent >= 4:
        return count(value) if exponent < 9 else _signed(f"{value:.{digits - 1}e}")
    if exponent < -4:
        return _signed(f"{value:.{digits - 1}e}")
    text = f"{value:.{max(digits - 1 - exponent, 0)}f}"
    return _signed(text.rstrip("0").rstrip(".") if trim and "." in text else text)


def signed(value: float) -> str:
    """Return a difference with its sign: ``+0.82``."""
    return f"+{decimal(value, trim=False)}" if value > 0 else decimal(value, trim=False)


def duration(seconds: float) -> str:
    """Return a time span: ``4 min 12 s``."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{decimal(seconds, 2 if seconds < 10 else 3)}{_SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{_SPACE}min {rest}{_SPACE}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{_SPACE}h {minutes}{_SPACE}min"


def rate(value: float) -> str:
    """Return rows per second, rounded to three digits: ``8 520 rows/s``."""
    if not math.isfinite(value) or value <= 0:
        return "–"
    step = 10 ** max(math.floor(math.log10(value)) - 2, 0)
    return f"{count(round(value / step) * step)}{_SPACE}rows/s"


def _signed(text: str) -> str:
    return text.replace("-", _MINUS)
