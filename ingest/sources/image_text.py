"""``image_text``: JSON Lines of images with a text each, for models of both.

A model of two towers (CLIP) makes one row of a pair; one with images among its tokens (LLaVA) reads the text as a prompt, the
image where its token stands in it, else before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ingest.contract import Picture
from ingest.errors import SourceError
from ingest.sources.jsonl import records, unusable
from ingest.sources.registry import SOURCES, file_bytes, file_hashes, find_files

_FLAGS = "--source image_text:image_field=…,text_field=…"


@SOURCES.register("image_text")
@dataclass(frozen=True, kw_only=True, slots=True)
class ImageText:
    """JSON Lines of ``{"image": path, "text": …}``, paths taken from the file's own folder."""

    shows: ClassVar[str] = "pairs"

    paths: tuple[str, ...]
    """JSON Lines files, or folders of them."""
    image_field: str = "image"
    """Field of the image's path."""
    text_field: str = "text"
    """Field of the text."""
    too_long: str = "refuse"
    """``refuse`` or ``cut`` the text of a pair with more tokens than the model takes."""

    def __post_init__(self) -> None:
        if self.too_long not in {"refuse", "cut"}:
            raise SourceError(
                f"texts that are too long were to be treated by {self.too_long!r}; known: refuse, cut. Nothing was written. Mend "
                "too_long.",
                kind="bad-source",
            )

    def inputs(self) -> Mapping[str, str]:
        """Return the sha256 of every file and every image."""
        files = find_files(self.paths, (".jsonl",))
        images = {place: path for place, path, _ in self._lines()}
        return {**file_hashes(files), **file_hashes(list(images.items()))}

    def pictures(self) -> Iterator[Picture]:
        """Yield one picture with its text a line."""
        for place, path, text in self._lines():
            yield Picture(name=place, data=file_bytes(place, path), text=text)

    def _lines(self) -> Iterator[tuple[str, Path, str]]:
        some = False
        for name, file in find_files(self.paths, (".jsonl",)):
            for place, record in records((str(file),), [self.image_field, self.text_field]):
                place = f"{name}:{place.rpartition(':')[2]}"
                some = True
                yield place, self._path(place, file, record), self._text(place, record)
        if not some:
            raise SourceError(
                f"the corpus {', '.join(self.paths)} holds no image. Nothing was written. Check --corpus.",
                kind="corpus-empty",
            )

    def _path(self, place: str, file: Path, record: dict[str, Any]) -> Path:
        given = record[self.image_field]
        if not isinstance(given, str) or not given:
            raise unusable(place, f"its {self.image_field} is no path", _FLAGS)
        path = file.parent / given
        if not path.is_file():
            raise unusable(place, f"its {self.image_field} {given!r} is no file", _FLAGS)
        return path

    def _text(self, place: str, record: dict[str, Any]) -> str:
        text = record[self.text_field]
        if not isinstance(text, str) or not text.strip():
            raise unusable(place, f"its {self.text_field} is no text", _FLAGS)
        return text
