"""The registry of sources, and how files are found, hashed and decoded."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ingest.contract import SourceDocument
from ingest.errors import SourceError
from store.registry import Registry

SOURCES = Registry("source", "ingest.sources")


def find_files(paths: Sequence[str], endings: tuple[str, ...]) -> list[tuple[str, Path]]:
    r"""Return (name, file) of every input file, sorted by name.

    A file stands for itself; a folder for all files below it with one of the ``endings``, named by their path
    below it. A file given twice is one. Of different files of one name, the second is called ``name (2)``, in
    the order of ``paths``. Bytes of a name that are not UTF-8 are spelled ``\xff``.

    Raises
    ------
    SourceError
        ``corpus-missing`` or ``corpus-empty``.
    """
    found: dict[str, tuple[str, Path]] = {}
    for given in paths:
        for name, path in _below(given, endings):
            found.setdefault(os.path.abspath(path), (name, path))  # noqa: PTH100 - links stay apart
    if not found:
        raise SourceError(
            f"the corpus {', '.join(map(repr, paths)) or '(no path given)'} holds no file ending in "
            f"{', '.join(endings)}. Nothing was written. Check --corpus.",
            kind="corpus-empty",
        )
    named: dict[str, Path] = {}
    for name, path in found.values():
        unique, number = name, 1
        while unique in named:
            number += 1
            unique = f"{name} ({number})"
        named[unique] = path
    return sorted(named.items())


def _below(given: str, endings: tuple[str, ...]) -> list[tuple[str, Path]]:
    path = Path(given)
    if path.is_file():
        return [(_spelled(path.name), path)]
    if path.is_dir():
        below = (p for p in path.rglob("*") if p.suffix.lower() in endings and p.is_file())
        return sorted((_spelled(p.relative_to(path).as_posix()), p) for p in below)
    raise SourceError(
        f"the corpus {_spelled(given)!r} does not exist. Nothing was written. Check --corpus.",
        kind="corpus-missing",
        path=_spelled(given),
    )


def _spelled(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def decoded(name: str, data: bytes) -> str:
    """Return UTF-8 bytes as text without a byte order mark, or raise ``corpus-undecodable``."""
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise SourceError(
            f"document {name!r} is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}. What was "
            "committed before stands. Convert the file, or leave it out of --corpus.",
            kind="corpus-undecodable",
            path=name,
        ) from error


def unreadable(name: str, error: OSError) -> SourceError:
    """Return the error for a file the system does not hand out."""
    return SourceError(
        f"the corpus file {name!r} cannot be read: {error.strerror or error}. What was committed before "
        "stands. Make it readable, or leave it out of --corpus.",
        kind="corpus-unreadable",
        path=name,
    )


def file_bytes(name: str, path: Path) -> bytes:
    """Return a file's bytes, or raise ``corpus-unreadable``."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(name, error) from error


def file_hashes(files: Sequence[tuple[str, Path]]) -> dict[str, str]:
    """Return name → sha256 of files, or raise ``corpus-unreadable``."""
    hashes = {}
    for name, path in files:
        try:
            with path.open("rb") as file:
                hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise unreadable(name, error) from error
    return hashes


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
