"""The registry of sources, and how files are found, hashed and decoded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from ingest.contract import SourceDocument
from ingest.errors import SourceError
from store.registry import Registry

SOURCES = Registry("source", "ingest.sources")


def find_files(paths: Sequence[str], endings: tuple[str, ...]) -> list[tuple[str, Path]]:
    """Return (name, file) of every input file, sorted by name.

    A file stands for itself; a folder for all files below it with one of the ``endings``, named by their path
    below it.

    Raises
    ------
    SourceError
        ``corpus-missing`` or ``corpus-empty``.
    """
    found: list[tuple[str, Path]] = []
    for given in paths:
        path = Path(given)
        if path.is_file():
            found.append((path.name, path))
        elif path.is_dir():
            below = (p for p in path.rglob("*") if p.suffix in endings and p.is_file())
            found += [(str(p.relative_to(path)), p) for p in below]
        else:
            raise SourceError(
                f"the corpus {given!r} does not exist. Nothing was written. Check --corpus.",
                kind="corpus-missing",
                path=given,
            )
    if not found:
        raise SourceError(
            f"the corpus {', '.join(map(repr, paths)) or '(no path given)'} holds no file ending in "
            f"{', '.join(endings)}. Nothing was written. Check --corpus.",
            kind="corpus-empty",
        )
    return sorted(found)


def decoded(name: str, data: bytes) -> str:
    """Return UTF-8 bytes as text, or raise ``corpus-undecodable`` naming the file and byte."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SourceError(
            f"document {name!r} is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}. What was "
            "committed before stands. Convert the file, or leave it out of --corpus.",
            kind="corpus-undecodable",
            path=name,
        ) from error


def file_hash(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seeded_order(names: Sequence[str], seed: int) -> list[int]:
    """Return the order of names by sha256("seed/name"): a shuffle that does not depend on who else is there."""
    keys = [hashlib.sha256(f"{seed}/{name}".encode()).digest() for name in names]
    return sorted(range(len(names)), key=lambda index: keys[index])


def nonempty(documents: Iterator[SourceDocument], what: str) -> Iterator[SourceDocument]:
    """Yield documents with text; raise ``corpus-empty`` where there is none."""
    some = False
    for document in documents:
        if document.text:
            some = True
            yield document
    if not some:
        raise SourceError(
            f"{what} holds no text. Nothing was written. Check --corpus.", kind="corpus-empty"
        )
