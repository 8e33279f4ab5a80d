"""``capital_of``: recall of a fact; corrupt prompts ask for another country, whose capital is the wrong answer."""

from __future__ import annotations

from dataclasses import dataclass

from ingest.sources.prompts import Draw, Prompt, Prompts
from ingest.sources.registry import SOURCES

CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Germany": "Berlin",
    "Russia": "Moscow",
    "Japan": "Tokyo",
    "China": "Beijing",
    "Egypt": "Cairo",
    "Greece": "Athens",
    "Austria": "Vienna",
    "Poland": "Warsaw",
    "Ireland": "Dublin",
    "Portugal": "Lisbon",
    "Norway": "Oslo",
    "Sweden": "Stockholm",
    "Cuba": "Havana",
    "Iran": "Tehran",
    "Kenya": "Nairobi",
    "Peru": "Lima",
    "Canada": "Ottawa",
}
_FRAMES = ("The capital of {country} is the city of", "In {country}, the government sits in")


@SOURCES.register("capital_of")
@dataclass(frozen=True, kw_only=True)
class CapitalOf(Prompts):
    """Pairs of questions for a capital: one country and another."""

    def drawn(self, draw: Draw) -> Prompt:
        """Return one prompt."""
        frame = draw.one(_FRAMES)
        one, other = draw.several(sorted(CAPITALS), 2)
        return Prompt(
            frame.format(country=one),
            frame.format(country=other),
            f" {CAPITALS[one]}",
            f" {CAPITALS[other]}",
        )
