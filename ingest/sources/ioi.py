"""``ioi``: indirect object identification, two names of which one comes again.

Source: Wang et al., Interpretability in the Wild (2022): their sentence frames' form, both orders of the names, and the
corruption in which the second clause names a third person.
"""

from __future__ import annotations

from dataclasses import dataclass

from ingest.sources.prompts import Draw, Prompt, Prompts
from ingest.sources.registry import SOURCES

NAMES = (
    *(
        "Mary",
        "John",
        "Tom",
        "James",
        "Dan",
        "Kate",
        "Anna",
        "Paul",
        "Mark",
        "Jane",
        "Alice",
        "Bob",
    ),
    *(
        "Laura",
        "Peter",
        "Sarah",
        "David",
        "Emma",
        "Jack",
        "Lucy",
        "Adam",
        "Rose",
        "Simon",
        "Ruth",
        "Henry",
    ),
)
_PLACES = ("store", "garden", "school", "station", "office", "house", "park", "hospital")
_THINGS = ("drink", "book", "ring", "letter", "key", "ball", "card", "hat")
_FRAMES = (
    "When {a} and {b} went to the {place}, {s} gave a {thing} to",
    "After {a} and {b} met at the {place}, {s} handed a {thing} to",
    "Then, {a} and {b} had a long talk at the {place}. Afterwards {s} sold a {thing} to",
    "While {a} and {b} were working at the {place}, {s} brought a {thing} to",
)


@SOURCES.register("ioi")
@dataclass(frozen=True, kw_only=True)
class Ioi(Prompts):
    """Pairs of indirect object identification: who gets it is who was named once."""

    def drawn(self, draw: Draw) -> Prompt:
        """Return one prompt."""
        giver, taker, third = draw.several(NAMES, 3)
        a, b = (giver, taker) if draw.below(2) else (taker, giver)
        frame, said = draw.one(_FRAMES), {"place": draw.one(_PLACES), "thing": draw.one(_THINGS)}
        clean, corrupt = (frame.format(a=a, b=b, s=s, **said) for s in (giver, third))
        return Prompt(clean, corrupt, f" {taker}", f" {giver}")
