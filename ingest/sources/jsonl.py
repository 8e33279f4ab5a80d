"""``jsonl``: one JSON object a line, its text under a field."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ingest.contract import SourceDocument
from ingest.errors import SourceError
from ingest.sources.registry import (
    SOURCES,
    decoded,
    file_hashes,
    find_files,
    nonempty,
    unreadable,
)


@SOURCES.register("jsonl")
@dataclass(frozen=True, kw_only=True, slots=True)
class JsonLines:
    """JSON Lines files, in order; a document is named ``file:line`` or by its ``name_field``.

    A text or name of null is none: no document, or the name of the place.
    """

    paths: tuple[str, ...]
    """JSON Lines files, or folders of them."""
    text_field: str = "text"
    """Field of the text."""
    name_field: str | None = None
    """Field of a document's name; None names it by its place."""

    def inputs(self) -> Mapping[str, str]:
        """Return the sha256 of every file."""
        return file_hashes(find_files(self.paths, (".jsonl",)))

    def documents(self) -> Iterator[SourceDocument]:
        """Yield one document a line."""
        return nonempty(self._read(), f"the corpus {', '.join(self.paths)}")

    def _read(self) -> Iterator[SourceDocument]:
        for name, path in find_files(self.paths, (".jsonl",)):
            try:
                with path.open("rb") as lines:
                    for number, line in enumerate(lines, start=1):
                        if line.strip():
                            yield self._document(f"{name}:{number}", line)
            except OSError as error:
                raise unreadable(name, error) from error

    def _document(self, place: str, line: bytes) -> SourceDocument:
        try:
            record: Any = json.loads(decoded(place, line))
        except (ValueError, RecursionError) as error:
            raise _unusable(place, f"it is no JSON ({type(error).__name__}: {error})") from error
        fields = [self.text_field, *([self.name_field] if self.name_field else [])]
        if not isinstance(record, dict):
            raise _unusable(place, f"it is no JSON object but {type(record).__name__}")
        if absent := [field for field in fields if field not in record]:
            raise _unusable(
                place, f"it has no {', '.join(absent)}; its fields are {', '.join(record)}"
            )
        text = record[self.text_field]
        text = "" if text is None else text
        if not isinstance(text, str):
            raise _unusable(place, f"its {self.text_field} is {type(text).__name__}, not text")
        label = record[self.name_field] if self.name_field else None
        name = place if label is None else str(label)
        try:
            (text + name).encode()
        except UnicodeEncodeError as error:
            found = f"its text holds half a surrogate pair, {error.object[error.start]!a}"
            raise _unusable(place, found) from error
        return SourceDocument(name=name, text=text)


def _unusable(place: str, found: str) -> SourceError:
    return SourceError(
        f"line {place} cannot be used: {found}. What was committed before stands. Mend the line, or name "
        "the fields (--text-field, --name-field).",
        kind="corpus-unreadable",
        path=place,
    )
