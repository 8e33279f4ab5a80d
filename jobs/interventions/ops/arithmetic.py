"""Operations that move what the model computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from jobs.interventions.contract import OPERATIONS, Needs

if TYPE_CHECKING:
    from torch import Tensor


@OPERATIONS.register("add")
@dataclass(frozen=True, kw_only=True, slots=True)
class Add:
    """``x ← x + alpha * values``."""

    kind: ClassVar[str]
    needs: ClassVar[Needs] = "site"
    alpha: float = 1.0
    """Factor on the values added."""

    def apply(self, x: Tensor, values: Tensor | None) -> Tensor:
        """Return x moved."""
        assert values is not None
        return x + self.alpha * values


@OPERATIONS.register("scale")
@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """``x ← factor * x``."""

    kind: ClassVar[str]
    needs: ClassVar[Needs] = None
    factor: float
    """0 is ``zero``, 1 changes nothing."""

    def apply(self, x: Tensor, values: Tensor | None) -> Tensor:
        """Return x scaled."""
        del values
        return self.factor * x
