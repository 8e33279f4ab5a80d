"""``needle``: a sentence of random tokens somewhere in random filler, and its beginning again at the end.

The answer is the needle's next token. In the corrupt prompt other tokens stand where the needle was, and nothing else differs,
so nothing in the context says the answer; the wrong answer is a token that stands nowhere. Tokens of a needle differ from one
another and from all filler. Pair i is a function of (seed, i) and the tokenizer alone.

Source: the needle in a haystack of Kamradt (2023), in the synthetic form of random tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ingest.contract import Spell, TaskPair, Vocabulary
from ingest.errors import SourceError
from ingest.sources.prompts import Draw
from ingest.sources.registry import SOURCES
from store.schema import subseed


@SOURCES.register("needle")
@dataclass(frozen=True, kw_only=True, slots=True)
class Needle:
    """Pairs of haystacks with a needle and without, and the needle's beginning at their end."""

    sequences: int = 64
    """Pairs."""
    length: int = 128
    """Tokens of a prompt."""
    needle: int = 6
    """Tokens of the needle."""
    said: int = 2
    """Tokens of it that the prompt ends with."""
    seed: int = 0
    """Root of the source's seeds."""

    def __post_init__(self) -> None:
        if (
            not (self.sequences >= 1 and 1 <= self.said < self.needle)
            or self.length < 2 + self.needle + self.said
        ):
            raise SourceError(
                f"{self.sequences} prompts of {self.length} tokens, which end with {self.said} tokens of a needle of "
                f"{self.needle}, were asked for. Nothing was written. A needle is longer than what is said of it, and a "
                "prompt than both.",
                kind="bad-source",
            )

    @property
    def longest(self) -> int:
        """Tokens of a prompt."""
        return self.length

    def inputs(self) -> Mapping[str, str]:
        """Return nothing: no file is read."""
        return {}

    def pairs(self, vocabulary: Vocabulary, spell: Spell) -> Iterator[TaskPair]:
        """Yield the pairs, named ``needle/<seed>/<number>/at<position>``.

        Raises
        ------
        SourceError
            ``no-bos`` or ``vocabulary-too-small``, before the first pair.
        """
        del spell
        usual = np.setdiff1d(np.arange(vocabulary.tokens), vocabulary.special)
        kept = 2 * self.needle + 1  # the needle, what stands in its place, the wrong answer
        if vocabulary.bos is None or len(usual) <= kept:
            raise SourceError(
                f"needles of {self.needle} tokens between filler were asked for; the tokenizer has {len(usual)} tokens that "
                f"are not special and {'no token' if vocabulary.bos is None else 'one'} that begins texts. Nothing was "
                "written. Use a causal model with a larger vocabulary.",
                kind="no-bos" if vocabulary.bos is None else "vocabulary-too-small",
            )
        for number in range(self.sequences):
            draw = Draw(subseed(self.seed, "needle", number))
            drawn = draw.several(usual.tolist(), len(usual))
            needle, other, wrong = (
                drawn[: self.needle],
                drawn[self.needle : kept - 1],
                drawn[kept - 1],
            )
            room = self.length - 1 - self.needle - self.said
            filler = [draw.one(drawn[kept:]) for _ in range(room)]
            at = draw.below(room + 1)
            prompts = [
                np.array(
                    [vocabulary.bos, *filler[:at], *hidden, *filler[at:], *needle[: self.said]],
                    np.int32,
                )
                for hidden in (needle, other)
            ]
            yield TaskPair(
                name=f"needle/{self.seed}/{number:04d}/at{1 + at}",
                clean=prompts[0],
                corrupt=prompts[1],
                answers={"correct": needle[self.said], "wrong": wrong},
            )
