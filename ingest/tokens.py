"""Writes the tokens group: documents → token sequences → rows, resumable after any whole part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ingest.chats import fits
from ingest.config import TokensConfig
from ingest.contract import ChatSource, PairSource, TextSource, TokenSource
from ingest.duplicates import Seen
from ingest.errors import IngestError, ModelError, SourceError
from ingest.framing import Framing, Specials, check_unframed, special_ids
from ingest.models import LoadedModel
from ingest.packing import Framed, Packer, sequence_of
from ingest.plan import SHARES, Slice, slices, split_of
from ingest.readers import reader
from ingest.writing import Progress, write_sequences
from store import Document, Store, TokenSequence, TokensWriter
from store.records import sha256
from store.registry import to_json

Array = np.ndarray[Any, np.dtype[Any]]
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "chat_template.jinja",
)
_LISTED_INPUTS = 16
CHAT_CONTEXT = 2048
"""Tokens of a dialogue at most, where nothing is said."""
USUAL_CONTEXT = 256
"""Tokens of a sequence of anything else, where nothing is said."""


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """Return the files that make a tokenizer, as they lie with the model."""
    return {
        name: (folder / name).read_bytes() for name in _TOKENIZER_FILES if (folder / name).is_file()
    }


def check_same_tokenizer(store: Store, loaded: LoadedModel) -> None:
    """Raise ``tokenizer-mismatch`` unless the store's rows were cut by this model's tokenizer."""
    asset = store.groups["tokens"].recipe.get("tokenizer")
    if asset is None and loaded.tokenizer is None:
        return  # rows and model are of images alone
    held = store.asset(asset) if asset else {}
    mine = tokenizer_files(loaded.folder)
    key = "tokenizer.json" if "tokenizer.json" in held else None
    same = held.get(key) == mine.get(key) if key else held == mine
    if not same:
        raise ModelError(
            f"the rows of {store.url} were cut by another tokenizer than that of {loaded.name}, so its "
            "columns could not be aligned to them. Nothing was written. Use a model with the same "
            "tokenizer, or make a store of its own (--out).",
            kind="tokenizer-mismatch",
        )


def resolve_context(config: TokensConfig, loaded: LoadedModel) -> int:
    """Return the tokens of a sequence, checked against the model's positions and documents that stay whole."""
    limit = loaded.adapter.max_positions
    stays_whole = isinstance(config.source, TokenSource | PairSource)
    longest = config.source.longest if stays_whole else None
    goes_on = config.generation is not None and isinstance(config.source, TokenSource)
    if longest is not None and goes_on and config.generation is not None:
        longest += config.generation.tokens
    usual = CHAT_CONTEXT if isinstance(config.source, ChatSource) else USUAL_CONTEXT
    context = config.context or longest or min(usual, limit or usual)
    if longest is not None and context < longest:
        raise IngestError(
            f"a context of {context} tokens was asked for; documents of the source {config.source.kind!r} have "
            f"up to {longest} and are not cut. Nothing was written. Use --context {longest} or more.",
            kind="context-too-short",
        )
    if limit is not None and context > limit:
        raise IngestError(
            f"a context of {context} tokens was asked for; {loaded.name} has {limit} positions. Nothing "
            f"was written. Use --context {limit} or less.",
            kind="context-too-long",
        )
    return context


def check_vocabulary(loaded: LoadedModel) -> None:
    """Raise ``vocabulary-mismatch`` where the tokenizer has ids the model has no embedding for."""
    config: Any = getattr(loaded.model, "config", None)
    held = getattr(getattr(config, "text_config", config), "vocab_size", None)
    if held is not None and loaded.tokenizer is not None and len(loaded.tokenizer) > held:
        raise ModelError(
            f"the tokenizer of {loaded.name} has {len(loaded.tokenizer)} tokens, the model {held}. Nothing was "
            "written. Give the model its own tokenizer.",
            kind="vocabulary-mismatch",
        )


