"""``router_log``: scores of experts, of which some rise in one class of prompts and one is high in all.

Scores are N(0, 1); in rows of class 1 the planted experts have ``rise`` more, and one other expert has ``hot`` more everywhere:
whoever looks for experts of a class must find the first and not the second.

Own definition: the fixture F4 of the circuit specification.
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


@SOURCES.register("router_log")
@dataclass(frozen=True, kw_only=True)
class RouterLog:
    """Scores of experts, some of which rise in one class of rows and one everywhere; the rises are the planted codes."""

    experts: int = 16
    """Experts E."""
    planted: int = 2
    """Experts that rise in rows of class 1."""
    rise: float = 1.5
    """How far, in standard deviations of a score."""
    hot: float = 1.0
    """How much higher another expert's score is in all rows."""
    seed: int = 0
    """Root of the source's seeds."""

    def __post_init__(self) -> None:
        for name in ("rise", "hot"):
            object.__setattr__(self, name, float(getattr(self, name)))
        legal = 1 <= self.planted < self.experts and math.isfinite(self.rise + self.hot)
        if not legal or self.experts < 4:  # planted ones, the hot one, and one to compare with
            raise SourceError(
                f"scores of {self.experts} experts, {self.planted} of them planted, rising by {self.rise:g} and {self.hot:g} "
                "were asked for. Nothing was written. Give 4 experts or more, 1 to all but one of them planted.",
                kind="bad-source",
            )

    @property
    def columns(self) -> Mapping[str, str]:
        """One column ``router.logits``."""
        return {"router.logits": f"float32[{self.experts}]"}

    @functools.cached_property
    def order(self) -> Array:
        """Experts in random order: first the planted ones, then the one that is high everywhere."""
        rng = np.random.Generator(np.random.Philox(key=subseed(self.seed, "experts")))
        return np.argsort(rng.random(self.experts), kind="stable")

    def truth_codes(self, part: int, rows: int) -> tuple[Array, Array, Array]:
        """Return (row in part, expert, ``rise``) of class 1, every other row."""
        del part
        risen = np.sort(self.order[: self.planted])
        row = np.repeat(np.arange(1, rows, 2), self.planted)
        expert = np.tile(risen, len(row) // self.planted)
        return row, expert.astype(np.uint32), np.full(len(row), self.rise, np.float32)

    def block(self, part: int, rows: int) -> Mapping[str, Any]:
        """Return the scores of a part, ``float32[rows, E]``."""
        rng = np.random.Generator(np.random.Philox(key=subseed(self.seed, "scores", part)))
        scores_RE = rng.standard_normal((rows, self.experts), np.float32)
        scores_RE[:, self.order[self.planted]] += self.hot
        row, expert, value = self.truth_codes(part, rows)
        scores_RE[row, expert] += value
        return {"router.logits": scores_RE}

    def truth(self) -> Mapping[str, bytes]:
        """Return ``truth.safetensors`` with ``planted [planted]`` and ``hot [1]``, numbers of experts."""
        planted = np.sort(self.order[: self.planted]).astype(np.int64)
        hot = self.order[self.planted : self.planted + 1].astype(np.int64)
        return {"truth.safetensors": save({"planted": planted, "hot": hot})}
