"""From a store to tables: any number of statistics in one read of their columns, new parts alone, merged in order."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ingest.contract import Runtime
from jobs.circuits.contract import ModelFacts, Partial, Statistic
from jobs.circuits.live import partial_writer
from jobs.circuits.plan import COLUMN, Planned, described, planned, settled
from jobs.errors import JobError
from jobs.results import Result
from jobs.run import OrderedMerge
from jobs.runtimes.in_process import InProcess
from jobs.sequences import (
    Sources,
    base_of,
    locate,
    missing_columns_error,
    model_facts,
    model_name,
    sequence_blocks,
    shared_parts,
    stored_sites,
    whole_groups,
)
from store import Store, StoreError
from store import open as open_store
from store.records import canonical, sha256

VERB = "stats"


def statistics_on(
    store: Store,
    statistics: Sequence[Statistic],
    out: str | Path,
    *,
    groups: Sequence[str] | None = None,
    model: str | None = None,
    runtime: Runtime | None = None,
    keep: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> list[Result]:
    """Compute statistics over a store's sequences and leave a result for each.

    Parts whose partial is in the store already (from an earlier run, or from the harvest itself) are not read.

    Parameters
    ----------
    statistics
        One of any sites (``sites`` empty) takes all dense columns there are.
    groups
        Where to look for columns; default: everywhere.
    model
        Folder of the model, for stores that do not say how it attends; see ``model_facts``.
    runtime
        Where parts are worked on; None: here. The tables are the same bits anywhere.
    keep
        Keep each part's partial in the store, in the group ``stat.<kind>-<hash8>``; else nothing is written there.
    progress
        Called with (parts read, parts to read).

    Returns
    -------
    One result ``stats-<hash8>`` for each statistic (once, however often it is named), with the tables it makes.

    Raises
    ------
    JobError
        ``columns-missing`` (with the ingest command that adds them), ``ambiguous-column``, ``masked-group``,
        ``no-rows``; and what a statistic says of a model it has no meaning for. Nothing is written.
    """
    once = {canonical(described(statistic)): statistic for statistic in statistics}
    whole = _resolved(store, list(once.values()), groups, model)
    with ExitStack() as stack:
        results = [_result(store, whole, plan, out) for plan in whole.plans]
        pending = [
            (plan, stack.enter_context(result))
            for plan, result in zip(whole.plans, results, strict=True)
            if not result.done
        ]
        plans = [plan for plan, _ in pending]
        merged = _merged(store, whole, plans, runtime or InProcess(), keep=keep, progress=progress)
        for (_, result), found in zip(pending, merged, strict=True):
            for name, columns in found.finalize().items():
                result.write_table(name, columns)
    return results


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """Statistics, settled on a store: what they read, and the parts there are."""

    plans: list[Planned]
    model: ModelFacts
    groups: list[str] | None
    sources: Sources
    parts: list[int]

    def of(self, plan: Planned) -> list[str]:
        """Return the groups one plan's result comes from, whatever else was asked with it."""
        if not all(site in self.sources.groups for site in plan.sites):  # it was taken live
            return ["tokens", plan.group]
        return sorted({"tokens", *(self.sources.groups[site] for site in plan.sites)})


