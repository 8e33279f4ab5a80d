"""``greater_than``: a span of years, whose end comes after its beginning.

The correct answer is a later year of the century, the wrong one an earlier; corrupt prompts begin in the year 01, after which
nearly every year is later. Answers are two digits, so a tokenizer must write these as one token.

Source: Hanna et al., How does GPT-2 compute greater-than? (2023).
"""

from __future__ import annotations

from dataclasses import dataclass

from ingest.sources.prompts import Draw, Prompt, Prompts
from ingest.sources.registry import SOURCES

_NOUNS = (
    "war",
    "treaty",
    "journey",
    "reign",
    "siege",
    "voyage",
    "trial",
    "project",
    "strike",
    "drought",
)


@SOURCES.register("greater_than")
@dataclass(frozen=True, kw_only=True)
class GreaterThan(Prompts):
    """Pairs of year spans: the end is later than the beginning."""

    def drawn(self, draw: Draw) -> Prompt:
        """Return one prompt."""
        noun, century, year = draw.one(_NOUNS), 11 + draw.below(7), 10 + draw.below(80)
        later, earlier = year + 1 + draw.below(99 - year), 2 + draw.below(year - 2)
        frame = f"The {noun} lasted from the year {century}{{:02d}} to the year {century}"
        return Prompt(frame.format(year), frame.format(1), f"{later:02d}", f"{earlier:02d}")
