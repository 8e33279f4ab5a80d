"""``moments``: mean, variance and extremes of every feature of a site, and the sizes of its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from jobs.circuits.accumulators import MinMax, Moments, float64_rows
from jobs.circuits.contract import STATISTICS, Array, ModelFacts, SequenceBlock, State, Table


@STATISTICS.register("moments")
@dataclass(frozen=True, kw_only=True, slots=True)
class SiteMoments:
    """Per feature mean, variance (divided by the count), least and greatest value; per row the RMS.

    RMS of a row x of D features: ``sqrt(sum x² / D)``, as in RMSNorm; of a per-head site, over all heads together.
    Rows are all the tokens, special ones too. Accumulated in float64 whatever is stored.

    Source: variances after Chan, Golub, LeVeque (1979); RMS after Zhang, Sennrich, "Root Mean Square Layer
    Normalization" (arXiv 1910.07467), equation 4, without its epsilon.
    """

    version: ClassVar[int] = 1

    sites: tuple[str, ...] = ()
    """Sites to look at; empty for every one the store holds."""

    def requires(self, model: ModelFacts) -> tuple[str, ...]:
        """Return the sites; where none are named, what leaves each block."""
        every = tuple(f"blocks.{layer}.resid_post" for layer in range(model.layers))
        return self.sites or every

    def empty(self, model: ModelFacts) -> MomentsPartial:
        """Return the partial of no rows."""
        shapes = {site: model.shape(site) for site in self.requires(model)}
        return MomentsPartial(
            sites={
                site: SitePartial(
                    features=Moments.empty(shape),
                    extremes=MinMax.empty(shape),
                    rms=Moments.empty(()),
                    rms_extremes=MinMax.empty(()),
                )
                for site, shape in shapes.items()
            }
        )

    def from_state(self, model: ModelFacts, state: State) -> MomentsPartial:
        """Undo ``MomentsPartial.state``."""
        return MomentsPartial(
            sites={site: SitePartial.restore(state, f"{site}/") for site in self.requires(model)}
        )


@dataclass(kw_only=True)
class SitePartial:
    """One site's accumulators."""

    features: Moments
    extremes: MinMax
    rms: Moments
    rms_extremes: MinMax

    def update(self, x_R: Array) -> None:
        """Take in rows, ``float64[R, *shape]``."""
        self.features.update(x_R)
        self.extremes.update(x_R)
        flat = x_R.reshape(len(x_R), -1)
        rms_R = np.sqrt(np.einsum("rd,rd->r", flat, flat) / max(1, flat.shape[1]))
        self.rms.update(rms_R)
        self.rms_extremes.update(rms_R)

    def merge(self, other: Self) -> Self:
        """Return the accumulators of both."""
        return type(self)(
            features=self.features.merge(other.features),
            extremes=self.extremes.merge(other.extremes),
            rms=self.rms.merge(other.rms),
            rms_extremes=self.rms_extremes.merge(other.rms_extremes),
        )

    def state(self, prefix: str) -> State:
        """Return the arrays, their names begun with ``prefix``."""
        return {
            **self.features.state(f"{prefix}features."),
            **self.extremes.state(f"{prefix}extremes."),
            **self.rms.state(f"{prefix}rms."),
            **self.rms_extremes.state(f"{prefix}rms_extremes."),
        }

    @classmethod
    def restore(cls, state: State, prefix: str) -> Self:
        """Undo ``state``."""
        return cls(
            features=Moments.restore(state, f"{prefix}features."),
            extremes=MinMax.restore(state, f"{prefix}extremes."),
            rms=Moments.restore(state, f"{prefix}rms."),
            rms_extremes=MinMax.restore(state, f"{prefix}rms_extremes."),
        )


@dataclass(kw_only=True)
class MomentsPartial:
    """The moments of some rows."""

    sites: dict[str, SitePartial]

    def update(self, block: SequenceBlock) -> None:
        """Take in a block."""
        for site, partial in self.sites.items():
            partial.update(float64_rows(block.sites[site]))

    def merge(self, other: Self) -> Self:
        """Return the moments of both."""
        return type(self)(
            sites={site: partial.merge(other.sites[site]) for site, partial in self.sites.items()}
        )

    def state(self) -> State:
        """Return the arrays, named ``<site>/<what>``."""
        found: State = {}
        for site, partial in self.sites.items():
            found |= partial.state(f"{site}/")
        return found

    def finalize(self) -> dict[str, Table]:
        """Return ``sites`` (a row a site) and ``features`` (a row a feature; per-head sites flattened)."""
        held = list(self.sites.values())
        sizes = [partial.features.mean.size for partial in held]
        variances = [partial.features.variance.reshape(-1) for partial in held]
        sites = {
            "site": list(self.sites),
            "rows": np.array([partial.features.count for partial in held], np.int64),
            "features": np.array(sizes, np.int64),
            "mean": np.array([partial.features.mean.mean() for partial in held]),
            "std": np.array([float(np.sqrt(variance.mean())) for variance in variances]),
            "minimum": np.array([partial.extremes.low.min() for partial in held]),
            "maximum": np.array([partial.extremes.high.max() for partial in held]),
            "rms_mean": np.array([float(partial.rms.mean) for partial in held]),
            "rms_std": np.array([float(np.sqrt(partial.rms.variance)) for partial in held]),
            "rms_minimum": np.array([float(partial.rms_extremes.low) for partial in held]),
            "rms_maximum": np.array([float(partial.rms_extremes.high) for partial in held]),
        }
        features = {
            "site": [s for s, size in zip(self.sites, sizes, strict=True) for _ in range(size)],
            "feature": np.concatenate([np.arange(size) for size in sizes]),
            "mean": np.concatenate([partial.features.mean.reshape(-1) for partial in held]),
            "variance": np.concatenate(variances),
            "minimum": np.concatenate([partial.extremes.low.reshape(-1) for partial in held]),
            "maximum": np.concatenate([partial.extremes.high.reshape(-1) for partial in held]),
        }
        return {"sites": sites, "features": features}
