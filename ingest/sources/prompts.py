"""What sources of prompts in English share: drawing, spelling, and answers that are one token.

A prompt is drawn until its two roles take equally many tokens and both answers are single tokens behind it, as this
tokenizer writes them. Pair i is a function of (seed, i) and the tokenizer alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, TypeVar

import numpy as np

from ingest.contract import Array, Spell, TaskPair, Vocabulary
from ingest.errors import SourceError
from store.records import canonical, sha256
from store.schema import subseed

_DRAWS = 64
_SHOWN = 256
Item = TypeVar("Item")


class Prompt(NamedTuple):
    """Two texts and the answers behind them, which usually begin with a space."""

    clean: str
    corrupt: str
    correct: str
    wrong: str


class Draw:
    """Draws from a seed; uniform numbers only, for what NumPy makes of them otherwise may change."""

    def __init__(self, key: int) -> None:
        self._rng = np.random.Generator(np.random.Philox(key=key))

    def below(self, count: int) -> int:
        """Return a number from 0 to ``count - 1``."""
        return int(self._rng.random() * count)

    def one(self, some: Sequence[Item]) -> Item:
        """Return one of some."""
        return some[self.below(len(some))]

    def several(self, some: Sequence[Item], count: int) -> list[Item]:
        """Return ``count`` different ones, in any order."""
        order = np.argsort(self._rng.random(len(some)), kind="stable")
        return [some[at] for at in order[:count].tolist()]


@dataclass(frozen=True, kw_only=True)
class Prompts(ABC):
    """A `PairSource` of prompts that are drawn; who inherits says how."""

    kind: ClassVar[str]
    sequences: int = 64
    """Pairs."""
    seed: int = 0
    """Root of the source's seeds."""

    def __post_init__(self) -> None:
        if self.sequences < 1:
            raise SourceError(
                f"{self.sequences} pairs were asked for. Nothing was written. Ask for one at least.",
                kind="bad-source",
            )

    @abstractmethod
    def drawn(self, draw: Draw) -> Prompt:
        """Return one prompt."""

    @property
    def longest(self) -> None:
        """None: that depends on the tokenizer."""
        return

    def inputs(self) -> Mapping[str, str]:
        """Return what identifies the task's words and sentences: the sha256 of some of its prompts."""
        draw = Draw(subseed(0, self.kind, 0))
        return {self.kind: sha256(canonical([list(self.drawn(draw)) for _ in range(_SHOWN)]))}

    def pairs(self, vocabulary: Vocabulary, spell: Spell) -> Iterator[TaskPair]:
        """Yield the pairs, named ``<kind>/<seed>/<number>``; the token that begins texts stands in front.

        Raises
        ------
        SourceError
            ``tokenizer-unfit``: of many prompts none is written as the task wants it.
        """
        begin = np.array([] if vocabulary.bos is None else [vocabulary.bos], np.int32)
        for number in range(self.sequences):
            draw = Draw(subseed(self.seed, self.kind, number))
            for _ in range(_DRAWS):
                prompt = self.drawn(draw)
                found = _spelled(prompt, begin, spell)
                if found is not None:
                    break
            else:
                raise SourceError(
                    f"{_DRAWS} prompts of {self.kind!r} were drawn, {prompt.clean!r} the last; in none are both answers one "
                    "token and both roles equally long as this tokenizer writes them. What was committed before stands. "
                    "Use a model with a larger vocabulary of English words.",
                    kind="tokenizer-unfit",
                )
            clean, corrupt, answers = found
            yield TaskPair(
                name=f"{self.kind}/{self.seed}/{number:04d}",
                clean=clean,
                corrupt=corrupt,
                answers=answers,
            )


def _spelled(
    prompt: Prompt, begin: Array, spell: Spell
) -> tuple[Array, Array, dict[str, int]] | None:
    """Return both roles' ids and the answers', or None where they are not as a pair must be."""
    clean, corrupt = (np.concatenate([begin, spell(text)]) for text in prompt[:2])
    behind = {
        name: token_behind(prompt.clean, getattr(prompt, name), spell)
        for name in ("correct", "wrong")
    }
    answers = {name: one for name, one in behind.items() if one is not None}
    good = len(answers) == 2 and answers["correct"] != answers["wrong"]
    if not good or clean.shape != corrupt.shape or np.array_equal(clean, corrupt):
        return None
    return clean, corrupt, answers


def token_behind(text: str, answer: str, spell: Spell) -> int | None:
    """Return the one token that an answer adds to a text; None where it is several, or changes those before."""
    ids, both = spell(text), spell(text + answer)
    if len(both) != len(ids) + 1 or not np.array_equal(both[:-1], ids):
        return None
    return int(both[-1])
