"""Statistics while harvesting: the partials an offline run would leave, bit for bit, without reading a row back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ingest.contract import Harvest, SequenceBlock
from ingest.models import hardware_class
from jobs.circuits.contract import ModelFacts, Partial, Statistic
from jobs.circuits.plan import COLUMN, COLUMNS, Planned, planned, settled, spec_of
from jobs.sequences import base_of
from store import Writer
from store import open as open_store


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveStatistic:
    """A statistic to be computed during a harvest; satisfies ``ingest.contract.ObserverPlan``."""

    statistic: Statistic

    def requires(self, model: ModelFacts, stored: Sequence[str]) -> tuple[str, ...]:
        """Return the sites the statistic reads of this model."""
        return settled(self.statistic, stored).requires(model)

    def observer(self, harvest: Harvest) -> StatisticObserver:
        """Return the observer of one harvest."""
        statistic = settled(self.statistic, harvest.sites)
        sites = statistic.requires(harvest.model)
        specs = {site: spec_of(harvest.dtype, harvest.model, site) for site in sites}
        plan = planned(statistic, sites, base_of(harvest.recipe), specs)
        return StatisticObserver(harvest.url, plan, harvest.model)


class StatisticObserver:
    """Fills a statistic's group part by part; satisfies ``ingest.contract.Observer``.

    Picklable until its first use, when it opens the store.
    """

    def __init__(self, url: str, plan: Planned, model: ModelFacts) -> None:
        self._url, self._plan, self._model = url, plan, model
        self._writer: Writer | None = None
        self._partial: Partial | None = None

    @property
    def sites(self) -> tuple[str, ...]:
        """What the statistic reads."""
        return self._plan.sites

    @property
    def group(self) -> str:
        """The group it fills."""
        return self._plan.group

    def _open(self) -> Writer:
        if self._writer is None:
            self._writer = partial_writer(open_store(self._url), self._plan)
        return self._writer

    def done(self, part: int) -> bool:
        """Return whether the part's partial is committed."""
        return self._open().done(part)

    def begin(self, part: int) -> None:
        """Begin a part."""
        del part
        self._partial = self._plan.statistic.empty(self._model)

    def observe(self, block: SequenceBlock) -> None:
        """Take in a block."""
        assert self._partial is not None, "a part was not begun"
        self._partial.update(self._plan.narrowed(block))

    def end(self, part: int) -> None:
        """Commit the part's partial."""
        assert self._partial is not None, "a part was not begun"
        self._open().put_partial(part, {COLUMN: self._partial.state()})
        self._partial = None

    def close(self) -> None:
        """Seal the group where its last part is committed."""
        if self._writer is not None:
            self._writer.close()


def partial_writer(store: Any, plan: Planned) -> Writer:
    """Return the writer of a statistic's group; what may decide last bits besides the recipe is noted."""
    noted = {
        "hardware": hardware_class(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    writer: Writer = store.writer(plan.group, columns=COLUMNS, recipe=plan.recipe, provenance=noted)
    return writer
