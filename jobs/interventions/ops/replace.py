"""Operations that put something else in the place of what the model computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from jobs.interventions.contract import OPERATIONS, Needs


@OPERATIONS.register("zero")
@dataclass(frozen=True, kw_only=True, slots=True)
class Zero:
    """``x ← 0``: far from anything the model has seen; read together with ``mean``."""

    kind: ClassVar[str]
    needs: ClassVar[Needs] = None

    def apply(self, x: Tensor, values: Tensor | None) -> Tensor:
        """Return zeros in the shape of x."""
        del values
        return torch.zeros_like(x)


@OPERATIONS.register("mean")
@dataclass(frozen=True, kw_only=True, slots=True)
class Mean:
    """``x ← mean``: values are one site's mean over data, the same at every position."""

    kind: ClassVar[str]
    needs: ClassVar[Needs] = "site"

    def apply(self, x: Tensor, values: Tensor | None) -> Tensor:
        """Return the mean in the shape of x."""
        assert values is not None
        return values.expand_as(x)


@OPERATIONS.register("patch")
@dataclass(frozen=True, kw_only=True, slots=True)
class Patch:
    """``x ← value of another run``, example by example and position by position.

    Values from the clean run into the corrupt one denoise, the other way round they noise; values of
    other examples (`values.roll(1, 0)`) resample.
    """

    kind: ClassVar[str]
    needs: ClassVar[Needs] = "example"

    def apply(self, x: Tensor, values: Tensor | None) -> Tensor:
        """Return the other run's values."""
        assert values is not None
        return values.expand_as(x)
