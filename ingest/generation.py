"""How a model goes on from a prompt: what decides the text it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ingest.errors import IngestError


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """How a model goes on."""

    tokens: int
    """New tokens at most; fewer where it ends its text."""
    temperature: float = 0.0
    """0 takes the most likely token; else probabilities are those of logits divided by this."""
    seed: int = 0
    """Of the draws, at temperatures above 0."""
    batch: int = 32
    """Prompts at a time."""

    def __post_init__(self) -> None:
        for name, value, least in (
            ("generate", self.tokens, 1),
            ("temperature", self.temperature, 0.0),
        ):
            if not value >= least:
                raise IngestError(
                    f"--{name} is {value}; it must be {least} or more. Nothing was written.",
                    kind="bad-number",
                )

    def to_json(self) -> dict[str, Any]:
        """Return what a recipe keeps of it."""
        return {
            "tokens": self.tokens,
            "temperature": repr(float(self.temperature)),
            "seed": self.seed,
            "batch": self.batch,
        }