def _resolved(
    store: Store,
    statistics: Sequence[Statistic],
    groups: Sequence[str] | None,
    model: str | None,
) -> Resolved:
    facts = model_facts(store, groups, model=model)
    stored = stored_sites(store, groups)
    bound = [settled(statistic, stored) for statistic in statistics]
    needs = [statistic.requires(facts) for statistic in bound]
    taken = [_taken(store, *pair, groups) for pair in zip(bound, needs, strict=True)]
    read = [
        site for sites, plan in zip(needs, taken, strict=True) if plan is None for site in sites
    ]
    if not any(needs):
        where = f"groups {', '.join(groups)}" if groups else "any group of values"
        raise JobError(
            f"{store.url} has no column of whole sequences in {where} that these statistics look at. Nothing was started. "
            "Say --sites, or a group (--group) that holds some.",
            kind="columns-missing",
        )
    sources = _sources(store, read, taken, groups, model)
    parts = shared_parts(store, sources)
    _refuse_partly_taken(store, taken, parts, groups, model)
    if not parts:
        raise JobError(
            f"no part of {store.url} has all of {', '.join(sources.groups)}. Nothing was started. Complete the "
            "groups first; `actlake inspect` shows how far each reaches.",
            kind="no-rows",
        )
    plans = [
        plan or planned(statistic, sites, sources.base, sources.specs)
        for statistic, sites, plan in zip(bound, needs, taken, strict=True)
    ]
    return Resolved(
        plans=plans,
        model=facts,
        groups=None if groups is None else list(groups),
        sources=sources,
        parts=parts,
    )


def _sources(
    store: Store,
    sites: Sequence[str],
    taken: Sequence[Planned | None],
    groups: Sequence[str] | None,
    model: str | None,
) -> Sources:
    """Return where the sites to be read lie; where there are none, the groups whose harvest took the statistics."""
    if sites:
        return locate(store, list(dict.fromkeys(sites)), groups, model=model)
    made = [_harvested(store, plan, groups) for plan in taken if plan is not None]
    return Sources(groups={name: name for names in made for name in names}, specs={}, base={})


def _harvested(store: Store, plan: Planned, groups: Sequence[str] | None) -> list[str]:
    """Return the groups of columns made as those a statistic was taken of: by the same model, in the same batches."""
    source = canonical(plan.recipe["source"])
    held = whole_groups(store, groups)
    return [g.name for g in held if canonical(base_of(g.recipe, g.name)) == source]


def _taken(
    store: Store, statistic: Statistic, sites: Sequence[str], groups: Sequence[str] | None
) -> Planned | None:
    """Return the plan of a statistic that was taken live of sites not all of which are stored; None otherwise.

    Of another model's harvest, or of one the groups asked for do not belong to, it is none of theirs.
    """
    if set(stored_sites(store, groups)).issuperset(sites):
        return None
    wanted = canonical(described(statistic))
    found = [
        Planned(statistic=statistic, sites=tuple(sites), recipe=group.recipe)
        for group in store.groups.values()
        if canonical(group.recipe.get("statistic")) == wanted
        and set(group.recipe["columns"]) == set(sites)
    ]
    found = [plan for plan in found if _harvested(store, plan, groups)]
    return found[0] if len(found) == 1 else None


def _refuse_partly_taken(
    store: Store,
    taken: Sequence[Planned | None],
    parts: Sequence[int],
    groups: Sequence[str] | None,
    model: str | None,
) -> None:
    """Raise ``columns-missing`` where a statistic taken live lacks parts, and its columns are not there either."""
    for plan in taken:
        if plan is not None and set(parts) - _committed(store, plan):
            raise missing_columns_error(store, plan.sites, groups, model=model)


def _result(store: Store, whole: Resolved, plan: Planned, out: str | Path) -> Result:
    rows = [[part, store.view.commit("tokens", part).rows] for part in whole.parts]
    config = {
        "statistic": described(plan.statistic),
        "partials": plan.group,
        "model": model_name(store, whole.groups),
        "text": _source(store),
        "rows": sha256(canonical(rows)),
    }
    return Result.create(out, VERB, config, store=store.id, pin=_pin(store, whole.of(plan)))


def _source(store: Store) -> str:
    """Return the kind of source the rows come from; empty where the store does not say."""
    source = store.groups["tokens"].recipe.get("source")
    return str(source.get("kind", "")) if isinstance(source, Mapping) else ""


