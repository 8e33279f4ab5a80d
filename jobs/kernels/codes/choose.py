"""Which form of each product a run uses: looked up from records, the same on every run of one kind of machine.

The choice is a function of shape, hardware class and the records shipped with the code, never of a clock. A run
keeps it by name, so that a resume goes on with the forms it began with, whatever is recorded by then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingest.models import hardware_class
from jobs.codes import CodeOps, Pattern
from jobs.errors import JobError
from jobs.kernels.codes.contract import FORMS, PRODUCTS, Shape
from jobs.kernels.codes.records import FOLDER, Record, record_of

if TYPE_CHECKING:
    from torch import Tensor

DEFAULTS: Mapping[str, Mapping[str, str]] = {
    "cpu": {"gather_sum": "bags", "scatter_sum": "bags", "dots": "sampled_rows"},
    "cuda": {"gather_sum": "bags", "scatter_sum": "bags", "dots": "bags"},
}
"""Forms where nothing was measured: on CPUs those that won on the one that was."""
DEFAULT_RIDGES: Mapping[str, float] = {"gather_sum": 16.0, "scatter_sum": 24.0, "dots": 20.0}
"""L/k from which hardware without a record takes the sparse forms: about twice the crossover with float32 products on
the slowest of the CPUs measured (Xeon with AMX, 4096 latents, width 384, November 2026: below 8, 10.7 and 9.2)."""
MARGIN = 1.25
"""Lead a sparse form must have over the dense one. At the crossover two measurements of one machine disagree: decoding at
L/k 2 was 1.06 times as fast in one run and 0.92 times in the next (1024 latents, width 384, November 2026)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """``CodeOps`` that takes each product from a form of its own."""

    gather: CodeOps
    scatter: CodeOps
    values: CodeOps

    def gather_sum(self, pattern: Pattern, value_N: Tensor, w_LD: Tensor) -> Tensor:
        """Return ``z_RL @ w_LD``, [R, D]."""
        return self.gather.gather_sum(pattern, value_N, w_LD)

    def scatter_sum(self, pattern: Pattern, value_N: Tensor, x_RD: Tensor) -> Tensor:
        """Return ``z_RL.T @ x_RD``, [L, D]."""
        return self.scatter.scatter_sum(pattern, value_N, x_RD)

    def dots(self, pattern: Pattern, x_RD: Tensor, w_LD: Tensor) -> Tensor:
        """Return ``(x_RD @ w_LD.T)[row, latent]``, [N]."""
        return self.values.dots(pattern, x_RD, w_LD)


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The forms of a run and where they come from; JSON both ways."""

    forms: Mapping[str, str]
    """Form of each product."""
    record: str | None = None
    """The record that decided, or None where no such hardware was measured."""
    hardware_class: str = ""
    shape: Mapping[str, int] = field(default_factory=dict)
    """rows, width, latents, pairs it was decided for."""
    predicted_seconds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Product to form to the time foretold at that shape."""

    def to_json(self) -> dict[str, Any]:
        """Return the choice as JSON values."""
        return {
            "forms": dict(self.forms),
            "record": self.record,
            "hardware_class": self.hardware_class,
            "shape": dict(self.shape),
            "predicted_seconds": {name: dict(of) for name, of in self.predicted_seconds.items()},
        }


def choose(
    shape: Shape, record: Record | None, *, rounding: str = "input", device: str = "cpu"
) -> Choice:
    """Return the form of each product that a record foretells to be the fastest at a shape.

    Parameters
    ----------
    rounding
        ``input`` allows forms that are as exact as the plain one; ``bfloat16`` those that round to it as well.
    """
    place = device.partition(":")[0]
    sizes = {name: getattr(shape, name) for name in shape.__slots__}
    if record is None:
        usual = DEFAULTS.get(place, DEFAULTS["cuda"])
        forms = {
            product: usual[product] if shape.ratio >= DEFAULT_RIDGES[product] else "dense"
            for product in PRODUCTS
        }
        return Choice(forms=forms, shape=sizes)
    foretold = {
        product: {
            form: record.predict(figures, shape)
            for form, figures in record.forms(product, rounding).items()
        }
        for product in PRODUCTS
    }
    best = {product: _fastest(of) for product, of in foretold.items()}
    return Choice(
        forms=best,
        record=record.name,
        hardware_class=record.hardware_class,
        shape=sizes,
        predicted_seconds=foretold,
    )


def _fastest(foretold: Mapping[str, float]) -> str:
    """Return the form foretold to be the fastest; the dense one unless another leads it by ``MARGIN``."""
    best = min(foretold, key=lambda form: foretold[form])
    return "dense" if foretold.get("dense", math.inf) < MARGIN * foretold[best] else best


def unmeasured(choice: Mapping[str, Any]) -> str:
    """Return what to say of a choice no record decided, empty where one did."""
    if choice.get("record") or not choice:
        return ""
    return (
        f"products of codes: no figures are recorded for {choice.get('hardware_class')}, so cautious defaults were "
        "taken; `actlake bench codes --record` measures this machine"
    )


def built(forms: Mapping[str, str]) -> Chosen:
    """Return the operations that forms by product name stand for.

    Raises
    ------
    JobError
        ``unknown-product`` where a product is missing or unknown.
    InvalidInputError
        ``unknown-name`` where no form has that name.
    """
    if set(forms) != set(PRODUCTS):
        raise JobError(
            f"forms of {', '.join(sorted(forms)) or 'nothing'} were given; a dictionary needs one of each of "
            f"{', '.join(PRODUCTS)}. Nothing was started. Name them all.",
            kind="unknown-product",
        )
    made = {product: FORMS.get(form)() for product, form in forms.items()}
    return Chosen(gather=made["gather_sum"], scatter=made["scatter_sum"], values=made["dots"])


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedOps:
    """What hands a training run its operations: by the record of the hardware it runs on."""

    folder: Path = FOLDER
    """Where records lie."""

    def choose(
        self, *, rows: int, width: int, latents: int, k: int, device: str = "cpu"
    ) -> dict[str, Any]:
        """Return the forms for batches of ``rows`` rows with k latents each, JSON values to be kept."""
        hardware = hardware_class(device)
        shape = Shape(rows=rows, width=width, latents=latents, pairs=rows * k)
        found = choose(shape, record_of(hardware, self.folder), device=device)
        return {**found.to_json(), "hardware_class": hardware}

    def build(self, choice: Mapping[str, Any]) -> CodeOps:
        """Return the operations of a choice that was kept; raises as ``built`` does."""
        return built(choice["forms"])
