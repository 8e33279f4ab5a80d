"""Files of prices: YAML or JSON, numbers under known names."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from jobs.errors import UsageError

FIELDS = (
    "storage_gb_month", "put_1000", "get_1000", "machine_hour", "machine_flops", "currency",
)  # fmt: skip
"""Those of `ingest.estimate.Prices`."""


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
    wrong = sorted(set(given) - set(FIELDS))
    if wrong or "storage_gb_month" not in given:
        msg = f"unknown: {', '.join(wrong)}" if wrong else "no storage_gb_month"
        raise ValueError(msg)
    read: dict[str, Any] = {}
    for name, value in given.items():
        read[name] = str(value) if name == "currency" else float(value)
        if name != "currency" and not 0 <= read[name] < math.inf:
            msg = f"{name} is {value!r}"
            raise ValueError(msg)
    if read.get("machine_flops") == 0:
        msg = "machine_flops is 0"
        raise ValueError(msg)
    return read
