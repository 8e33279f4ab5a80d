"""``text``: plain UTF-8 files, one document each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ingest.contract import SourceDocument
from ingest.sources.registry import (
    SOURCES,
    decoded,
    file_bytes,
    file_hashes,
    find_files,
    nonempty,
    seeded_order,
)

ENDINGS = (".txt", ".md", ".rst", ".py", ".html", ".tex", ".csv", ".json", ".xml")


@SOURCES.register("text")
@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """Files as they are, or all text files below folders; names are paths below the folder."""

    paths: tuple[str, ...]
    """Files, or folders whose text files are taken."""
    order_seed: int | None = None
    """Where set, documents come in the order of sha256("seed/name"), else sorted by name."""

    def inputs(self) -> Mapping[str, str]:
        """Return the sha256 of every file; one that is not UTF-8 is refused here, before a store is made."""
        files = find_files(self.paths, ENDINGS)
        for name, path in files:
            decoded(name, file_bytes(name, path))
        return file_hashes(files)

    def documents(self) -> Iterator[SourceDocument]:
        """Yield one document a file."""
        files = find_files(self.paths, ENDINGS)
        if self.order_seed is not None:
            order = seeded_order([name for name, _ in files], self.order_seed)
            files = [files[index] for index in order]
        read = (
            SourceDocument(name=name, text=decoded(name, file_bytes(name, path)))
            for name, path in files
        )
        return nonempty(read, f"the corpus {', '.join(self.paths)}")
