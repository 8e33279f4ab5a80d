"""An intervention: a site, which part of its value, and the operation done to that part.

An operation is a small frozen config with one pure function; where it puts things is the selector's
affair, so each new operation works at every site, on heads and on spans alike.

Dimensions: B examples, T positions, H heads, then the rest of the site's shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from jobs.errors import JobError
from store.registry import Registry

if TYPE_CHECKING:
    from ingest.models import ModelAdapter
    from ingest.models.metrics import Examples

OPERATIONS = Registry("operation", "jobs.interventions.ops")

Needs = Literal["site", "example"] | None
"""Values an operation takes: none, one for the site ``[*shape]``, or one per example ``[E, T, *shape]``."""


class Operation(Protocol):
    """A frozen config, filed in `OPERATIONS`."""

    kind: ClassVar[str]
    needs: ClassVar[Needs]

    def apply(self, x: Tensor, values: Tensor | None) -> Tensor:
        """Return what stands in the place of x ``[B, T, *shape]``; pure, x is not written to.

        ``values`` broadcast to x. The whole site comes in and the selection is cut out afterwards.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Intervention:
    """One operation on one part of one site, in every forward of a run."""

    site: str
    """Canonical name: ``blocks.4.attn.z``."""
    op: Operation
    """What is done."""
    heads: tuple[int, ...] = ()
    """Along the first axis of the site's shape; none stands for all."""
    span: tuple[int, int | None] | str = ""
    """Positions ``(start, stop)`` of every example (negative ones from its own last token on), or the name of a span of
    the examples; empty for all."""
    values: Tensor | None = None
    """What the operation needs (`Needs`)."""

    def check(self, adapter: ModelAdapter, examples: int) -> None:
        """Refuse what does not fit the model, before anything runs.

        Raises
        ------
        JobError
            ``bad-intervention``.
        SiteError
            ``unknown-site``.
        """
        adapter.listen(self.site, lambda _: None).remove()
        info = adapter.sites()[self.site]
        if not info.differentiable:
            what = "the model does not go on with it" if info.fixed else "it holds whole numbers"
            raise self._wrong(f"an edit at {self.site}", what)
        shape = info.shape
        if self.heads and (len(shape) < 2 or not all(0 <= h < shape[0] for h in self.heads)):
            raise self._wrong(
                f"heads {list(self.heads)}", f"each token's value has shape {list(shape)}"
            )
        wanted = self.op.needs
        got = None if self.values is None else tuple(self.values.shape)
        fits = {
            None: got is None,
            "site": got == shape,
            "example": got is not None and got[:1] == (examples,) and got[2:] == shape,
        }
        if not fits[wanted]:
            takes = {None: "none", "site": list(shape), "example": [examples, "T", *shape]}[wanted]
            raise self._wrong(
                f"{self.op.kind!r} with values {None if got is None else list(got)}",
                f"it takes {takes}",
            )

    def changed(self, value: Tensor, examples: Examples, rows: slice) -> Tensor:
        """Return the site's value ``[B, T, *shape]`` with the operation done to the selected part.

        ``rows`` says which of the run's examples these are.
        """
        values = self.values
        if values is not None:
            values = (values[rows] if self.op.needs == "example" else values).to(value)
            if self.op.needs == "example" and values.shape != value.shape:
                raise self._wrong(
                    f"{self.op.kind!r} with values of {values.shape[1]} positions",
                    f"these examples have {value.shape[1]}",
                )
        selected = self.selected(tuple(value.shape), examples)
        return torch.where(selected.to(value.device), self.op.apply(value, values), value)

    def selected(self, shape: tuple[int, ...], examples: Examples) -> Tensor:
        """Return which entries of a value are touched, bool, broadcastable to ``[B, T, *shape]``."""
        rest = len(shape) - 2
        if isinstance(self.span, str):
            where_BT = (
                examples.within(self.span) if self.span else torch.ones(shape[:2], dtype=torch.bool)
            )
        else:
            where_BT = _within(self.span, examples.mask[:, : shape[1]].bool())
        where = where_BT.reshape(*shape[:2], *[1] * rest)
        if not self.heads:
            return where
        heads_H = torch.zeros(shape[2], dtype=torch.bool)
        heads_H[list(self.heads)] = True
        return where.cpu() & heads_H.reshape(shape[2], *[1] * (rest - 1))

    def _wrong(self, asked: str, found: str) -> JobError:
        return JobError(
            f"an intervention at {self.site} asks for {asked}; {found}. Nothing was run. Mend the "
            "intervention.",
            kind="bad-intervention",
        )


def _within(span: tuple[int, int | None], mask_BT: Tensor) -> Tensor:
    """Return which tokens of each example lie in ``slice(*span)`` of its own tokens, bool ``[B, T]``."""
    rank_BT = mask_BT.cumsum(1) - 1  # number of a token within its example
    length_B1 = mask_BT.sum(1, keepdim=True)
    start, stop = span
    inside_BT = mask_BT & (rank_BT >= (start if start >= 0 else start + length_B1))
    if stop is None:
        return inside_BT
    return inside_BT & (rank_BT < (stop if stop >= 0 else stop + length_B1))


def operation(kind: str, **fields: Any) -> Any:
    """Return an operation by name: ``operation("scale", factor=0.5)``."""
    return OPERATIONS.parse({"kind": kind, **fields})
