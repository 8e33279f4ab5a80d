"""``directions``: rows of noise, half of them moved along one direction: how far they can be told apart is known.

``h = y · delta · u + ε``, ``ε ~ N(0, I_D)``, u a unit vector, y 0 or 1 by a fair coin. The best any score can do is an area under
the curve of Φ(delta / √2), and u · h does it.

Own definition: the fixture F6 of the circuit specification.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors.numpy import save

from ingest.errors import SourceError
from ingest.sources.registry import SOURCES
from store.schema import subseed

Array = np.ndarray[Any, np.dtype[Any]]


@SOURCES.register("directions")
@dataclass(frozen=True, kw_only=True)
class Directions:
    """Gaussian rows, half of them moved along one planted direction; the labels are the planted codes."""

    width: int = 64
    """Width D of a row."""
    delta: float = 2.0
    """How far the moved half lies, in standard deviations."""
    seed: int = 0
    """Root of the source's seeds."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "delta", float(self.delta))
        if self.width < 1 or not 0 < self.delta < math.inf:
            raise SourceError(
                f"rows of width {self.width} moved by {self.delta:g} were asked for. Nothing was written. Give positive numbers.",
                kind="bad-source",
            )

    @property
    def columns(self) -> Mapping[str, str]:
        """One column ``x``."""
        return {"x": f"float32[{self.width}]"}

    @functools.cached_property
    def direction(self) -> Array:
        """The planted unit vector, ``float32[D]``."""
        rng = np.random.Generator(np.random.Philox(key=subseed(self.seed, "direction")))
        raw_D = rng.standard_normal(self.width)
        return np.asarray(raw_D / np.linalg.norm(raw_D), np.float32)

    def truth_codes(self, part: int, rows: int) -> tuple[Array, Array, Array]:
        """Return (row in part, 0, ``delta``) of the moved rows."""
        rng = np.random.Generator(np.random.Philox(key=subseed(self.seed, "labels", part)))
        (row,) = np.nonzero(rng.random(rows) < 0.5)
        return row, np.zeros(len(row), np.uint32), np.full(len(row), self.delta, np.float32)

    def block(self, part: int, rows: int) -> Mapping[str, Any]:
        """Return ``x`` of a part, ``float32[rows, D]``."""
        rng = np.random.Generator(np.random.Philox(key=subseed(self.seed, "noise", part)))
        x_RD = rng.standard_normal((rows, self.width), np.float32)
        row, _, value = self.truth_codes(part, rows)
        x_RD[row] += value[:, None] * self.direction
        return {"x": x_RD}

    def truth(self) -> Mapping[str, bytes]:
        """Return ``truth.safetensors`` with ``features [1, D]``."""
        return {"truth.safetensors": save({"features": self.direction[None]})}
