"""What a source gives, as token ids with the characters they stand for: texts are cut, ready ids are checked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ingest.chats import check_template, rendered
from ingest.contract import (
    Array,
    ChatSource,
    Dialogue,
    SourceDocument,
    TextSource,
    TokenDocument,
    TokenSource,
    Vocabulary,
)
from ingest.errors import ModelError, SourceError


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Encoded:
    """A document's tokens and what identifies them."""

    ids: Array
    """``int32[T]``."""
    spans: Array
    """``int32[T, 2]``: characters of the text; −1 where there is none."""
    sha256: str
    """Of the text in UTF-8, or of ready ids as little-endian int32: what decides the split."""
    text: str | None
    """None for a document that is ids alone."""


class Reader(Protocol):
    """A source and what makes tokens of its documents."""

    framed: bool
    """Whether sequences get the tokenizer's special tokens around them."""
    whole: bool
    """Whether a document may not be cut, neither by the context nor by a limit of rows."""

    def documents(self) -> Iterator[Any]:
        """Yield the documents, unread: one that is passed over costs nothing."""

    def encode(self, document: Any) -> Encoded:
        """Return a document's tokens."""


def reader(source: TextSource | TokenSource | ChatSource, tokenizer: Any) -> Reader:
    """Return the reader of a source.

    Raises
    ------
    ModelError
        ``tokenizer-unusual``: texts cannot be aligned with this tokenizer's tokens; ``no-template``: it has none for
        dialogues.
    """
    if isinstance(source, TokenSource):
        return _Ids(source, vocabulary(tokenizer))
    if isinstance(source, ChatSource):
        return _Dialogues(source, tokenizer)
    return _Texts(source, tokenizer)


def vocabulary(tokenizer: Any) -> Vocabulary:
    """Return the tokens of a tokenizer."""
    return Vocabulary(
        tokens=len(tokenizer),
        special=tuple(sorted(set(tokenizer.all_special_ids))),
        bos=tokenizer.bos_token_id,
    )


def _check_fast(tokenizer: Any) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"the tokenizer is a {type(tokenizer).__name__}, which does not say where in the text "
            "its tokens stand. Nothing was written. Use a model with a tokenizer.json.",
            kind="tokenizer-unusual",
        )


def spelled(tokenizer: Any, text: str, **options: Any) -> Any:
    """Return what a tokenizer makes of a text.

    Raises
    ------
    SourceError
        ``text-unspeakable``: it has no tokens for it, and none for unknown words.
    """
    try:
        return tokenizer(text, **options)
    except Exception as error:  # the Rust tokenizer raises plain Exception
        raise SourceError(
            f"the tokenizer has no tokens for a text that begins {text[:40]!r}: {error}. What was committed before stands. Use "
            "texts of the words it knows, or ready ids (--source pretokenised).",
            kind="text-unspeakable",
        ) from error


def _encoded(tokenizer: Any, text: str) -> Encoded:
    encoded = spelled(
        tokenizer,
        text,
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    return Encoded(
        ids=np.array(encoded["input_ids"], np.int32),
        spans=np.array(encoded["offset_mapping"], np.int32).reshape(-1, 2),
        sha256=hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(),
        text=text,
    )


class _Texts:
    framed, whole = True, False

    def __init__(self, source: TextSource, tokenizer: Any) -> None:
        _check_fast(tokenizer)
        self._source, self._tokenizer = source, tokenizer

    def documents(self) -> Iterator[SourceDocument]:
        return self._source.documents()

    def encode(self, document: SourceDocument) -> Encoded:
        return _encoded(self._tokenizer, document.text)


class _Dialogues:
    framed, whole = False, True  # the template writes what begins and ends a text

    def __init__(self, source: ChatSource, tokenizer: Any) -> None:
        _check_fast(tokenizer)
        check_template(tokenizer)
        self._source, self._tokenizer = source, tokenizer

    def documents(self) -> Iterator[Dialogue]:
        return self._source.dialogues()

    def encode(self, document: Dialogue) -> Encoded:
        return _encoded(self._tokenizer, rendered(self._tokenizer, document).text)


class _Ids:
    framed = False

    def __init__(self, source: TokenSource, held: Vocabulary) -> None:
        self._source, self._vocabulary = source, held
        self.whole = source.longest is not None

    def documents(self) -> Iterator[TokenDocument]:
        return self._source.token_documents(self._vocabulary)

    def encode(self, document: TokenDocument) -> Encoded:
        ids = np.asarray(document.token_ids)
        legal = ids.ndim == 1 and ids.dtype.kind in "iu"
        low, high = (int(ids.min()), int(ids.max())) if legal and ids.size else (0, 0)
        if not legal or low < 0 or high >= self._vocabulary.tokens:
            found = (
                f"ids from {low} to {high}" if legal else f"{ids.dtype} of shape {list(ids.shape)}"
            )
            raise SourceError(
                f"document {document.name!r} holds {found}; the tokenizer has ids from 0 to "
                f"{self._vocabulary.tokens - 1}, one a token. What was committed before stands. Use the ids "
                "of the model's own tokenizer.",
                kind="bad-token-ids",
                path=document.name,
            )
        return Encoded(
            ids=ids.astype(np.int32),
            spans=np.full((len(ids), 2), -1, np.int32),
            sha256=hashlib.sha256(ids.astype("<i4").tobytes()).hexdigest(),
            text=None,
        )
