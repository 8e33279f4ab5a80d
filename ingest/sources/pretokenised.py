"""``pretokenised``: one JSON object a line, its token ids under a field.

Ids are rows as they stand: nothing is added around them, and none has a place in a text. A document longer than
the context is cut. Whose tokenizer made them nobody can see; ids the model's own does not have are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ingest.contract import TokenDocument, Vocabulary
from ingest.errors import SourceError
from ingest.sources.jsonl import records, unusable
from ingest.sources.registry import SOURCES, file_hashes, find_files


@SOURCES.register("pretokenised")
@dataclass(frozen=True, kw_only=True, slots=True)
class Pretokenised:
    """JSON Lines files of token ids, in order; a document is named ``file:line`` or by its ``name_field``."""

    paths: tuple[str, ...]
    """JSON Lines files, or folders of them."""
    ids_field: str = "token_ids"
    """Field of the ids, a list of integers."""
    name_field: str | None = None
    """Field of a document's name; None names it by its place."""

    @property
    def longest(self) -> None:
        """None: documents may be cut."""
        return

    def inputs(self) -> Mapping[str, str]:
        """Return the sha256 of every file."""
        return file_hashes(find_files(self.paths, (".jsonl",)))

    def token_documents(self, vocabulary: Vocabulary) -> Iterator[TokenDocument]:
        """Yield one document a line that has ids."""
        del vocabulary
        some = False
        fields = [self.ids_field, *([self.name_field] if self.name_field else [])]
        for place, record in records(self.paths, fields):
            document = self._document(place, record)
            if len(document.token_ids):
                some = True
                yield document
        if not some:
            raise SourceError(
                f"the corpus {', '.join(self.paths)} holds no token id. Nothing was written. Check --corpus.",
                kind="corpus-empty",
            )

    def _document(self, place: str, record: dict[str, Any]) -> TokenDocument:
        ids = record[self.ids_field]
        whole = isinstance(ids, list) and all(type(item) is int for item in ids)
        if not whole or any(abs(item) >= 1 << 31 for item in ids):
            found = f"its {self.ids_field} is no list of token ids"
            raise unusable(place, found, "--source pretokenised:ids_field=…,name_field=…")
        label = record[self.name_field] if self.name_field else None
        name = place if label is None else str(label)
        return TokenDocument(name=name, token_ids=np.array(ids, np.int32))
