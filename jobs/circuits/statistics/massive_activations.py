"""``massive_activations``: the few scalars of the residual stream that are thousands of times larger than the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from jobs.circuits.accumulators import LogHistogram, TopK, bin_bounds
from jobs.circuits.contract import STATISTICS, Array, ModelFacts, SequenceBlock, State, Table
from jobs.errors import JobError

_KEY = ("row", "dim", "token_id", "pos", "negative")


@STATISTICS.register("massive_activations")
@dataclass(frozen=True, kw_only=True, slots=True)
class MassiveActivations:
    """Where ``|a| > absolute`` and ``|a| >= ratio * median`` in what leaves each block.

    The median is that of ``|h|`` over all features of all tokens of one sequence (of two middle values the lower), as
    in the source, so a hit needs no second look once the whole is known; it is exact. A magnitude of 0 is no hit.
    The table's median over all sequences is one of a histogram, within 0.8 %. Small models never reach 100:
    ``ratio_hits`` leaves the absolute condition out, and ``top1_over_median`` is the figure to compare across sizes.
    Rows are all the tokens, special ones too.

    Source: Sun, Chen, Kolter, Liu, "Massive Activations in Large Language Models" (arXiv 2402.17762), section 2; they
    average the top values of ten sequences, here every sequence counts and the greatest of all are kept.
    """

    version: ClassVar[int] = 2

    absolute: float = 100.0
    """Least magnitude of a hit, exclusive; at least 0."""
    ratio: float = 1000.0
    """Least multiple of the sequence's median magnitude, inclusive; above 0."""
    top: int = 3
    """Greatest magnitudes kept of each layer, 1 to 1000."""
    layers: tuple[int, ...] = ()
    """Blocks to look at; empty for all."""

    def __post_init__(self) -> None:
        if not (self.absolute >= 0 and self.ratio > 0 and 1 <= self.top <= 1000):
            raise JobError(
                f"massive_activations was asked with absolute={self.absolute}, ratio={self.ratio}, "
                f"top={self.top}; they are at least 0, above 0, and 1 to 1000. Nothing was started.",
                kind="bad-number",
            )

    def requires(self, model: ModelFacts) -> tuple[str, ...]:
        """Return ``resid_post`` of the blocks."""
        return tuple(f"blocks.{layer}.resid_post" for layer in model.blocks(self.layers))

    def empty(self, model: ModelFacts) -> MassivePartial:
        """Return the partial of no rows."""
        sites = self.requires(model)
        widths = {int(np.prod(model.shape(site))) for site in sites} or {0}
        layers = len(sites)
        return MassivePartial(
            config=self,
            layers=model.blocks(self.layers),
            rows=0,
            histogram=LogHistogram.empty(layers),
            top=TopK.empty(layers, self.top, len(_KEY)),
            hits=np.zeros((layers, max(widths)), np.int64),
            ratio_hits=np.zeros((layers, max(widths)), np.int64),
        )

    def from_state(self, model: ModelFacts, state: State) -> MassivePartial:
        """Undo ``MassivePartial.state``."""
        return MassivePartial(
            config=self,
            layers=model.blocks(self.layers),
            rows=int(state["rows"][0]),
            histogram=LogHistogram.restore(state, "histogram."),
            top=TopK.restore(state, "top."),
            hits=state["hits"].copy(),
            ratio_hits=state["ratio_hits"].copy(),
        )


