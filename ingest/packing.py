"""Framed documents and the sequences made of them: one document a sequence, or several, one behind the other.

Packed (``--packing fill``), the documents of a split follow one another without gaps and are cut every ``context`` tokens; a
document may begin in one sequence and end in the next. Splits never share a sequence, so three of them may be open at a time.
Where documents must not see one another, leave them apart and let a harvest lay them side by side (``--lanes``).
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ingest.contract import Array
from ingest.framing import Specials
from store import Document, TokenSequence
from store.tokens import FLAG_FIRST_OF_DOCUMENT, FLAG_SPECIAL


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Framed:
    """A document's tokens with what stands around it."""

    held: Document
    ids: Array
    """``int32[T]``."""
    spans: Array
    """``int32[T, 2]``: characters of the text; −1 where special."""
    flags: Array
    """``uint16[T]``."""

    @classmethod
    def of(
        cls, held: Document, ids: Array, spans: Array, around: Specials, special_ids: Array
    ) -> Framed:
        """Put special tokens around a document's own and flag both kinds."""
        before, after = len(around.prefix), len(around.suffix)
        total = before + len(ids) + after
        every = np.concatenate([around.prefix, ids, around.suffix]).astype(np.int32)
        flags = np.where(np.isin(every, special_ids), FLAG_SPECIAL, 0).astype(np.uint16)
        flags[:before] = FLAG_SPECIAL
        flags[total - after :] = FLAG_SPECIAL
        places = np.full((total, 2), -1, np.int32)
        places[before : total - after] = spans
        places[(flags & FLAG_SPECIAL) != 0] = -1
        flags[before : before + 1] |= FLAG_FIRST_OF_DOCUMENT
        return cls(held=held, ids=every, spans=places, flags=flags)

    def __len__(self) -> int:
        return len(self.ids)


Piece = tuple[Framed, int, int]
"""Tokens ``low:high`` of a framed document."""


def sequence_of(pieces: Sequence[Piece], around: Specials) -> TokenSequence:
    """Return the sequence that some pieces make, special tokens around it; they are of one split.

    What stands around belongs to the document beside it.
    """
    before, after = len(around.prefix), len(around.suffix)
    total = before + sum(high - low for _, low, high in pieces) + after
    ids, flags = np.empty(total, np.int32), np.full(total, FLAG_SPECIAL, np.uint16)
    spans = np.full((total, 2), -1, np.int32)
    ids[:before], ids[total - after :] = around.prefix, around.suffix
    documents = []
    at = before
    for framed, low, high in pieces:
        end = at + high - low
        ids[at:end] = framed.ids[low:high]
        flags[at:end] = framed.flags[low:high]
        spans[at:end] = framed.spans[low:high]
        documents.append((framed.held, at, end))
        at = end
    documents[0] = (documents[0][0], 0, documents[0][2])
    documents[-1] = (documents[-1][0], documents[-1][1], total)
    return TokenSequence(
        token_ids=ids,
        spans=documents,
        char_start=spans[:, 0],
        char_end=spans[:, 1],
        flags=flags,
        split=documents[0][0].split,
    )


@dataclass(kw_only=True)
class _Open:
    """What waits of a split: the rest of its first document and all of those behind it."""

    waiting: deque[tuple[Framed, int]] = field(default_factory=deque)
    tokens: int = 0

    def add(self, framed: Framed, low: int = 0) -> None:
        if len(framed) > low:
            self.waiting.append((framed, low))
            self.tokens += len(framed) - low

    def take(self, count: int) -> list[Piece]:
        """Return the first ``count`` tokens, or all there are."""
        pieces = []
        while count and self.waiting:
            framed, low = self.waiting.popleft()
            high = min(len(framed), low + count)
            pieces.append((framed, low, high))
            if high < len(framed):
                self.waiting.appendleft((framed, high))
            count -= high - low
            self.tokens -= high - low
        return pieces

    @property
    def place(self) -> list[int] | None:
        """Where the first waiting token is, ``[document, token]``."""
        return [self.waiting[0][0].held.doc_id, self.waiting[0][1]] if self.waiting else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Packer:
    """Packs framed documents into sequences of ``context`` tokens, from any position on.

    A position is ``{documents, rows, open}``: documents taken, rows behind it, and by split where its first waiting token is.
    Going on reads no document before the first of these.
    """

    context: int
    around: Specials
    """What begins and ends every sequence; where a document begins one with the same tokens, they stand there once."""
    rows: int | None
    """Rows at most."""

    def sequences(
        self, documents: Iterable[Any], frame: Callable[[int, Any], Framed], position: Any
    ) -> Iterator[tuple[TokenSequence, dict[str, Any]]]:
        """Yield (sequence, position behind it).

        Parameters
        ----------
        documents
            Unread, from the first on.
        frame
            (number, document) → its tokens.
        """
        begun = position or {"documents": 0, "rows": 0, "open": [None, None, None]}
        taken, rows = begun["documents"], begun["rows"]
        places = begun["open"]
        opened = [_Open() for _ in places]
        first = min([taken, *(place[0] for place in places if place)])

        def emit(*, least: int) -> Iterator[tuple[TokenSequence, dict[str, Any]]]:
            nonlocal rows
            for one in opened:
                while one.tokens >= max(1, least - self._frame_rows(one)):
                    room = None if self.rows is None else self.rows - rows
                    sequence = self._take(one, room)
                    if sequence is None:
                        return
                    rows += len(sequence)
                    where = [each.place for each in opened]
                    yield sequence, {"documents": taken, "rows": rows, "open": where}

        for number, document in itertools.islice(enumerate(documents), first, None):
            if number >= taken:
                yield from emit(least=self.context)
                if self.rows is not None and rows + len(self.around) >= self.rows:
                    return  # no room for another sequence
            framed = frame(number, document)
            one, place = opened[framed.held.split], places[framed.held.split]
            if number >= taken:
                one.add(framed)
                taken = number + 1
            elif place and number >= place[0]:  # what waited when the position was taken
                one.add(framed, place[1] if number == place[0] else 0)
        yield from emit(least=self.context)
        yield from emit(least=1)

    def _frame_rows(self, one: _Open) -> int:
        """Return the tokens that go around the next sequence of a split."""
        return len(self._frame(one))

    def _frame(self, one: _Open) -> Specials:
        if not one.waiting or one.waiting[0][1] or not self.around.prefix:
            return self.around
        held = one.waiting[0][0].ids[: len(self.around.prefix)].tolist()
        same = held == list(self.around.prefix)
        return Specials(suffix=self.around.suffix) if same else self.around

    def _take(self, one: _Open, room: int | None) -> TokenSequence | None:
        """Return the next sequence of a split, or None where there is no room for one."""
        around = self._frame(one)
        whole = self.context if room is None else min(self.context, room)
        count = whole - len(around)
        return sequence_of(one.take(count), around) if count > 0 else None
