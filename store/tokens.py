"""The tokens group: sequences become rows, in whole parts, in order; this defines the rows of a store.

An append-only log with one writer. Each commit holds the position in the source behind it, so a writer that
died goes on after the last whole part and cuts the same parts as one that did not.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np

from store import layout, tables
from store.attempts import Attempt
from store.commits import Commit, load_commit
from store.errors import ConflictError, InvalidInputError
from store.groups import declare_group, seal
from store.records import canonical
from store.schema import Column, Group
from store.writer import Home, check_unsealed

Array = np.ndarray[Any, np.dtype[Any]]
FLAG_SPECIAL = 1
FLAG_FIRST_OF_DOCUMENT = 2
FLAG_FIRST_OF_SEQUENCE = 4
FLAG_GENERATED = 8
"""A model said it."""
SPLITS = ("train", "val", "test")

COLUMNS: Mapping[str, Column] = {
    field.name: Column.parse(field.name, str(field.type))
    for field in tables.TOKENS
    if field.name != "row"
}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Document:
    """A document of the source: ``doc_id`` is its ordinal there, ``split`` 0 train, 1 val, 2 test."""

    doc_id: int
    name: str
    sha256: str = ""
    split: int = 0
    text: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenSequence:
    """What one forward sees.

    Parameters
    ----------
    token_ids
        ``int32[T]``.
    spans
        ``(document, first, last)`` pieces of the sequence, in order; one unless it is packed. Tokens of no
        document have ``doc_id`` −1.
    positions
        ``int32[T]`` as the model sees them; 0…T−1 by default.
    char_start, char_end
        ``int32[T]`` character span of each token in its document's text, −1 where special.
    flags
        ``uint16[T]``; the first token's ``FLAG_FIRST_OF_SEQUENCE`` is set for you.
    """

    token_ids: Any
    spans: Sequence[tuple[Document, int, int]] = ()
    positions: Any = None
    char_start: Any = None
    char_end: Any = None
    flags: Any = None
    split: int = 0
    pair_id: int | None = None
    role: str | None = None
    grid: str | None = None

    def __len__(self) -> int:
        return len(self.token_ids)

    def check(self) -> None:
        """Raise ``bad-sequence`` unless there is a token and everything about tokens is as long as they are."""
        count = np.shape(self.token_ids)
        lengths = {
            name: np.shape(values)
            for name in ("positions", "char_start", "char_end", "flags")
            if (values := getattr(self, name)) is not None and np.shape(values) != count
        }
        ends = sorted((low, high) for _, low, high in self.spans)
        outside = [end for end in ends if not 0 <= end[0] < end[1] <= len(self)]
        crossed = [two for one, two in itertools.pairwise(ends) if two[0] < one[1]]
        tokens = np.asarray(self.token_ids)
        if len(count) != 1 or not count[0] or tokens.dtype.kind not in "iu":
            what = f"has token_ids of shape {list(count)} and type {tokens.dtype}"
        elif lengths or outside or crossed:
            what = f"of {count[0]} tokens has " + ", ".join(
                [f"{name} of shape {list(shape)}" for name, shape in lengths.items()]
                + [f"a span {low}:{high}" for low, high in outside]
                + [f"a span {low}:{high} over another" for low, high in crossed]
            )
        elif not -(1 << 31) <= int(tokens.min()) <= int(tokens.max()) < 1 << 31:
            what = f"has token ids from {tokens.min()} to {tokens.max()}; they fit in int32"
        elif self.split not in range(len(SPLITS)):
            what = f"is of split {self.split}; splits are {dict(enumerate(SPLITS))}"
        else:
            return
        raise InvalidInputError(
            f"a sequence {what}. It was not taken; what was put before stands. Give one-dimensional arrays "
            "of one length, at least one token, and documents that have tokens of their own.",
            kind="bad-sequence",
        )

    def columns(self, first_row: int) -> dict[str, Array]:
        """Return the rows of the tokens table, starting at ``first_row``."""
        count = len(self)
        doc_id = np.full(count, -1, np.int64)
        for document, low, high in self.spans:
            doc_id[low:high] = document.doc_id
        flags = (
            np.zeros(count, np.uint16) if self.flags is None else np.array(self.flags, np.uint16)
        )
        flags[:1] |= np.uint16(FLAG_FIRST_OF_SEQUENCE)
        none = np.full(count, -1, np.int32)
        return {
            "row": np.arange(first_row, first_row + count),
            "token_id": np.asarray(self.token_ids, np.int32),
            "seq_id": np.full(count, first_row, np.int64),
            "doc_id": doc_id,
            "pos": np.arange(count, dtype=np.int32)
            if self.positions is None
            else np.asarray(self.positions, np.int32),
            "char_start": none
            if self.char_start is None
            else np.asarray(self.char_start, np.int32),
            "char_end": none if self.char_end is None else np.asarray(self.char_end, np.int32),
            "split": np.full(count, self.split, np.uint8),
            "flags": flags,
        }


class TokensWriter:
    """Writes the tokens group; see ``Store.writer``.

    Attributes
    ----------
    position
        Where the source stands after the last committed part, as the writer before said; None at the start.
    """

    def __init__(
        self, store: Home, *, recipe: Mapping[str, Any], provenance: Mapping[str, Any] | None
    ) -> None:
        declared = Group(name="tokens", columns=COLUMNS, recipe=recipe, aligned_to=None)
        self.group = declare_group(store.view.storage, store.id, declared)
        self._store = store.refresh()
        self._provenance = provenance or {}
        view = self._store.view
        retired = view.retired(
            "tokens"
        )  # the next part's number, and the source's place, count them
        parts = sorted({*view.parts("tokens"), *retired})
        view.storage.settle(layout.commits_prefix("tokens"))  # no part may outlive those before it
        if parts != list(range(len(parts))):
            raise InvalidInputError(
                f"the tokens of {store.url} have parts {parts[:8]}…, with gaps. Nothing was written. "
                "`actlake verify` says what is missing.",
                kind="part-missing",
            )
        self.committed: list[Commit] = [
            load_commit(view.storage, store.id, "tokens", part, 0)
            if part in retired
            else view.commit("tokens", part)
            for part in parts
        ]
        self.position = self.committed[-1].position if parts else None
        self._pending: list[TokenSequence] = []
        self._pending_rows = 0
        self._pending_position: Any = None

    @property
    def sealed(self) -> bool:
        """Whether the source ended and the group is complete."""
        return self._store.view.sealed("tokens") is not None

    @property
    def rows(self) -> int:
        """Rows committed and waiting."""
        return sum(commit.slots for commit in self.committed) + self._pending_rows

    def put(self, sequences: Iterable[TokenSequence], *, position: Any = None) -> None:
        """Add sequences that must lie in one part (one sequence, or all roles of a pair).

        Parameters
        ----------
        position
            JSON value that says where the source stands behind them.

        Raises
        ------
        InvalidInputError
            ``sequence-too-long``: they do not fit a part. ``bad-sequence``: arrays of different lengths, or
            no token.
        ConflictError
            ``sealed``: the group is complete. ``tokens-raced``: another writer committed other rows.
        """
        check_unsealed(self._store)
        sequences = list(sequences)  # a generator is used up by its first reader
        for sequence in sequences:
            sequence.check()
        rows = sum(map(len, sequences))
        if rows > self._store.part_rows:
            raise InvalidInputError(
                f"a sequence (or pair) of {rows} rows does not fit a part of {self._store.part_rows} rows. "
                "What was committed stands. Make the store with larger part_rows, or use a shorter "
                "context.",
                kind="sequence-too-long",
            )
        if self._pending_rows + rows > self._store.part_rows:
            self.flush()
        self._pending += sequences
        self._pending_rows += rows
        self._pending_position = position

    def flush(self) -> None:
        """Commit what waits as a part of its own, even if it is not full."""
        if not self._pending:
            return
        part = len(self.committed)
        attempt = Attempt(
            storage=self._store.view.storage,
            store_id=self._store.id,
            group=self.group,
            part=part,
            stride_rows=self._store.part_stride,
        )
        try:
            for name, data, rows in self._tables(part * self._store.part_stride):
                attempt.put(name, tables.encode(data), rows)
            commit = attempt.commit(
                self._pending_rows,
                tokens=None,
                summary={},
                provenance=self._provenance,
                position=self._pending_position,
            )
        except BaseException:
            attempt.drop()
            raise
        self._check_winner(commit, attempt.id)
        self.committed.append(commit)
        self.position = commit.position
        self._pending, self._pending_rows = [], 0

    def _check_winner(self, commit: Commit, mine: str) -> None:
        """Raise where another writer was first and cut the source elsewhere; tokens have one writer."""
        same = commit.rows == self._pending_rows and canonical(commit.position) == canonical(
            self._pending_position
        )
        if commit.attempt != mine and not same:
            raise ConflictError(
                f"part {commit.part} of the tokens of {self._store.url} was committed by another writer, with "
                f"{commit.rows} rows where this one has {self._pending_rows}. Its part stands; this one was "
                "dropped. Let one writer at a time write tokens, and run this one again.",
                kind="tokens-raced",
                part=commit.part,
            )

    def _tables(self, base: int) -> list[tuple[str, Any, int]]:
        blocks, sequences, first = [], [], base
        documents: dict[int, dict[str, Any]] = {}
        for sequence in self._pending:
            block = sequence.columns(first)
            blocks.append(block)
            sequences.append(_sequence_row(sequence, first))
            for document, low, high in sequence.spans:
                _add_document(documents, document, block, low, high)
            first += len(sequence)
        tokens = {
            name: np.concatenate([block[name] for block in blocks]) for name in tables.TOKENS.names
        }
        found = [
            ("tokens.parquet", tables.table(tokens, tables.TOKENS)),
            ("sequences.parquet", _rows_table(sequences, tables.SEQUENCES)),
            ("documents.parquet", _rows_table(list(documents.values()), tables.DOCUMENTS)),
        ]
        return [(name, data, len(data)) for name, data in found]

    def seal(self) -> None:
        """Say that the source ended: commit what waits and complete the group."""
        self.flush()
        rows = sum(commit.slots for commit in self.committed)
        seal(self._store.view.storage, self._store.id, "tokens", len(self.committed), rows)
        self._store = self._store.refresh()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and self._pending:
            raise InvalidInputError(
                f"{self._pending_rows} rows wait for their part to fill up and were not written; "
                f"{len(self.committed)} committed parts stand. Call seal() where the source ended, or "
                "flush() to commit a short part.",
                kind="part-incomplete",
            )


def _sequence_row(sequence: TokenSequence, first: int) -> dict[str, Any]:
    ids = {document.doc_id for document, _, _ in sequence.spans}
    return {
        "seq_id": first,
        "doc_id": ids.pop() if len(ids) == 1 else None,
        "first_row": first,
        "rows": len(sequence),
        "split": sequence.split,
        "pair_id": sequence.pair_id,
        "role": sequence.role,
        "grid": sequence.grid,
    }


def _add_document(
    documents: dict[int, dict[str, Any]],
    document: Document,
    block: Mapping[str, Array],
    low: int,
    high: int,
) -> None:
    """Extend the document's entry of this part by rows ``low:high`` of a sequence."""
    starts, ends = block["char_start"][low:high], block["char_end"][low:high]
    spelled = starts >= 0
    held = documents.get(document.doc_id)
    rows = high - low + (0 if held is None else held["rows"])
    # Rows of special tokens alone say nothing of where in the text the document is.
    chars = [] if held is None or not held["char_end"] else [held["char_start"], held["char_end"]]
    if spelled.any():
        chars += [int(starts[spelled].min()), int(ends[spelled].max())]
    char_start, char_end = (min(chars), max(chars)) if chars else (0, 0)
    documents[document.doc_id] = {
        "doc_id": document.doc_id,
        "name": document.name,
        "sha256": document.sha256,
        "split": document.split,
        "first_row": int(block["row"][low]) if held is None else held["first_row"],
        "rows": rows,
        "char_start": char_start,
        "char_end": char_end,
        "text": None if document.text is None else document.text[char_start:char_end],
    }


def _rows_table(rows: Sequence[Mapping[str, Any]], schema: Any) -> Any:
    return tables.table({name: [row[name] for row in rows] for name in schema.names}, schema)
