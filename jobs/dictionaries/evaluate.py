"""How well a dictionary reconstructs rows, and how it uses its latents.

Sums are float64 and counts integers, so partial results of any split of the rows add up to the whole; one
pass, no row is kept. Rows of special tokens and massive rows are left out of every figure but one: the
fraction of variance unexplained with them is reported beside.

Dimensions: R rows, D width, L latents, T positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.codebook import Codebook
from jobs.codes import Codes
from store.errors import InvalidInputError

if TYPE_CHECKING:
    from jobs.dictionaries.training_mode import TrainingMode

MASSIVE_TIMES = 10.0
"""A row is massive where its norm is more than so many times the median."""
DENSE_SHARE = 0.1
"""A latent is dense where it fires in more than this share of rows."""
PERCENTS = (5, 50, 95)

Array = NDArray[Any]
Block = Sequence[Any]
"""``(rows [R, D], positions [R])``, or with a mask of special rows [R], or with that and the targets [R, E]."""


class Coder(Protocol):
    """Anything with codes: a frozen dictionary, or a live one in training mode."""

    @property
    def latents(self) -> int:
        """Number of latents."""
        ...

    def encode(self, x_RD: Tensor) -> Codes:
        """Return the codes of rows."""
        ...

    def decode(self, codes: Codes, rows: int, x_RD: Tensor | None = None) -> Tensor:
        """Return what codes stand for; ``x_RD`` are the rows that were encoded."""
        ...


@dataclass
class Sums:
    """Sums over rows from which every reconstruction figure follows, mergeable."""

    rows: int
    x: Array
    """Σ x, float64 [D]."""
    x_square: float = 0.0
    error_square: float = 0.0
    x_dot_hat: float = 0.0
    hat_square: float = 0.0

    def add(self, x_RD: Array, hat_RD: Array) -> None:
        """Add float64 rows and their reconstructions."""
        self.rows += len(x_RD)
        self.x += x_RD.sum(axis=0)
        self.x_square += float(np.square(x_RD).sum())
        self.error_square += float(np.square(x_RD - hat_RD).sum())
        self.x_dot_hat += float((x_RD * hat_RD).sum())
        self.hat_square += float(np.square(hat_RD).sum())

    def fvu(self, mean_D: Array | None) -> float:
        """Return ``Σ‖x − x̂‖² / Σ‖x − μ‖²``; μ is the mean of the rows summed, or the one given."""
        mean = self.x / max(self.rows, 1) if mean_D is None else mean_D
        spread = self.x_square - 2 * float(mean @ self.x) + self.rows * float(mean @ mean)
        return self.error_square / spread if spread > 0 else float("nan")


@dataclass
class EvalPartial:
    """What a share of the rows adds to an evaluation; ``merge`` in a fixed order repeats bit for bit.

    Two orders of merging agree in counts exactly and in float64 sums to about 1e-12.
    """

    latents: int
    kept: Sums
    """Rows that count."""
    everything: Sums
    """All rows, special and massive ones included."""
    fired: Array
    """Rows in which each latent fires, int64 [L]."""
    l0_rows: Array
    """Rows with 0, 1, 2, … active latents, int64."""
    position_rows: Array
    """Rows at each position, int64 [T]; T grows with the positions seen."""
    position_error: Array
    """Σ‖x − x̂‖² by position, float64 [T]."""
    position_square: Array
    """Σ‖x‖² by position, float64 [T]."""
    position_x: Array
    """Σ x by position, float64 [T, D]."""
    cosine: float = 0.0
    """Σ cos(x, x̂) over kept rows."""
    shrinkage: float = 0.0
    """Σ ‖x̂‖/‖x‖ over kept rows."""
    norm_in: float = 0.0
    """Σ ‖x‖ over kept rows."""
    norm_out: float = 0.0
    """Σ ‖x̂‖ over kept rows."""
    code: float = 0.0
    """Σ of the codes of kept rows."""
    explained: float = 0.0
    """Σ over kept rows of 1 − ‖x − x̂‖²/‖x − m‖², m the mean of the block."""
    special_rows: int = 0
    massive_rows: int = 0

    @classmethod
    def empty(cls, latents: int, width: int) -> EvalPartial:
        """Return the identity of ``merge``."""
        count, none = np.zeros(latents, np.int64), np.zeros(0)
        return cls(
            latents=latents,
            kept=Sums(0, np.zeros(width)),
            everything=Sums(0, np.zeros(width)),
            fired=count,
            l0_rows=np.zeros(0, np.int64),
            position_rows=np.zeros(0, np.int64),
            position_error=none,
            position_square=none,
            position_x=np.zeros((0, width)),
        )

    def update(self, coder: Coder, block: Block, *, massive_norm: float = np.inf) -> None:
        """Add one block: ``(x [R, D], positions [R])``, with ``special [R]``, with ``target [R, E]``."""
        rows = torch.as_tensor(block[0]).float()
        codes = coder.encode(rows)
        target = rows if len(block) < 4 else torch.as_tensor(block[3]).float()
        x_RD = target.double().cpu().numpy()
        hat_RD = coder.decode(codes, len(rows), rows).double().cpu().numpy()
        norm_R = np.linalg.norm(x_RD, axis=1)
        none_R = np.zeros(len(rows), bool)
        special_R = none_R if len(block) < 3 or block[2] is None else np.asarray(block[2], bool)
        massive_R = (norm_R > massive_norm) & ~special_R
        keep_R = ~(special_R | massive_R)
        self.special_rows += int(special_R.sum())
        self.massive_rows += int(massive_R.sum())
        self.everything.add(x_RD, hat_RD)
        self.kept.add(x_RD[keep_R], hat_RD[keep_R])
        self._add_codes(codes, keep_R)
        self._add_directions(x_RD[keep_R], hat_RD[keep_R], norm_R[keep_R])
        self._add_positions(x_RD[keep_R], hat_RD[keep_R], np.asarray(block[1])[keep_R])

    def _add_codes(self, codes: Codes, keep_R: Array) -> None:
        kept_N = keep_R[codes.row_index]
        self.fired += np.bincount(codes.latent[kept_N], minlength=self.latents)
        self.code += float(codes.value[kept_N].sum(dtype=np.float64))
        l0_R = np.bincount(codes.row_index, minlength=len(keep_R))[keep_R]
        self.l0_rows = _padded_sum(self.l0_rows, np.bincount(l0_R))

    def _add_directions(self, x_RD: Array, hat_RD: Array, norm_R: Array) -> None:
        hat_norm_R = np.linalg.norm(hat_RD, axis=1)
        dot_R = (x_RD * hat_RD).sum(axis=1)
        product_R = norm_R * hat_norm_R
        self.norm_in += float(norm_R.sum())
        self.norm_out += float(hat_norm_R.sum())
        if len(x_RD):
            error_R = np.square(x_RD - hat_RD).sum(axis=1)
            spread_R = np.square(x_RD - x_RD.mean(axis=0)).sum(axis=1)
            ones = np.ones_like(error_R)
            self.explained += float(
                (1 - np.divide(error_R, spread_R, where=spread_R > 0, out=ones)).sum()
            )
        self.cosine += float(np.divide(dot_R, product_R, where=product_R > 0, out=dot_R * 0).sum())
        self.shrinkage += float(
            np.divide(hat_norm_R, norm_R, where=norm_R > 0, out=dot_R * 0).sum()
        )

    def _add_positions(self, x_RD: Array, hat_RD: Array, position_R: Array) -> None:
        used, index_R = np.unique(position_R, return_inverse=True)
        length = int(used[-1]) + 1 if len(used) else 0
        by_position = np.zeros((length, x_RD.shape[1]))
        sums = np.zeros((len(used), x_RD.shape[1]))
        torch.from_numpy(sums).index_add_(0, torch.from_numpy(index_R), torch.from_numpy(x_RD))
        by_position[used] = sums
        error_R, square_R = np.square(x_RD - hat_RD).sum(axis=1), np.square(x_RD).sum(axis=1)
        count = np.bincount(position_R, minlength=length)
        error = np.bincount(position_R, weights=error_R, minlength=length)
        square = np.bincount(position_R, weights=square_R, minlength=length)
        self.position_rows = _padded_sum(self.position_rows, count)
        self.position_error = _padded_sum(self.position_error, error)
        self.position_square = _padded_sum(self.position_square, square)
        self.position_x = _padded_sum(self.position_x, by_position)

    def merge(self, other: EvalPartial) -> EvalPartial:
        """Return the partial of both shares together."""
        mine, theirs = _state(self), _state(other)
        merged = {name: _merged(mine[name], theirs[name]) for name in mine if name != "latents"}
        return EvalPartial(latents=self.latents, **merged)

    def finalize(self, mean_D: Array | None = None) -> EvalResult:
        """Return the figures; ``mean_D`` replaces the mean of the kept rows."""
        kept, rows = self.kept, max(self.kept.rows, 1)
        mean = kept.x / rows if mean_D is None else np.asarray(mean_D, np.float64)
        spread = (
            self.position_square - 2 * self.position_x @ mean + self.position_rows * (mean @ mean)
        )
        nothing = np.full(len(spread), np.nan)
        everything = self.everything.rows
        return EvalResult(
            rows=kept.rows,
            fvu=kept.fvu(mean),
            fvu_all_rows=self.everything.fvu(mean_D),
            l0=float(self.fired.sum() / rows),
            l0_percentiles=_percentiles(self.l0_rows),
            dead=int((self.fired == 0).sum()),
            dense=int((self.fired > DENSE_SHARE * rows).sum()),
            cosine=self.cosine / rows,
            shrinkage=self.shrinkage / rows,
            relative_bias=kept.x_dot_hat / kept.hat_square if kept.hat_square > 0 else float("nan"),
            l1=self.code / rows,
            mse=kept.error_square / rows / max(len(kept.x), 1),
            row_explained=self.explained / rows,
            norm_in=self.norm_in / rows,
            norm_out=self.norm_out / rows,
            special_share=self.special_rows / max(everything, 1),
            massive_share=self.massive_rows / max(everything, 1),
            fired=self.fired.copy(),
            position_rows=self.position_rows.copy(),
            position_error=np.divide(self.position_error, spread, where=spread > 0, out=nothing),
        )


@dataclass(frozen=True)
class EvalResult:
    """An evaluation's figures, over rows that are neither special nor massive unless it says otherwise."""

    rows: int
    fvu: float
    """``Σ‖x − x̂‖² / Σ‖x − μ‖²`` with the mean μ of the evaluated rows."""
    fvu_all_rows: float
    """The same with special and massive rows."""
    l0: float
    """Mean active latents of a row."""
    l0_percentiles: dict[str, int]
    """Active latents at p5, p50 and p95 of the rows."""
    dead: int
    """Latents that fire in none of the rows."""
    dense: int
    """Latents that fire in more than a tenth of the rows."""
    cosine: float
    """Mean cosine of x and x̂."""
    shrinkage: float
    """Mean ‖x̂‖/‖x‖."""
    relative_bias: float
    """The factor α that makes ``Σ‖x − α x̂‖²`` least; 1 where lengths are right."""
    l1: float
    """Mean sum of a row's codes."""
    mse: float
    """Mean squared error of a value."""
    row_explained: float
    """Mean over rows of ``1 − ‖x − x̂‖²/‖x − m‖²``, m the mean of their block: what some call explained variance; ruled by rows
    near the mean. Use ``fvu``."""
    norm_in: float
    """Mean ‖x‖."""
    norm_out: float
    """Mean ‖x̂‖."""
    special_share: float
    massive_share: float
    fired: Array = field(repr=False)
    """Rows in which each latent fires, int64 [L]."""
    position_rows: Array = field(repr=False)
    """Rows at each position, int64 [T]."""
    position_error: Array = field(repr=False)
    """Error at each position over the spread about μ there, float64 [T]; NaN without rows."""

    def to_json(self) -> dict[str, Any]:
        """Return the figures that are not arrays."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: v for name, v in values.items() if not isinstance(v, np.ndarray)}


def evaluate(
    coder: Codebook | TrainingMode,
    blocks: Iterable[Block],
    mean: Array | None = None,
    *,
    massive_norm: float | None = None,
    progress: Callable[[int], None] | None = None,
) -> EvalResult:
    """Evaluate a dictionary on blocks of rows, one pass.

    Parameters
    ----------
    coder
        A frozen dictionary, or ``TrainingMode(learner)`` for the sparsifier's own choice.
    blocks
        ``(rows [R, D], positions [R])`` or ``(rows, positions, special [R])``, arrays or tensors.
    mean
        μ, [D]; None: the mean of the rows that count.
    massive_norm
        Rows longer than this are massive; None: ten times the median norm the dictionary was trained
        with or, where it does not say, of the first block.
    progress
        Called with the rows done after each block.

    Raises
    ------
    InvalidInputError
        ``no-rows`` where no row counts; ``width-mismatch``.
    """
    partial: EvalPartial | None = None
    for block in blocks:
        rows = torch.as_tensor(block[0])
        if partial is None:
            target = rows if len(block) < 4 else torch.as_tensor(block[3])
            partial = EvalPartial.empty(coder.latents, target.shape[1])
            massive_norm = massive_norm_of(coder, rows) if massive_norm is None else massive_norm
        assert massive_norm is not None
        partial.update(coder, block, massive_norm=massive_norm)
        if progress is not None:
            progress(partial.everything.rows)
    return finalize(partial, mean)


def finalize(partial: EvalPartial | None, mean: Array | None = None) -> EvalResult:
    """Return the figures of a merged whole.

    Raises
    ------
    InvalidInputError
        ``no-rows`` where no row counts.
    """
    if partial is None or partial.kept.rows == 0:
        found = 0 if partial is None else partial.everything.rows
        raise InvalidInputError(
            f"an evaluation was asked for on {found} rows, of which none is neither special nor massive."
            " Nothing was computed. Give rows of ordinary tokens.",
            kind="no-rows",
        )
    return partial.finalize(mean)


def massive_norm_of(coder: Codebook | TrainingMode, rows: Tensor) -> float:
    """Return the norm above which rows are massive: ten times the training rows' median, or these rows'."""
    stated = coder.meta.get("median_norm") if isinstance(coder, Codebook) else None
    median = float(rows.float().norm(dim=1).median()) if stated is None else float(stated)
    return MASSIVE_TIMES * median


def _state(thing: Any) -> dict[str, Any]:
    return {item.name: getattr(thing, item.name) for item in fields(thing)}


def _merged(one: Any, other: Any) -> Any:
    if isinstance(one, Sums):
        mine, theirs = _state(one), _state(other)
        return Sums(**{name: _merged(mine[name], theirs[name]) for name in mine})
    return _padded_sum(one, other) if isinstance(one, np.ndarray) else one + other


def _padded_sum(one: Array, other: Array) -> Array:
    longer, shorter = (one, other) if len(one) >= len(other) else (other, one)
    total = longer.copy()
    total[: len(shorter)] += shorter
    return total


def _percentiles(histogram: Array) -> dict[str, int]:
    """Return, for each percentage, the least count that at least so many rows do not exceed."""
    reached = np.cumsum(histogram)
    total = int(reached[-1]) if len(reached) else 0
    return {f"p{p}": int(np.searchsorted(reached, total * p / 100)) for p in PERCENTS}
