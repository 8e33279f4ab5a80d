"""``jsonl``: one JSON object a line, its text under a field."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ingest.contract import SourceDocument
from ingest.errors import SourceError
from ingest.sources.registry import SOURCES, decoded, file_hash, find_files, nonempty


@SOURCES.register("jsonl")
@dataclass(frozen=True, kw_only=True, slots=True)
class JsonLines:
    """JSON Lines files, in order; a document is named ``file:line`` or by its ``name_field``."""

    paths: tuple[str, ...]
    text_field: str = "text"
    name_field: str | None = None

    def inputs(self) -> Mapping[str, str]:
        """Return the sha256 of every file."""
        return {name: file_hash(path) for name, path in find_files(self.paths, (".jsonl",))}

    def documents(self) -> Iterator[SourceDocument]:
        """Yield one document a line."""
        return nonempty(self._read(), f"the corpus {', '.join(self.paths)}")

    def _read(self) -> Iterator[SourceDocument]:
        for name, path in find_files(self.paths, (".jsonl",)):
            with path.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        yield self._document(f"{name}:{number}", line)

    def _document(self, place: str, line: bytes) -> SourceDocument:
        try:
            record: Any = json.loads(decoded(place, line))
            text = record[self.text_field]
            name = place if self.name_field is None else str(record[self.name_field])
        except (ValueError, KeyError, TypeError) as error:
            raise _unusable(place, self.text_field, error) from error
        if not isinstance(text, str):
            raise _unusable(place, self.text_field, TypeError(f"it is {type(text).__name__}"))
        return SourceDocument(name=name, text=text)


def _unusable(place: str, field: str, error: Exception) -> SourceError:
    return SourceError(
        f"{place} is no JSON object with a string under {field!r} ({type(error).__name__}: {error}). What "
        "was committed before stands. Mend the line, or name the field (--text-field).",
        kind="corpus-unreadable",
        path=place,
    )