@dataclass(kw_only=True)
class MassivePartial:
    """Magnitudes of some sequences: histogram, greatest, and hits by feature, of every layer."""

    config: MassiveActivations
    layers: tuple[int, ...]
    rows: int
    histogram: LogHistogram
    top: TopK
    hits: Array
    """``int64[layers, D]``."""
    ratio_hits: Array
    """``int64[layers, D]``: hits were the absolute condition left out."""

    def update(self, block: SequenceBlock) -> None:
        """Take in a block, sequence by sequence."""
        self.rows += len(block.row_ids)
        for lane, layer in enumerate(self.layers):
            values = block.sites[f"blocks.{layer}.resid_post"].float().numpy()
            values_RD = values.reshape(len(values), -1)
            magnitudes_RD = np.abs(values_RD)
            self._keep_top(lane, block, values_RD, magnitudes_RD)
            for low, high in zip(block.bounds[:-1], block.bounds[1:], strict=True):
                self._count(lane, magnitudes_RD[low:high])

    def _keep_top(
        self, lane: int, block: SequenceBlock, values_RD: Array, magnitudes_RD: Array
    ) -> None:
        flat = np.where(np.isfinite(magnitudes_RD), magnitudes_RD, np.nan).reshape(-1)
        at = self.top.candidates(lane, flat)
        row, dim = np.divmod(at, magnitudes_RD.shape[1])
        tokens = block.tokens
        key = [block.row_ids[row], dim, tokens["token_id"][row], tokens["pos"][row]]
        key.append(values_RD[row, dim] < 0)
        self.top.update(lane, flat[at], np.stack(key, axis=1).astype(np.int64))

    def _count(self, lane: int, magnitudes_TD: Array) -> None:
        """Count one sequence; the exact median is found only where the histogram's bin leaves a hit open."""
        low, high = bin_bounds(self.histogram.update(lane, magnitudes_TD), 0.5)
        large = (magnitudes_TD >= self.config.ratio * low) & (magnitudes_TD > 0)
        row, dim = np.nonzero(
            large & np.isfinite(magnitudes_TD)
        )  # an infinity is damage, not a size
        found = magnitudes_TD[row, dim].astype(np.float64)
        if len(found) and found.min() < self.config.ratio * high:
            hit = found >= self.config.ratio * lower_median(magnitudes_TD)
            dim, found = dim[hit], found[hit]
        np.add.at(self.ratio_hits[lane], dim, 1)
        np.add.at(self.hits[lane], dim[found > self.config.absolute], 1)

    def merge(self, other: Self) -> Self:
        """Return the partial of both."""
        return type(self)(
            config=self.config,
            layers=self.layers,
            rows=self.rows + other.rows,
            histogram=self.histogram.merge(other.histogram),
            top=self.top.merge(other.top),
            hits=self.hits + other.hits,
            ratio_hits=self.ratio_hits + other.ratio_hits,
        )

    def state(self) -> State:
        """Return the arrays."""
        return {
            "rows": np.array([self.rows], np.int64),
            "hits": self.hits,
            "ratio_hits": self.ratio_hits,
            **self.histogram.state("histogram."),
            **self.top.state("top."),
        }

    def finalize(self) -> dict[str, Table]:
        """Return ``layers``, ``top`` (a row a kept magnitude) and ``dims`` (features with a hit of either kind)."""
        median = self.histogram.quantile(0.5)
        first = np.where(np.isfinite(self.top.values[:, 0]), self.top.values[:, 0], np.nan)
        layer = np.array(self.layers, np.int64)
        with np.errstate(divide="ignore", invalid="ignore"):
            over = first / median
        lane, rank = np.nonzero(np.isfinite(self.top.values))
        keys = self.top.keys[lane, rank]
        held, dim = np.nonzero(self.hits + self.ratio_hits)
        return {
            "layers": {
                "layer": layer,
                "rows": np.full(len(layer), self.rows, np.int64),
                "median": median,
                "top1": first,
                "top1_over_median": over,
                "hits": self.hits.sum(axis=1),
                "ratio_hits": self.ratio_hits.sum(axis=1),
            },
            "top": {
                "layer": layer[lane],
                "rank": rank.astype(np.int64),
                "value": self.top.values[lane, rank] * (1 - 2 * keys[:, 4]),
                **{name: keys[:, at] for at, name in enumerate(_KEY[:4])},
            },
            "dims": {
                "layer": layer[held],
                "dim": dim.astype(np.int64),
                "hits": self.hits[held, dim],
                "ratio_hits": self.ratio_hits[held, dim],
            },
        }


def lower_median(magnitudes: Array) -> float:
    """Return the median of the finite values, of two middle ones the lower, as ``torch.median`` does."""
    finite = magnitudes[np.isfinite(magnitudes)]
    middle = (len(finite) - 1) // 2
    return float(np.partition(finite, middle)[middle])
