"""``parquet``: Parquet files with a text column."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from ingest.contract import SourceDocument
from ingest.errors import SourceError
from ingest.sources.registry import SOURCES, file_hashes, find_files, nonempty

_BATCH_ROWS = 1024


@SOURCES.register("parquet")
@dataclass(frozen=True, kw_only=True, slots=True)
class Parquet:
    """Parquet files, in order; a document is named ``file:row`` or by its ``name_field``.

    A text or name of null is none: no document, or the name of the place.
    """

    paths: tuple[str, ...]
    """Parquet files, or folders of them."""
    text_field: str = "text"
    """Field of the text."""
    name_field: str | None = None
    """Field of a document's name; None names it by its place."""

    def inputs(self) -> Mapping[str, str]:
        """Return the sha256 of every file."""
        return file_hashes(find_files(self.paths, (".parquet",)))

    def documents(self) -> Iterator[SourceDocument]:
        """Yield one document a row."""
        return nonempty(self._read(), f"the corpus {', '.join(self.paths)}")

    def _read(self) -> Iterator[SourceDocument]:
        wanted = [self.text_field, *([self.name_field] if self.name_field else [])]
        for name, path in find_files(self.paths, (".parquet",)):
            try:
                with pq.ParquetFile(path, page_checksum_verification=True) as file:
                    yield from self._rows(file, name, wanted)
            except UnicodeDecodeError as error:
                raise _unusable(name, f"a text is not UTF-8 ({error.reason})") from error
            except (pa.ArrowException, OSError) as error:
                raise _unusable(name, str(error)) from error

    def _rows(self, file: pq.ParquetFile, name: str, wanted: list[str]) -> Iterator[SourceDocument]:
        if absent := [field for field in wanted if field not in file.schema_arrow.names]:
            known = ", ".join(file.schema_arrow.names)
            raise _unusable(name, f"it has no column {', '.join(absent)}; its columns are {known}")
        number = 0
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=wanted):
            for row in batch.to_pylist():
                number += 1
                text = row[self.text_field]
                if isinstance(text, str):
                    label = row[self.name_field] if self.name_field else None
                    place = f"{name}:{number}"
                    yield SourceDocument(name=place if label is None else str(label), text=text)
                elif text is not None:
                    raise _unusable(name, f"row {number} holds {type(text).__name__}, not text")


def _unusable(name: str, found: str) -> SourceError:
    return SourceError(
        f"the corpus file {name} cannot be used: {found}. What was committed before stands. Mend the file, or "
        "name its text column (--text-field).",
        kind="corpus-unreadable",
        path=name,
    )
