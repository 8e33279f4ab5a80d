"""Rows on their way to a dictionary: a batch of them, and what columns they are made of.

Dimensions: R rows, D width read, E width rebuilt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Batch(NamedTuple):
    """Rows of one step, in raw units."""

    row_ids: Tensor
    """int64 [R]."""
    x: Tensor
    """What is read, float32 [R, D]: the input columns side by side."""
    y: Tensor | None = None
    """What is rebuilt, float32 [R, E]: the target columns side by side. None: ``x`` itself."""
    g: Tensor | None = None
    """Gradient of the summed loss by ``x``, float32 [R, D], where a variant asks for it."""

    @property
    def target(self) -> Tensor:
        """What is rebuilt, [R, E]."""
        return self.x if self.y is None else self.y


@dataclass(frozen=True, slots=True)
class Widths:
    """The columns a dictionary reads and rebuilds, by width; each has a scale of its own."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @classmethod
    def of(cls, width: int) -> Widths:
        """Return the widths of a dictionary that rebuilds the one column it reads."""
        return cls((width,), (width,))

    @property
    def width(self) -> int:
        """Values in a row that is read, D."""
        return sum(self.inputs)

    @property
    def out_width(self) -> int:
        """Values in a row that is rebuilt, E."""
        return sum(self.outputs)
