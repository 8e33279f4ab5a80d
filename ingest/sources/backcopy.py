"""``backcopy``: texts of the Bigram-Backcopy process, in which a trigger is followed by a copy of what came before it.

After a begin token comes a symbol that is no trigger, drawn from the symbols' long-run shares. Then, where the current token is
a trigger, the next is the token before the trigger; else the next is drawn from the current token's row of a sparse table.
Triggers are the symbols most frequent in the long run. Heads that copy lie idle everywhere but behind triggers, where they
look back one place; elsewhere they have nothing to say, and learn to look at the first token.

Source: Guo et al., Active-Dormant Attention Heads (arXiv 2410.13835), section 2.1; theirs has the bigrams of characters of a
play, ours (the cheap form of the circuit specification) rows drawn from Dirichlet(0.1).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ingest.contract import TokenDocument, Vocabulary
from ingest.errors import SourceError
from ingest.sources.registry import SOURCES
from store.schema import subseed

Array = np.ndarray[Any, np.dtype[Any]]
_CONCENTRATION = 0.1
_SQUARINGS = 12  # a chain of 32 states forgets where it began in far fewer than 2**12 steps


@dataclass(frozen=True, kw_only=True)
class BackcopyProcess:
    """Bigrams, their long-run shares and the triggers; a function of its fields."""

    symbols: int = 32
    triggers: int = 3
    seed: int = 0

    @functools.cached_property
    def table(self) -> Array:
        """Chances of the next symbol, ``float64[V, V]``, rows summing to 1."""
        rng = np.random.Generator(np.random.Philox(key=subseed(self.seed, "bigrams")))
        shares = rng.standard_gamma(_CONCENTRATION, (self.symbols, self.symbols)) + 1e-9
        return np.asarray(shares / shares.sum(1, keepdims=True))

    @functools.cached_property
    def shares(self) -> Array:
        """Long-run shares of the symbols under the bigrams alone, ``float64[V]``."""
        power = self.table
        for _ in range(_SQUARINGS):
            power = power @ power
        return np.asarray(power.mean(0))

    @functools.cached_property
    def trigger_symbols(self) -> Array:
        """The symbols that trigger a copy, the most frequent first."""
        return np.argsort(-self.shares, kind="stable")[: self.triggers]

    def draw(self, rng: np.random.Generator, count: int, tokens: int) -> Array:
        """Return symbols of ``count`` texts, ``int64[count, tokens]``, without the begin token."""
        first = self.shares.copy()
        first[self.trigger_symbols] = 0.0
        out = np.empty((count, tokens), np.int64)
        chances = rng.random((count, tokens))
        out[:, 0] = np.searchsorted(np.cumsum(first / first.sum()), chances[:, 0]).clip(
            0, self.symbols - 1
        )
        ends = np.cumsum(self.table, axis=1)
        for at in range(1, tokens):
            now = out[:, at - 1]
            drawn = (chances[:, at, None] > ends[now]).sum(1).clip(0, self.symbols - 1)
            copying = np.isin(now, self.trigger_symbols) if at > 1 else np.zeros(count, bool)
            out[:, at] = np.where(copying, out[:, at - 2], drawn)
        return out

    def truth(self) -> dict[str, Any]:
        """Return the process as JSON."""
        return {
            "bigrams": self.table.tolist(),
            "shares": self.shares.tolist(),
            "triggers": self.trigger_symbols.tolist(),
        }


@SOURCES.register("backcopy")
@dataclass(frozen=True, kw_only=True, slots=True)
class Backcopy:
    """Texts in which a trigger is followed by a copy of the token before it, and all else by chance."""

    sequences: int = 256
    """Documents; each is one sequence."""
    tokens: int = 64
    """Tokens of a document, the begin token included."""
    symbols: int = 32
    """Symbols, the first of the tokenizer's that are not special."""
    triggers: int = 3
    """Symbols that are followed by a copy."""
    process_seed: int = 0
    """Root of the bigrams' seeds: a model knows one process."""
    seed: int = 0
    """Root of the texts' seeds."""

    def __post_init__(self) -> None:
        few = min(self.sequences, self.tokens - 1, self.triggers)
        if few < 1 or self.triggers >= self.symbols:
            raise SourceError(
                f"{self.sequences} texts of {self.tokens} tokens of {self.symbols} symbols, {self.triggers} of them triggers, "
                "were asked for. Nothing was written. Give positive numbers, two tokens or more and fewer triggers than "
                "symbols.",
                kind="bad-source",
            )

    @property
    def longest(self) -> int:
        """Tokens of a document."""
        return self.tokens

    @property
    def process(self) -> BackcopyProcess:
        """What the texts are drawn from."""
        return BackcopyProcess(symbols=self.symbols, triggers=self.triggers, seed=self.process_seed)

    def inputs(self) -> Mapping[str, str]:
        """Return nothing: no file is read."""
        return {}

    def truth(self) -> Mapping[str, bytes]:
        """Return ``truth.json``: the bigrams, the symbols' long-run shares and the triggers."""
        return {"truth.json": json.dumps(self.process.truth()).encode()}

    def token_documents(self, vocabulary: Vocabulary) -> Iterator[TokenDocument]:
        """Yield the documents, named ``backcopy/<seed>/<number>``.

        Raises
        ------
        SourceError
            ``no-bos`` or ``vocabulary-too-small``, before the first document.
        """
        usual = np.setdiff1d(np.arange(vocabulary.tokens), vocabulary.special)
        if vocabulary.bos is None or len(usual) < self.symbols:
            lacks = "names no token that begins texts" if vocabulary.bos is None else "is too small"
            raise SourceError(
                f"texts of {self.symbols} symbols behind a begin token were asked for; the tokenizer, with {len(usual)} tokens "
                f"that are not special, {lacks}. Nothing was written. Use --model planted:backcopy, whose process this is.",
                kind="no-bos" if vocabulary.bos is None else "vocabulary-too-small",
            )
        process = self.process
        for number in range(self.sequences):
            rng = np.random.Generator(np.random.Philox(key=subseed(self.seed, "backcopy", number)))
            text = usual[process.draw(rng, 1, self.tokens - 1)[0]]
            ids = np.concatenate([[vocabulary.bos], text]).astype(np.int32)
            yield TokenDocument(name=f"backcopy/{self.seed}/{number:05d}", token_ids=ids)
