"""Which source a corpus calls for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ingest.sources import SOURCES


def source_for(corpus: tuple[str, ...], *, seed: int | None) -> Any:
    """Return the source a corpus' endings call for; without a corpus, Python's own library."""
    if not corpus:
        return SOURCES.get("stdlib")(order_seed=seed or 0)
    endings = {Path(name).suffix.lower() for path in corpus for name in _files(Path(path))}
    for kind in ("jsonl", "parquet"):
        if endings == {f".{kind}"}:
            return SOURCES.get(kind)(paths=corpus)
    images = SOURCES.get("images")
    if endings and endings <= set(images.endings):
        return images(paths=corpus, order_seed=seed)
    return SOURCES.get("text")(paths=corpus, order_seed=seed)


def _files(path: Path) -> list[str]:
    """Return a file's own name, or those of all files below a folder."""
    return [p.name for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path.name]
