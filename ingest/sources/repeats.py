"""``repeats``: random tokens said twice, the classic probe for induction heads.

A document is the beginning-of-text token and one block of random tokens, repeated. The period differs from
sequence to sequence, so that no position gives a match away; within a block every token is another one, so that
each token of a later copy has exactly one earlier match per copy. Document i is a function of (seed, i) and the
tokenizer alone.

Source: Olsson et al., In-context Learning and Induction Heads (2022), repeated random tokens; the drawn periods
and alphabets are our own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ingest.contract import Array, TokenDocument, Vocabulary
from ingest.errors import SourceError
from ingest.sources.registry import SOURCES
from store.schema import subseed


@SOURCES.register("repeats")
@dataclass(frozen=True, kw_only=True, slots=True)
class Repeats:
    """Blocks of random tokens, each repeated: where induction heads show."""

    sequences: int = 64
    """Documents; each is one sequence."""
    low: int = 24
    """Fewest tokens of a block."""
    high: int = 96
    """Most tokens of a block; its period is drawn evenly from ``low`` to ``high``."""
    copies: int = 2
    """Times a block stands in its document; 1 is a control without repetition."""
    alphabet: int | None = None
    """None: a block's tokens all differ, drawn from the whole vocabulary. A number: each document draws that many
    tokens, and its block from them with replacement, so matches are not unique."""
    seed: int = 0
    """Root of the source's seeds."""

    def __post_init__(self) -> None:
        counts = (self.sequences, self.low, self.copies)
        legal = min(counts) >= 1 and self.low <= self.high
        if not (legal and (self.alphabet is None or self.alphabet >= 1)):
            raise SourceError(
                f"{self.sequences} sequences of {self.copies} copies of {self.low} to {self.high} tokens from an "
                f"alphabet of {self.alphabet or 'all tokens'} were asked for. Nothing was written. Give positive "
                "numbers, low not above high.",
                kind="bad-source",
            )

    @property
    def longest(self) -> int:
        """Tokens of the longest document there can be."""
        return 1 + self.copies * self.high

    def inputs(self) -> Mapping[str, str]:
        """Return nothing: no file is read."""
        return {}

    def token_documents(self, vocabulary: Vocabulary) -> Iterator[TokenDocument]:
        """Yield the documents, named ``repeats/<seed>/<number>/p<period>``.

        Raises
        ------
        SourceError
            ``no-bos`` or ``vocabulary-too-small``, before the first document.
        """
        usual = np.setdiff1d(np.arange(vocabulary.tokens), vocabulary.special)
        self._check(vocabulary, len(usual))
        for number in range(self.sequences):
            rng = np.random.Generator(np.random.Philox(key=subseed(self.seed, "repeats", number)))
            block = self._block(rng, usual)
            ids = np.concatenate([[vocabulary.bos], np.tile(block, self.copies)])
            name = f"repeats/{self.seed}/{number:04d}/p{len(block)}"
            yield TokenDocument(name=name, token_ids=ids.astype(np.int32))

    def _block(self, rng: np.random.Generator, usual: Array) -> Array:
        # Uniform numbers only: what `integers` and `choice` make of a seed may change with NumPy.
        period = self.low + int(rng.random() * (self.high - self.low + 1))
        shuffled = usual[np.argsort(rng.random(len(usual)), kind="stable")]
        if self.alphabet is None:
            return shuffled[:period]
        return shuffled[(rng.random(period) * self.alphabet).astype(np.int64)]

    def _check(self, vocabulary: Vocabulary, usual: int) -> None:
        if vocabulary.bos is None:
            raise SourceError(
                "repeats begin with the token that begins texts; this model's tokenizer names none "
                "(bos_token). Nothing was written. Use a causal model whose tokenizer has one.",
                kind="no-bos",
            )
        need = self.high if self.alphabet is None else self.alphabet
        if need > usual:
            raise SourceError(
                f"repeats of {need} different tokens were asked for; the tokenizer has {usual} that are not "
                "special. Nothing was written. Use a smaller high or alphabet.",
                kind="vocabulary-too-small",
            )
