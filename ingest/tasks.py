"""Rows of tasks: pairs of prompts, clean and corrupt side by side, and their answers as a group beside the tokens.

Both roles of a pair lie in one part, clean first, in sequences of equal length: position t of one is position t of the
other. What is asked is asked behind the last token, so each sequence's last row has its answers; other rows have −1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ingest.chats import GROUP as CHAT_ROLES
from ingest.errors import IngestError, SourceError
from ingest.framing import check_unframed, special_ids
from ingest.plan import split_of
from ingest.readers import vocabulary
from ingest.writing import Progress, write_sequences
from store import Document, Store, TokenSequence, TokensWriter
from store.tables import column
from store.tokens import FLAG_FIRST_OF_DOCUMENT, FLAG_SPECIAL

if TYPE_CHECKING:
    from ingest.config import TokensConfig
    from ingest.contract import Array, TaskPair

ANSWERS = "answers"
"""The group that holds them."""
ROLES = ("clean", "corrupt")
NAMES = ("correct", "wrong")


@dataclass(kw_only=True)
class Pairing:
    """Turns pairs into sequences, from any one on."""

    config: TokensConfig
    tokenizer: Any
    context: int

    def __post_init__(self) -> None:
        self._vocabulary = vocabulary(self.tokenizer)
        self._special_ids = special_ids(self.tokenizer)

    def pairs(self) -> Iterator[TaskPair]:
        """Yield the source's pairs, each checked, no more than the rows that are wanted take."""
        rows = 0
        for pair in self.config.source.pairs(self._vocabulary, self._spell):
            self._check(pair)
            rows += 2 * len(pair.clean)
            if self.config.rows is not None and rows > self.config.rows:
                return
            yield pair

    def sequences(self, position: Any) -> Iterator[tuple[list[TokenSequence], int]]:
        """Yield (both roles, position behind them); a position is the number of pairs, None the start."""
        for number, pair in enumerate(self.pairs()):
            if number >= (position or 0):
                yield self._sequences(number, pair), number + 1

    def _spell(self, text: str) -> Array:
        found = self.tokenizer(
            text, add_special_tokens=False, return_attention_mask=False, verbose=False
        )
        return np.array(found["input_ids"], np.int32)

    def _check(self, pair: TaskPair) -> None:
        clean, corrupt = np.asarray(pair.clean), np.asarray(pair.corrupt)
        every = np.concatenate(
            [clean.reshape(-1), corrupt.reshape(-1), list(pair.answers.values())]
        )
        mend = "Both prompts take equally many tokens, and each answer is one, of its own."
        if clean.ndim != 1 or clean.shape != corrupt.shape or not len(clean):
            found = f"prompts of {clean.size} and {corrupt.size} tokens"
        elif len(clean) > self.context:
            found = f"{len(clean)} tokens, where a sequence has {self.context} at most"
            mend = f"Use --context {len(clean)} or more."
        elif set(pair.answers) != set(NAMES):
            found = f"answers {', '.join(pair.answers) or 'of no name'}, not {' and '.join(NAMES)}"
        elif len(set(pair.answers.values())) != len(NAMES):
            found = f"one token, {pair.answers[NAMES[0]]}, for {' and '.join(NAMES)}"
        elif every.min() < 0 or every.max() >= self._vocabulary.tokens:
            found = f"ids from {every.min()} to {every.max()}, where the tokenizer has {self._vocabulary.tokens}"
        else:
            return
        raise SourceError(
            f"pair {pair.name!r} has {found}. What was committed before stands. {mend}",
            kind="bad-pair",
            path=pair.name,
        )

    def _sequences(self, number: int, pair: TaskPair) -> list[TokenSequence]:
        digest = hashlib.sha256(np.asarray(pair.clean, "<i4").tobytes()).hexdigest()
        split = split_of(digest, self.config.split_seed)
        found = []
        for at, role in enumerate(ROLES):
            ids = np.asarray(getattr(pair, role), np.int32)
            document = Document(
                doc_id=2 * number + at,
                name=f"{pair.name}/{role}",
                sha256=hashlib.sha256(ids.astype("<i4").tobytes()).hexdigest(),
                split=split,  # of a pair, so that no half of one is held out
            )
            flags = np.where(np.isin(ids, self._special_ids), FLAG_SPECIAL, 0).astype(np.uint16)
            flags[0] |= FLAG_FIRST_OF_DOCUMENT
            found.append(
                TokenSequence(
                    token_ids=ids,
                    spans=[(document, 0, len(ids))],
                    flags=flags,
                    split=split,
                    pair_id=number,
                    role=role,
                )
            )
        return found

    def check(self) -> None:
        """Raise ``corpus-empty`` unless the source makes at least one pair, or what is wrong with the first.

        Raises
        ------
        IngestError
            ``setting-unused``: prompts of a task are taken as they are, whatever is said of special tokens.
        """
        check_unframed(
            self.config, "whose prompts are taken as they are", "duplicates", "generation"
        )
        if not self.config.special_tokens:
            raise IngestError(
                f"--no-special-tokens was said of the source {self.config.source.kind!r}, whose prompts are taken as they "
                "are. Nothing was written. Leave it out.",
                kind="setting-unused",
            )
        if next(self.pairs(), None) is None:
            raise SourceError(
                f"the source {self.config.source.kind!r} makes no pair of at most {self.config.rows or 'any'} rows. "
                "Nothing was written. Check its settings and --rows.",
                kind="corpus-empty",
            )

    def write(self, writer: TokensWriter, progress: Progress) -> None:
        """Write what is missing of the tokens group and seal it where the source ends."""
        write_sequences(self, writer, progress, self.config.rows)