def _pin(store: Store, groups: Sequence[str]) -> str:
    """Write a pin and return its id; a store that may not be written is only named."""
    try:
        return store.pin(groups)
    except StoreError as error:
        if error.kind not in {"not-permitted", "disk-full"}:
            raise
        return store.pin_id(groups)


def _merged(
    store: Store,
    whole: Resolved,
    plans: Sequence[Planned],
    runtime: Runtime,
    *,
    keep: bool,
    progress: Callable[[int, int], None] | None,
) -> list[Partial]:
    """Return each plan's whole, merged along one tree over the parts in order."""
    held = {plan.group: _committed(store, plan) for plan in plans}
    todo = [part for part in whole.parts if any(part not in held[plan.group] for plan in plans)]
    make = partial(
        StatisticsWorker, store.url, list(plans), whole.model, whole.groups, held, keep=keep
    )
    fresh = _worked(runtime, make, todo, progress)
    store = store.refresh()
    for plan in plans if keep else ():
        store.seal(plan.group)
    found = []
    for plan in plans:
        merge: OrderedMerge[Partial] = OrderedMerge()
        for index, part in enumerate(whole.parts):
            states = fresh.get(part) or {}
            state = states.get(plan.group) or store.partial(_address(plan), part)
            merge.add(index, plan.statistic.from_state(whole.model, state))
        merged = merge.result()
        found.append(plan.statistic.empty(whole.model) if merged is None else merged)
    return found


def _worked(
    runtime: Runtime,
    make: Callable[[], StatisticsWorker],
    parts: Sequence[int],
    progress: Callable[[int, int], None] | None,
) -> dict[int, Any]:
    """Return part → what its worker returned; on an error the workers elsewhere are ended at once."""
    found: dict[int, Any] = {}
    results = runtime.map(make, parts)
    try:
        for part, states in results:
            found[part] = states
            if progress is not None:
                progress(len(found), len(parts))
    finally:
        if isinstance(results, Generator):
            results.close()
    return found


def _address(plan: Planned) -> str:
    return f"{plan.group}:{COLUMN}"


def _committed(store: Store, plan: Planned) -> set[int]:
    return set(store.view.parts(plan.group)) if plan.group in store.groups else set()


class StatisticsWorker:
    """Turns one part into the partials it lacks; a plain class that any runtime may place anywhere."""

    def __init__(
        self,
        url: str,
        plans: Sequence[Planned],
        model: ModelFacts,
        groups: Sequence[str] | None,
        held: Mapping[str, set[int]],
        *,
        keep: bool,
    ) -> None:
        self._store = open_store(url)
        self._plans, self._model, self._groups, self._held = plans, model, groups, held
        self._writers = (
            {plan.group: partial_writer(self._store, plan) for plan in plans} if keep else {}
        )

    def run(self, part: int) -> Mapping[str, Any] | None:
        """Commit the partials the part lacks; where none are kept, return them.

        None are kept of a part that lost documents: its states would have to go with the next one.
        """
        plans = [plan for plan in self._plans if not self._done(plan, part)]
        filled = [plan.statistic.empty(self._model) for plan in plans]
        sites = list(dict.fromkeys(site for plan in plans for site in plan.sites))
        for block in sequence_blocks(self._store, sites, [part], self._groups) if sites else ():
            for plan, one in zip(plans, filled, strict=True):
                one.update(plan.narrowed(block))
        states = {plan.group: one.state() for plan, one in zip(plans, filled, strict=True)}
        if not self._keeps(part):
            return states
        for group, state in states.items():
            self._writers[group].put_partial(part, {COLUMN: state})
        return None

    def _done(self, plan: Planned, part: int) -> bool:
        if part in self._held[plan.group]:
            return True
        return self._keeps(part) and self._writers[plan.group].done(part)

    def _keeps(self, part: int) -> bool:
        return bool(self._writers) and self._store.view.visible(part) is None

    def close(self) -> None:
        """Seal the groups where their last part is committed."""
        for writer in self._writers.values():
            writer.close()
