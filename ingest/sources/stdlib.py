"""``stdlib``: the text every CPython carries: ``pydoc_data.topics`` and the standard library's own sources."""

from __future__ import annotations

import io
import os
import sysconfig
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ingest.contract import SourceDocument
from ingest.sources.registry import SOURCES, file_bytes, file_hashes, seeded_order

_LEFT_OUT = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
)
_TOPICS = "pydoc_data/topics.py"  # the same text again: two splits must not share it


def _files() -> list[tuple[str, Path]]:
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for folder, below, names in os.walk(root):
        below[:] = set(below) - _LEFT_OUT  # installed packages are never walked
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted((str(path.relative_to(root)), path) for path in found)


@SOURCES.register("stdlib")
@dataclass(frozen=True, kw_only=True, slots=True)
class StandardLibrary:
    """Python's documentation topics and its library's sources without tests, in seeded order.

    Files are decoded as Python itself decodes them (PEP 263).
    """

    order_seed: int = 0
    """Documents come in the order of sha256("seed/name")."""

    def inputs(self) -> Mapping[str, str]:
        """Return the sha256 of every file."""
        return file_hashes(_files())

    def documents(self) -> Iterator[SourceDocument]:
        """Yield ``topics/<name>`` texts and source files."""
        from pydoc_data.topics import topics

        texts: dict[str, str | Path] = {f"topics/{name}": text for name, text in topics.items()}
        texts.update(item for item in _files() if item[0] != _TOPICS)
        names = list(texts)
        for index in seeded_order(names, self.order_seed):
            held = texts[names[index]]
            text = held if isinstance(held, str) else _source(names[index], held)
            if text:
                yield SourceDocument(name=names[index], text=text)


def _source(name: str, path: Path) -> str:
    data = file_bytes(name, path)
    encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    return data.decode(encoding).replace("\r\n", "\n")
