"""``induction``: a block of random tokens and its beginning again; corrupt prompts have no match for their last token.

A clean prompt is the token that begins texts, a block of different tokens, and the block's first tokens again; the answer
is the token that followed the last one in the block. Corrupt prompts take the match away: of corruption ``key`` the block's
own copy of the last token, of ``query`` the last token itself, becomes a token that stands nowhere else. The wrong answer
is such a token, too. Pair i is a function of (seed, i) and the tokenizer alone.

Source: repeated random tokens as in Olsson et al. (2022); the two corruptions expose the edges into an induction head's keys
and into its queries, one each.
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

_SPARE = 2  # the token that takes another's place, and the wrong answer


@SOURCES.register("induction")
@dataclass(frozen=True, kw_only=True, slots=True)
class Induction:
    """Pairs for induction heads: a block begun again, with and without a match for its last token."""

    sequences: int = 64
    """Pairs."""
    low: int = 8
    """Fewest tokens of a block."""
    high: int = 32
    """Most tokens of a block."""
    corruption: str = "key"
    """``key``: the earlier copy of the last token is replaced; ``query``: the last token itself."""
    seed: int = 0
    """Root of the source's seeds."""

    def __post_init__(self) -> None:
        if not (self.sequences >= 1 and 2 <= self.low <= self.high) or self.corruption not in {
            "key",
            "query",
        }:
            raise SourceError(
                f"{self.sequences} pairs of blocks of {self.low} to {self.high} tokens with corruption "
                f"{self.corruption!r} were asked for. Nothing was written. Blocks have two tokens or more, low not above "
                "high; a corruption is key or query.",
                kind="bad-source",
            )

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt there can be."""
        return 2 * self.high

    def inputs(self) -> Mapping[str, str]:
        """Return nothing: no file is read."""
        return {}

    def pairs(self, vocabulary: Vocabulary, spell: Spell) -> Iterator[TaskPair]:
        """Yield the pairs, named ``induction/<seed>/<number>/<corruption>``.

        Raises
        ------
        SourceError
            ``no-bos`` or ``vocabulary-too-small``, before the first pair.
        """
        del spell
        usual = np.setdiff1d(np.arange(vocabulary.tokens), vocabulary.special)
        if vocabulary.bos is None:
            raise SourceError(
                "induction prompts begin with the token that begins texts; this model's tokenizer names none "
                "(bos_token). Nothing was written. Use a causal model whose tokenizer has one.",
                kind="no-bos",
            )
        if self.high + _SPARE > len(usual):
            raise SourceError(
                f"blocks of {self.high} different tokens and {_SPARE} more were asked for; the tokenizer has {len(usual)} "
                "that are not special. Nothing was written. Use a smaller high.",
                kind="vocabulary-too-small",
            )
        for number in range(self.sequences):
            draw = Draw(subseed(self.seed, "induction", number))
            yield self._pair(number, draw, usual.tolist(), vocabulary.bos)

    def _pair(self, number: int, draw: Draw, usual: list[int], bos: int) -> TaskPair:
        size = self.low + draw.below(self.high - self.low + 1)
        said = 1 + draw.below(size - 1)  # tokens of the second copy; the next is the answer
        *block, spare, wrong = draw.several(usual, size + _SPARE)
        clean = np.array([bos, *block, *block[:said]], np.int32)
        corrupt = clean.copy()
        corrupt[said if self.corruption == "key" else -1] = spare
        return TaskPair(
            name=f"induction/{self.seed}/{number:04d}/{self.corruption}",
            clean=clean,
            corrupt=corrupt,
            answers={"correct": block[said], "wrong": wrong},
        )
