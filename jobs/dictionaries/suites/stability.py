"""A dictionary beside others of the same rows, as other seeds give."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from jobs.codebook import Codebook
from jobs.dictionaries.matching import mean_matched
from jobs.dictionaries.suite import SUITES, Asked, Figures
from jobs.errors import JobError


@SUITES.register("stability")
@dataclass(frozen=True, kw_only=True, slots=True)
class Stability:
    """Mean |cos| of the one-to-one matching of decoder rows with another dictionary's.

    ``stability`` is its mean over the others, ``stability_lowest`` the least.
    """

    kind: ClassVar[str]
    against: tuple[Codebook, ...] = ()
    """The other dictionaries."""

    def described(self) -> dict[str, Any]:
        """Return the hashes of the others."""
        return {"against": [other.sha for other in self.against]}

    def prepare(self, asked: Asked) -> Figures:
        """Return what computes the figures.

        Raises
        ------
        JobError
            ``nothing-to-compare``: there is no other; ``width-mismatch``: one is of another width.
        """
        if not self.against:
            raise JobError(
                "suite stability compares dictionaries of the same rows, and no other was named. Nothing was written. Name "
                "them: --against runs/results/train-….",
                kind="nothing-to-compare",
            )
        width = asked.book.out_width
        if others := [one.out_width for one in self.against if one.out_width != width]:
            raise JobError(
                f"dictionaries of widths {width} and {others[0]} were to be compared. Nothing was written. Name "
                "dictionaries of the same columns.",
                kind="width-mismatch",
            )
        return partial(_figures, asked.book, self.against)


def _figures(book: Codebook, against: tuple[Codebook, ...]) -> dict[str, float]:
    mine = book.W_dec_LD.numpy()
    found = [mean_matched(mine, other.W_dec_LD.numpy()) for other in against]
    return {"stability": float(np.mean(found)), "stability_lowest": min(found)}
