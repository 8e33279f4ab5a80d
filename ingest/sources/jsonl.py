"""``jsonl``: one JSON object a line, its text under a field."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
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
        fields = [self.text_field, *([self.name_field] if self.name_field else [])]
        for place, record in records(self.paths, fields):
            yield self._document(place, record)

    def _document(self, place: str, record: dict[str, Any]) -> SourceDocument:
        text = record[self.text_field]
        text = "" if text is None else text
        if not isinstance(text, str):
            raise unusable(place, f"its {self.text_field} is {type(text).__name__}, not text")
        label = record[self.name_field] if self.name_field else None
        name = place if label is None else str(label)
        try:
            (text + name).encode()
        except UnicodeEncodeError as error:
            found = f"its text holds half a surrogate pair, {error.object[error.start]!a}"
            raise unusable(place, found) from error
        return SourceDocument(name=name, text=text)


def records(paths: tuple[str, ...], fields: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, object) of every line of JSON Lines files, in order; blank lines are none.

    Raises
    ------
    SourceError
        ``corpus-unreadable``: a line is no JSON object with the fields.
    """
    for name, path in find_files(paths, (".jsonl",)):
        try:
            with path.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        place = f"{name}:{number}"
                        yield place, _record(place, line, fields)
        except OSError as error:
            raise unreadable(name, error) from error


def _record(place: str, line: bytes, fields: Sequence[str]) -> dict[str, Any]:
    try:
        record: Any = json.loads(decoded(place, line))
    except (ValueError, RecursionError) as error:
        raise unusable(place, f"it is no JSON ({type(error).__name__}: {error})") from error
    if not isinstance(record, dict):
        raise unusable(place, f"it is no JSON object but {type(record).__name__}")
    if absent := [field for field in fields if field not in record]:
        found = f"it has no {', '.join(absent)}; its fields are {', '.join(record)}"
        raise unusable(place, found)
    return record


def unusable(place: str, found: str, flags: str = "--text-field, --name-field") -> SourceError:
    """Return the error for a line that is no document; ``flags`` name its fields."""
    return SourceError(
        f"line {place} cannot be used: {found}. What was committed before stands. Mend the line, or name "
        f"the fields ({flags}).",
        kind="corpus-unreadable",
        path=place,
    )
