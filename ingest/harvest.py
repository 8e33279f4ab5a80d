"""The worker: runs the model over the sequences of a part and writes what its sites held."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ingest.attended import (
    ENOUGH_TOKENS,
    SAMPLE_SEQUENCES,
    attention_blocks,
    check_attention,
)
from ingest.contract import Array, Observer, SequenceBlock, StoppedError
from ingest.errors import ModelError
from ingest.gradients import Gradient
from ingest.models import LoadedModel, load, provenance
from ingest.models.contract import Given
from ingest.models.derived import Derived
from ingest.models.facts import ModelFacts
from ingest.models.planted import TRUTH_FILE
from ingest.pace import Pace
from ingest.part_rows import PartRows
from ingest.plan import Batch, Batching, Padded
from ingest.ring import Landing, Ring
from ingest.sampling import Sample
from ingest.showing import Showing
from ingest.tasks import answers_of, partners_of
from store import Store, Writer
from store import open as open_store
from store.commits import exists
from store.layout import commit_key
from store.registry import to_json


@dataclass(frozen=True, kw_only=True, slots=True)
class HarvestJob:
    """Everything a worker needs to know, in plain data."""

    url: str
    group: str
    model: str
    revision: str | None
    sites: tuple[str, ...]
    columns: Mapping[str, str]
    dtype: str
    recipe: Mapping[str, Any]
    codec: str
    attn_implementation: str
    device: str
    weights: str | None
    """Asset of the weights that are kept beside the columns."""
    sees: str | None
    """What the model is shown alone, ``texts`` or ``images``; None for images with texts."""
    allow_nonfinite: bool | tuple[str, ...]
    """Whether values need not be finite; or the columns where some rows have none."""


def harvest_recipe(
    loaded: LoadedModel,
    tokens: str,
    sites: Sequence[str],
    dtypes: Mapping[str, str],
    batching: Batching,
    gradient: Gradient | None = None,
    sample: Sample | None = None,
    *,
    seeing: bool = False,
) -> dict[str, Any]:
    """Return everything a harvested group is a function of; ``seeing``: pixels are scaled for the model."""
    scaling = {} if not seeing else {"scaling": scaling_of(loaded)}
    return {
        "schema": 1,
        "tokens": tokens,
        "model": loaded.identity,
        "sites": list(sites),
        "dtypes": dict(dtypes),
        "compute_dtype": loaded.compute_dtype,
        "batch": batching.to_json(),
        "gradient": None if gradient is None else gradient.rule.to_json(),
        "metric": None if gradient is None else to_json(gradient.metric),
        "mask": None if sample is None else sample.to_json(),
        **scaling,
    }


def scaling_of(loaded: LoadedModel) -> dict[str, Any]:
    """Return how a model that sees has its pixels scaled."""
    return {} if loaded.pictures is None else loaded.pictures.scaling()


class Harvester:
    """Writes a group's parts, one at a time; a plain class that any runtime may place anywhere.

    Parameters
    ----------
    loaded
        The model where it is in memory already; else it is loaded and checked against the recipe.
    observers
        Shown the sequences of every part they have not done, in the dtype that is stored. A part that was committed
        without them stays as it is: what they lack there is computed from the store.
    """

    def __init__(
        self,
        job: HarvestJob,
        loaded: LoadedModel | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        self._job = job
        self._observers = observers
        self._loaded = loaded or _load(job)
        self._gradient = Gradient.of_recipe(job.recipe)
        self._sample = Sample.of_recipe(job.recipe)
        tokenizer = self._loaded.tokenizer
        self._pad = 0 if tokenizer is None else tokenizer.pad_token_id or 0
        self._store = open_store(job.url)
        seeing = self._loaded.adapter.vision is not None and job.sees != "texts"
        self._showing = Showing(self._store, self._loaded) if seeing else None
        self._pace = Pace()
        self._ring = Ring(job.device)
        self._stopping = False
        self._attends, self._attention_error = False, 0.0
        self._derived = Derived(self._loaded.adapter)
        self._known = {**self._loaded.adapter.sites(), **self._derived.sites()}
        # Read when a part commits, so what is noted of a part before its last rows goes into its record.
        self._provenance: dict[str, Any] = {
            **provenance(self._loaded),
            **_named(self._store, self._loaded),
            **({} if job.weights is None else {"weights": job.weights}),
        }
        self._writer: Writer = self._store.writer(
            job.group,
            columns=job.columns,
            recipe=job.recipe,
            codec=job.codec,
            allow_nonfinite=job.allow_nonfinite,
            provenance=self._provenance,
        )

    def run(self, part: int) -> Mapping[str, Any]:
        """Harvest one part; a part that is committed, by whomever, is passed over."""
        if self._committed(part):
            return {"part": part, "rows": 0, "skipped": 1}
        watching = [observer for observer in self._observers if not observer.done(part)]
        try:
            with self._pace.working():
                self._harvest(part, watching)
        except BaseException:
            try:
                self._ring.cancel()
            finally:  # nothing is being written any more
                self._writer.abandon()
            raise
        finally:
            self._stopping = False
        rows = self._store.view.commit("tokens", part).rows
        return {"part": part, "rows": rows, "skipped": 0, **self._pace.spent().to_json()}

    def stop(self) -> None:
        """End the part in hand after its batch; called from another thread."""
        self._stopping = True

    def _committed(self, part: int) -> bool:
        """Return whether a part is committed now: another worker may have been at it since the writer looked."""
        return self._writer.done(part) or exists(
            self._store.view.storage, commit_key(self._job.group, part)
        )

    def _harvest(self, part: int, watching: Sequence[Observer]) -> None:
        for observer in watching:
            observer.begin(part)
        for block, landing, kept, last in self._blocks(part, watching):
            if self._stopping:
                raise StoppedError
            if watching:
                landing.wait()
            for observer in watching:
                observer.observe(block)
                if last:
                    observer.end(part)
            if last:
                self._provenance.update(self._pace.lap())
            with self._pace.storing():
                # Live statistics look at every row; without them those left out never leave the device.
                chosen = kept if watching else slice(None)
                self._ring.submit(partial(self._write, block.row_ids[kept], landing, chosen))
        with self._pace.storing():
            self._ring.submit(self._writer.finish_part)
            self._ring.drain()
        self._pace.stored(self._ring.cpu_seconds())

    def _write(self, row_ids: Array, landing: Landing, chosen: Any) -> None:
        values = landing.wait()
        bits = {site: _bits(values[site])[chosen] for site in self._job.sites}
        self._writer.put(row_ids, bits, raw=True)

    def _blocks(
        self, part: int, watching: Sequence[Observer]
    ) -> Iterator[tuple[SequenceBlock, Landing, Any, bool]]:
        """Yield the part's batches: the block, its values' landing, which of its rows are kept, and whether it is the last."""
        rows = PartRows.of(self._store, part)
        between = self._gradient is not None and self._gradient.rule.point != "here"
        partners = partners_of(rows.sequences) if between else None
        asking = self._gradient is not None and self._gradient.metric.needs_answers
        answers = answers_of(self._store, part) if asking else None
        kept = None if self._sample is None else self._sample.kept(rows.columns["row"])
        sites = list(dict.fromkeys([*self._job.sites, *(s for o in watching for s in o.sites)]))
        batching = Batching.of_recipe(self._job.recipe)
        for batch in batching.batches(rows.lengths.tolist(), self._longest(rows)):
            mine = np.arange(batch.first, batch.first + batch.count)
            laid, seen = rows.laid(batch, self._pad), self._seen(rows, mine, batch.size)
            asked = None
            if answers is not None:
                asked = _asked(answers, rows.bounds, batch, self._job.device)
            other = None if partners is None else rows.laid(batch, self._pad, partners).ids
            self._check_attention(rows, mine, sites)
            chosen = _chosen(kept, rows.bounds, batch)
            only = None if watching else chosen
            values = self._captured(laid, seen, batch.count, sites, asked, other, only)
            landing = self._ring.land(values, lasting=bool(watching))
            block = SequenceBlock.cut(
                part,
                rows.columns,
                rows.bounds,
                first=batch.first,
                count=batch.count,
                sites=landing.values,
            )
            yield block, landing, chosen, batch.first + batch.count == len(rows.lengths)

    def _longest(self, rows: PartRows) -> int | None:
        """Return the longest a lane may be: exactly an image's rows where those are all it holds."""
        vision = self._loaded.adapter.vision
        if self._showing is None or vision is None or vision.rows == "tokens":
            return self._loaded.adapter.max_positions
        return int(rows.lengths.max())

    def _seen(self, rows: PartRows, chosen: Array, size: int) -> Given | None:
        """Return the images of some sequences, where the model sees some."""
        if self._showing is None:
            return None
        at = rows.rows_of(chosen)
        row_ids, token_ids = (rows.columns[name][at] for name in ("row", "token_id"))
        return self._showing.given(row_ids, token_ids, rows.grids(chosen), size)

    def _captured(
        self,
        laid: Padded,
        seen: Given | None,
        count: int,
        sites: Sequence[str],
        answers: Mapping[str, torch.Tensor] | None,
        other_BT: Array | None,
        only: Any,
    ) -> dict[str, torch.Tensor]:
        """Return ``{site: [R, *shape]}`` of the real rows (``only`` some of them) on the model's device, in the stored dtype."""
        device = torch.device(self._job.device)
        ids_BT = torch.from_numpy(laid.ids).to(device)
        mask_BT = torch.from_numpy(laid.mask).to(device)
        adapter = self._loaded.adapter
        if self._gradient is None:
            positions = laid.positions
            positions_BT = None if positions is None else torch.from_numpy(positions)
            captured = self._derived.capture(
                ids_BT, mask_BT, sites, positions_BT=positions_BT, given=seen
            )
        else:
            partner = None if other_BT is None else torch.from_numpy(other_BT).to(device)
            captured = self._gradient.at(adapter, ids_BT, mask_BT, sites, count, answers, partner)
        # Two lists of places and no mask: a GPU would stop to count what a mask holds.
        at = tuple(torch.from_numpy(one).to(device) for one in _places(laid, only))
        kept = {site: self._known[site].dtype or self._job.dtype for site in sites}
        dtypes = {site: getattr(torch, dtype) for site, dtype in kept.items()}
        return {site: captured[site][at].to(dtype=dtypes[site]).contiguous() for site in sites}

    def _check_attention(self, rows: PartRows, mine: Array, sites: Sequence[str]) -> None:
        """Raise where the model does not attend as its family says; asked once, of the first sequences there are."""
        sites = [*sites, *self._derived.needs(sites)]
        if self._gradient is not None or self._attends or not attention_blocks(sites):
            return
        longest = mine[np.argsort(-rows.lengths[mine], kind="stable")[:SAMPLE_SEQUENCES]]
        lengths = rows.lengths[longest].tolist()
        (alone,) = Batching(size=len(longest)).batches(lengths, self._longest(rows))
        laid, seen = rows.laid(alone, self._pad, longest), self._seen(rows, longest, alone.size)
        ids_BT, mask_BT = torch.from_numpy(laid.ids), torch.from_numpy(laid.mask)
        error = check_attention(self._loaded.adapter, ids_BT, mask_BT, sites, seen)
        self._attention_error = max(self._attention_error, error)
        self._provenance["attention_error"] = f"{self._attention_error:.1e}"
        self._attends = max(lengths) >= ENOUGH_TOKENS

    def close(self) -> None:
        """Seal the group where its last part is committed, and what the observers write."""
        self._ring.close()
        self._writer.close()
        for observer in self._observers:
            observer.close()


