"""What ingest asks of its surroundings: sources of rows, a runtime to place workers, observers to show them to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceDocument:
    """A named text, as a source gives it."""

    name: str
    text: str


class TextSource(Protocol):
    """A frozen config that yields documents, the same ones in the same order every time."""

    kind: ClassVar[str]

    def inputs(self) -> Mapping[str, str]:
        """Return what identifies the input: file name → sha256."""

    def documents(self) -> Iterator[SourceDocument]:
        """Yield the documents in their order; ``SourceError`` where one cannot be read."""


class VectorSource(Protocol):
    """A frozen config that yields rows of numbers instead of text, part by part."""

    kind: ClassVar[str]

    @property
    def columns(self) -> Mapping[str, str]:
        """Column declarations, ``{"x": "float32[64]"}``."""

    def block(self, part: int, rows: int) -> Mapping[str, Any]:
        """Return a part's rows: arrays for dense columns, a function of (config, part) alone."""

    def truth(self) -> Mapping[str, bytes]:
        """Return the files that hold the planted truth."""

    def truth_codes(self, part: int, rows: int) -> tuple[Array, Array, Array]:
        """Return the planted (row in part, feature, value) of a part."""


class Worker(Protocol):
    """A plain class a runtime may place anywhere; it writes its own rows and returns a small record."""

    def run(self, part: int) -> Any:
        """Do one part (doing it again is no error) and return something small."""

    def close(self) -> None:
        """Finish what the worker holds open."""


class Runtime(Protocol):
    """Places workers and hands them parts."""

    def map(
        self, make_worker: Callable[[], Worker], parts: Sequence[int]
    ) -> Iterator[tuple[int, Any]]:
        """Yield (part, what its worker returned) as parts are done, in any order."""


class Observer(Protocol):
    """Sees every captured batch while it is in memory; live statistics satisfy this."""

    def observe(self, row_ids: Array, sites: Mapping[str, Any]) -> None:
        """Look at a batch: row ids ``int64[R]`` and, per site, a tensor ``[R, *shape]``."""
