"""``gendered_pronoun``: the pronoun that goes with a first name; corrupt prompts have a name of the other kind.

Source: Mathwin et al., Identifying a preliminary circuit for predicting gendered pronouns in GPT-2 small (2023).
"""

from __future__ import annotations

from dataclasses import dataclass

from ingest.sources.prompts import Draw, Prompt, Prompts
from ingest.sources.registry import SOURCES

_HE = (
    "John",
    "Tom",
    "James",
    "Dan",
    "Paul",
    "Mark",
    "Peter",
    "David",
    "Jack",
    "Adam",
    "Simon",
    "Henry",
)
_SHE = (
    "Mary",
    "Kate",
    "Anna",
    "Jane",
    "Alice",
    "Laura",
    "Sarah",
    "Emma",
    "Lucy",
    "Rose",
    "Ruth",
    "Helen",
)
_FRAMES = (
    "So {name} is a really great friend, isn't",
    "I heard that {name} is a good teacher, isn't",
    "Everybody says {name} was here first, wasn't",
)


@SOURCES.register("gendered_pronoun")
@dataclass(frozen=True, kw_only=True)
class GenderedPronoun(Prompts):
    """Pairs of tag questions: he or she, by the name."""

    def drawn(self, draw: Draw) -> Prompt:
        """Return one prompt."""
        frame, he, she = draw.one(_FRAMES), draw.one(_HE), draw.one(_SHE)
        first, other = (
            ((he, " he"), (she, " she")) if draw.below(2) else ((she, " she"), (he, " he"))
        )
        return Prompt(frame.format(name=first[0]), frame.format(name=other[0]), first[1], other[1])
