"""``images``: files or folders of images, one document each; rows are what a model with a vision tower makes of their patches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from ingest.contract import Picture
from ingest.sources.registry import SOURCES, file_bytes, file_hashes, find_files, seeded_order


@SOURCES.register("images")
@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """Image files, or all of them below folders; of moving ones the first picture."""

    shows: ClassVar[str] = "images"
    endings: ClassVar[tuple[str, ...]] = (
        *(".png", ".jpg", ".jpeg", ".webp"),
        *(".bmp", ".gif", ".tif", ".tiff"),
    )

    paths: tuple[str, ...]
    """Image files, or folders of them."""
    order_seed: int | None = None
    """Where set, images come in the order of sha256("seed/name"), else sorted by name."""

    def inputs(self) -> Mapping[str, str]:
        """Return the sha256 of every file."""
        return file_hashes(find_files(self.paths, self.endings))

    def pictures(self) -> Iterator[Picture]:
        """Yield one picture a file."""
        files = find_files(self.paths, self.endings)
        if self.order_seed is not None:
            order = seeded_order([name for name, _ in files], self.order_seed)
            files = [files[index] for index in order]
        for name, path in files:
            yield Picture(name=name, data=file_bytes(name, path), text=None)