@dataclass(frozen=True, kw_only=True, slots=True)
class MakeHarvester:
    """Makes the worker here or, sent through a pickle, elsewhere: there it loads the model itself."""

    job: HarvestJob
    observers: Sequence[Observer] = ()
    loaded: LoadedModel | None = None
    """The model where it is in memory; it stays there."""

    def __call__(self) -> Harvester:
        """Return the worker."""
        return Harvester(self.job, self.loaded, self.observers)

    def __reduce__(self) -> tuple[Any, ...]:
        return _elsewhere, (self.job, tuple(self.observers))


def _elsewhere(job: HarvestJob, observers: Sequence[Observer]) -> MakeHarvester:
    return MakeHarvester(job=job, observers=observers)


def _chosen(kept: Array | None, bounds: Array, batch: Batch) -> Any:
    """Return which rows of a batch are kept, ``bool[R]``, or a slice of all."""
    if kept is None:
        return slice(None)
    return kept[bounds[batch.first] : bounds[batch.first + batch.count]]


def _places(laid: Padded, only: Any) -> tuple[Array, ...]:
    """Return lane and place of a batch's rows, ``int64[R]`` each; of some of them where some are chosen."""
    every = laid.real.nonzero()
    return every if only is None else tuple(one[only] for one in every)


def _asked(
    answers: Mapping[str, Array], bounds: Array, batch: Batch, device: str
) -> dict[str, torch.Tensor]:
    """Return the answers asked for behind each sequence of a batch, int64 ``[B]``; −1 where none is."""
    last = bounds[batch.first + 1 : batch.first + batch.count + 1] - 1
    found = {}
    for name, values in answers.items():
        padded = np.full(batch.size, -1, np.int64)
        padded[: batch.count] = values[last]
        found[name] = torch.from_numpy(padded).to(device)
    return found