def picture_recipe(
    config: TokensConfig,
    inputs: Mapping[str, str],
    context: int,
    tokenizer: str | None,
    processor: str,
    images: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what the tokens group of images, and what its rows see, is a function of.

    Parameters
    ----------
    tokenizer, processor
        Assets of what makes tokens of texts and pixels of images.
    images
        What the rows are (`ingest.showing.images_of`).
    """
    among = images["rows"] == "tokens"
    framing = {"special_tokens": config.special_tokens} if among else {}
    described = {name: value for name, value in to_json(config.source).items() if name != "paths"}
    return {
        "schema": 1,
        "source": described,
        "inputs": inputs_identity(inputs),
        "images": dict(images),
        "processor": processor,
        "tokenizer": tokenizer,
        **framing,
        "context": context,
        "split": {"seed": config.split_seed, "shares": list(SHARES)},
        "rows": config.rows,
        "text": config.text,
    }


def inputs_identity(inputs: Mapping[str, str]) -> dict[str, Any]:
    """Return input hashes for a recipe: each file's where they are few, else one over the sorted list."""
    if len(inputs) <= _LISTED_INPUTS:
        return dict(inputs)
    lines = "".join(f"{inputs[name]} {name}\n" for name in sorted(inputs))
    return {"files": len(inputs), "sha256": sha256(lines.encode())}


def tokens_recipe(
    config: TokensConfig,
    inputs: Mapping[str, str],
    context: int,
    asset: str,
    writer: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return everything the tokens group is a function of; paths are not.

    Parameters
    ----------
    writer
        What identifies the model that goes on from prompts, where one does.
    """
    described = {name: value for name, value in to_json(config.source).items() if name != "paths"}
    return {
        "schema": 1,
        "source": described,
        "inputs": inputs_identity(inputs),
        "tokenizer": asset,
        "context": context,
        "special_tokens": config.special_tokens,
        "packing": None if config.packing == "none" else config.packing,
        **({} if config.bos == "auto" else {"bos": config.bos}),
        **({} if config.duplicates == "keep" else {"duplicates": config.duplicates}),
        **({} if writer is None else {"generated": dict(writer)}),
        "split": {"seed": config.split_seed, "shares": list(SHARES)},
        "rows": config.rows,
        "text": config.text,
    }


@dataclass(kw_only=True)
class Tokenizing:
    """Turns documents into sequences, from any position on.

    A text that spells a special token (``[SEP]``, ``<|endoftext|>``) becomes that token, as everywhere with
    this tokenizer, and its row is flagged special and has no span. Ready ids (`TokenSource`) are taken as they
    are: no special tokens are put around them, and where its source says so a document is never cut.
    """

    config: TokensConfig
    source: TextSource | TokenSource | ChatSource
    tokenizer: Any
    context: int
    open_ended: bool = False
    """Whether something is to follow each sequence, so that no special tokens end it."""
    seen: Seen = field(default_factory=Seen)
    """The first document of every text there was before."""

    def __post_init__(self) -> None:
        self._reader = reader(self.source, self.tokenizer)
        self.special_ids = special_ids(self.tokenizer)
        if not self._reader.framed:
            check_unframed(self.config, "whose documents are taken as they are")
        self._framing = (
            Framing.of(self.tokenizer, self.config) if self._reader.framed else Framing()
        )
        if self.open_ended:
            before = replace(self._framing.sequence, suffix=())
            self._framing = replace(self._framing, sequence=before)
        self._content = self.context - len(self._framing.sequence)
        if self._content <= 0:
            raise IngestError(
                f"a context of {self.context} tokens leaves no room beside {len(self._framing.sequence)} special "
                "tokens. Nothing was written. Use a longer --context.",
                kind="context-too-short",
            )

    def sequences(self, position: Any) -> Iterator[tuple[TokenSequence, Any]]:
        """Yield (sequence, position behind it) from ``position`` on; None is the start.

        A position is ``[document, sequence in it, rows so far]``; of packed documents, what `Packer` says.
        """
        if self.config.packing == "none":
            return self._apart(position)
        packer = Packer(context=self.context, around=self._framing.sequence, rows=self.config.rows)
        return packer.sequences(self._reader.documents(), self._framed, position)

    def _apart(self, position: Any) -> Iterator[tuple[TokenSequence, list[int]]]:
        first_document, first_sequence, rows = position or (0, 0, 0)
        for doc_id, document in enumerate(self._reader.documents()):
            if doc_id < first_document:
                continue
            skip = first_sequence if doc_id == first_document else 0
            for number, (framed, piece) in enumerate(self._pieces(doc_id, document)):
                if number < skip:
                    continue
                room = None if self.config.rows is None else self.config.rows - rows
                if room is not None and room < self._least(piece):
                    return
                high = piece.stop
                if room is not None:
                    high = min(high, piece.start + room - len(self._framing.sequence))
                sequence = sequence_of([(framed, piece.start, high)], self._framing.sequence)
                rows += len(sequence)
                yield sequence, [doc_id, number + 1, rows]

    def _least(self, piece: Slice) -> int:
        """Return the fewest rows that make a sequence of a piece."""
        if self._reader.whole:
            return piece.stop - piece.start
        return len(self._framing.sequence) + 1

    def _pieces(self, doc_id: int, document: Any) -> Iterator[tuple[Framed, Slice]]:
        framed = self._framed(doc_id, document)
        if isinstance(self.source, ChatSource) and not fits(
            self.source, document, len(framed), self._content
        ):
            return
        for piece in slices(len(framed), self._content):
            yield framed, piece

    def _framed(self, doc_id: int, document: Any) -> Framed:
        tokens = self._reader.encode(document)
        held = Document(
            doc_id=doc_id,
            name=document.name,
            sha256=tokens.sha256,
            split=split_of(tokens.sha256, self.config.split_seed),
            text=tokens.text if self.config.text else None,
        )
        ids, spans = tokens.ids, tokens.spans
        if self._repeated(held):
            ids, spans = ids[:0], spans[:0]
        around = self._framing.document if len(ids) else Specials()
        return Framed.of(held, ids, spans, around, self.special_ids)

    def _repeated(self, held: Document) -> bool:
        """Return whether a document is left out because an earlier one has its text."""
        drop = self.config.duplicates == "drop"
        return drop and self.seen.first(held.sha256, held.doc_id) != held.doc_id

    def check(self) -> None:
        """Raise unless the source makes at least one sequence.

        Raises
        ------
        SourceError
            ``corpus-empty``: the source has documents, but they make no row; or what the source itself raises.
        """
        if next(self.sequences(None), None) is None:
            raise SourceError(
                f"the documents make no row: they hold no token, or the {self.config.rows or 'unlimited'} "
                "rows asked for are too few for a sequence. Nothing was written. Check --corpus and --rows.",
                kind="corpus-empty",
            )

    def write(self, writer: TokensWriter, progress: Progress) -> None:
        """Write what is missing of the tokens group and seal it where the source ends."""
        write_sequences(self, writer, progress, self.config.rows)