def write_answers(store: Store, pairing: Pairing) -> None:
    """Write what is missing of the answers to the pairs of a store, and seal them."""
    recipe = {
        "schema": 1,
        "tokens": store.groups["tokens"].recipe_hash,
        "answers": list(NAMES),
        "mask": None,
    }
    writer = store.writer(ANSWERS, columns=dict.fromkeys(NAMES, "int32"), recipe=recipe)
    told: dict[str, Array] | None = None
    with writer:
        for part in store.view.parts("tokens"):
            if writer.done(part):
                continue
            if told is None:
                every = [pair.answers for pair in pairing.pairs()]
                told = {name: np.array([one[name] for one in every], np.int32) for name in NAMES}
            commit = store.view.commit("tokens", part)
            data = store.view.table(commit, "sequences.parquet")
            rows, pair_id = (column(data, name).astype(np.int64) for name in ("rows", "pair_id"))
            ids = column(store.view.table(commit, "tokens.parquet"), "row")
            last = np.cumsum(rows) - 1
            values = {name: np.full(len(ids), -1, np.int32) for name in NAMES}
            for name in NAMES:
                values[name][last] = told[name][pair_id]
            writer.put(ids, values)


def has_answers(store: Store) -> bool:
    """Return whether the rows of a store have answers."""
    return ANSWERS in store.groups and "answers" in store.groups[ANSWERS].recipe


def check_group(name: str) -> None:
    """Raise ``name-taken`` where a group would have the name of the answers or roles."""
    if name in {"tokens", ANSWERS, CHAT_ROLES}:
        raise IngestError(
            f"a group was to be called {name!r}; so are the rows (tokens), a task's answers (answers) and the roles of dialogues "
            "(roles). Nothing was written. Use another --group.",
            kind="name-taken",
        )


def answers_of(store: Store, part: int) -> Mapping[str, Array]:
    """Return the answers to a part's rows by name, ``int32[R]``, −1 where none is asked."""
    data = store.view.table(store.view.commit(ANSWERS, part), "scalars.parquet")
    return {name: column(data, name) for name in NAMES}


def partners_of(sequences: Any) -> Array:
    """Return where the other prompt of each sequence's pair is among the sequences of a part, ``int64[S]``."""
    pair_id = column(sequences, "pair_id").astype(np.int64)
    places = np.arange(len(pair_id))
    # Both roles lie side by side; removed documents may have taken one of them.
    next_is = np.append(pair_id[1:] == pair_id[:-1], [False])
    found = np.where(next_is, places + 1, places - 1)
    whole = next_is | np.append([False], next_is[:-1])
    if not whole.all():
        raise SourceError(
            f"{int((~whole).sum())} prompts of these rows are without the other of their pair, whose document was removed. "
            "Nothing was written. Remove both, or use a rule that takes one point.",
            kind="bad-pair",
        )
    return found