def _load(job: HarvestJob) -> LoadedModel:
    loaded = load(
        job.model,
        dtype=job.recipe["compute_dtype"],
        device=job.device,
        attn_implementation=job.attn_implementation,
        revision=job.revision,
        sees=job.sees,
    )
    model = {key: value for key, value in job.recipe["model"].items() if key != "family"}
    same = model == (dict(loaded.files) if "commit" not in model else {"commit": loaded.revision})
    if not same or ("scaling" in job.recipe and job.recipe["scaling"] != scaling_of(loaded)):
        raise ModelError(
            f"the files of {job.model} on this machine are not those the group {job.group!r} was planned "
            "with. Nothing was written. Give every worker the same model files.",
            kind="model-differs",
        )
    return loaded


def _named(store: Store, loaded: LoadedModel) -> dict[str, str]:
    """Return the model's name, the asset of its facts, which later jobs read in its place, and of a planted one's truth."""
    asset = store.put_asset(ModelFacts.of(loaded.adapter).to_files())
    place = Path(loaded.name).expanduser()
    name = str(place.resolve()) if place.is_dir() else loaded.name  # commands with it run anywhere
    truth = loaded.folder / TRUTH_FILE
    planted = {TRUTH_FILE: truth.read_bytes()} if truth.is_file() else None
    beside = {} if planted is None else {"truth": store.put_asset(planted)}
    return {"model": asset, "model_name": name, **beside}


def _bits(values: torch.Tensor) -> Array:
    """Return a tensor's rows as the store takes them; bfloat16 as ``uint16`` bits."""
    return values.view(torch.uint16).numpy() if values.dtype == torch.bfloat16 else values.numpy()
