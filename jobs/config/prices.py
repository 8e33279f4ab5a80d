"""Files of prices: YAML or JSON, numbers under known names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from jobs.errors import UsageError

FIELDS = (
    "storage_gb_month", "put_1000", "get_1000", "machine_hour", "machine_flops", "currency",
)  # fmt: skip
"""Those of `ingest.estimate.Prices`."""
_MOST = 1e30


def read_prices(path: str | Path) -> dict[str, Any]:
    """Return the prices in a file.

    Raises
    ------
    UsageError
        ``bad-prices``: it is not there, no mapping, or has another field or no number in one.
    """
    try:
        return _numbers(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise UsageError(
            f"the prices in {path} cannot be read: {str(error).splitlines()[0]}. Nothing was started. They are YAML or JSON with "
            f"numbers under {', '.join(FIELDS)}, storage_gb_month at least.",
            kind="bad-prices",
        ) from error


def _numbers(given: Any) -> dict[str, Any]:
    """Return the fields of a file, read; ``ValueError`` where one is none."""
    if not isinstance(given, dict):
        msg = f"it holds {type(given).__name__}, no fields"
        raise TypeError(msg)
    wrong = sorted(set(map(str, given)) - set(FIELDS))
    if wrong or "storage_gb_month" not in given:
        msg = f"unknown: {', '.join(wrong)}" if wrong else "no storage_gb_month"
        raise ValueError(msg)
    read: dict[str, Any] = {}
    for name, value in given.items():
        text = name == "currency"
        if isinstance(value, bool) or (
            isinstance(value, str) != text and not isinstance(value, int | float)
        ):
            msg = f"{name} is {value!r}"
            raise ValueError(msg)
        read[name] = value if text else float(value)
        if not text and not 0 <= read[name] < _MOST:
            msg = f"{name} is {value!r}"
            raise ValueError(msg)
    if read.get("machine_flops") == 0:
        msg = "machine_flops is 0"
        raise ValueError(msg)
    return read
