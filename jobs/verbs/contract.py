"""What a verb gets and what it answers."""

from __future__ import annotations

import dataclasses
from typing import Any

from jobs.interrupts import Interrupts
from jobs.progress import Progress


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """A verb's one answer: a JSON value, the same as text, and the exit code."""

    value: Any
    text: str
    code: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What a verb gets besides its config."""

    progress: Progress
    interrupts: Interrupts
