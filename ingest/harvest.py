"""The worker: runs the model over the sequences of a part and writes what its sites held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ingest.contract import Array, Observer, VectorSource
from ingest.errors import ModelError
from ingest.models import LoadedModel, load, provenance
from ingest.plan import PAD_MULTIPLE, Batch, batches, padded
from store import Codes, Writer
from store import open as open_store
from store.tables import column


@dataclass(frozen=True, kw_only=True, slots=True)
class HarvestJob:
    """Everything a worker needs to know, in plain data."""

    url: str
    group: str
    model: str
    revision: str | None
    sites: tuple[str, ...]
    columns: Mapping[str, str]
    recipe: Mapping[str, Any]
    codec: str
    attn_implementation: str
    device: str
    allow_nonfinite: bool


def harvest_recipe(
    loaded: LoadedModel, tokens: str, sites: Sequence[str], dtypes: Mapping[str, str], batch: int
) -> dict[str, Any]:
    """Return everything a harvested group is a function of."""
    model = {"commit": loaded.revision} if loaded.revision else dict(loaded.files)
    return {
        "schema": 1,
        "tokens": tokens,
        "model": {"family": loaded.adapter.family, **model},
        "sites": list(sites),
        "dtypes": dict(dtypes),
        "compute_dtype": loaded.compute_dtype,
        "batch": {"sequences": batch, "pad_multiple": PAD_MULTIPLE},
        "gradient": None,
        "metric": None,
        "mask": None,
    }


class Harvester:
    """Writes a group's parts, one at a time; a plain class that any runtime may place anywhere.

    Parameters
    ----------
    loaded
        The model where it is in memory already; else it is loaded and checked against the recipe.
    observers
        Shown every batch while it is in memory.
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
        self._store = open_store(job.url)
        self._writer: Writer = self._store.writer(
            job.group,
            columns=job.columns,
            recipe=job.recipe,
            codec=job.codec,
            allow_nonfinite=job.allow_nonfinite,
            provenance=provenance(self._loaded),
        )
        self._stored = {site: spec.partition("[")[0] for site, spec in job.columns.items()}

    def run(self, part: int) -> Mapping[str, Any]:
        """Harvest one part; a part that is committed is passed over."""
        if self._writer.done(part):
            return {"part": part, "rows": 0, "skipped": 1}
        view = self._store.view
        tokens = view.commit("tokens", part)
        token_ids = column(view.table(tokens, "tokens.parquet"), "token_id")
        sequences = view.table(tokens, "sequences.parquet")
        base = part * self._store.part_stride
        starts = column(sequences, "first_row") - base
        lengths = column(sequences, "rows").astype(np.int64)
        size = int(self._job.recipe["batch"]["sequences"])
        try:
            for batch in batches(lengths.tolist(), size, self._loaded.adapter.max_positions):
                self._run_batch(batch, token_ids, starts, lengths, base)
        except BaseException:
            self._writer.abandon()
            raise
        return {"part": part, "rows": tokens.rows, "skipped": 0}

    def _run_batch(
        self, batch: Batch, token_ids: Array, starts: Array, lengths: Array, base: int
    ) -> None:
        pad = self._loaded.tokenizer.pad_token_id or 0
        ids_BT, mask_BT = padded(token_ids, starts, lengths, batch, pad)
        mask = torch.from_numpy(mask_BT)
        device = torch.device(self._job.device)
        captured = self._loaded.adapter.capture(
            torch.from_numpy(ids_BT).to(device), mask.to(device), self._job.sites
        )
        mask[batch.count :] = 0
        real = mask.bool().to(device)
        first = base + int(starts[batch.first])
        rows = np.arange(first, first + int(mask.sum()))
        kept = {site: captured[site][real] for site in self._job.sites}
        for observer in self._observers:
            observer.observe(rows, kept)
        bits = {site: _bits(kept[site], self._stored[site]) for site in self._job.sites}
        self._writer.put(rows, bits, raw=True)

    def close(self) -> None:
        """Seal the group where its last part is committed."""
        self._writer.close()


class VectorWorker:
    """Writes the parts of a source that makes vectors: its columns, and the planted codes beside them."""

    def __init__(
        self, url: str, group: str, source: VectorSource, recipe: Mapping[str, Any]
    ) -> None:
        self._source = source
        self._store = open_store(url)
        self._writer = self._store.writer(group, columns=source.columns, recipe=recipe)
        self._truth = self._store.writer("truth", columns={"codes": "codes"}, recipe=recipe)

    def run(self, part: int) -> Mapping[str, Any]:
        """Make and write one part."""
        rows = self._store.view.commit("tokens", part).rows
        base = part * self._store.part_stride
        ids = np.arange(base, base + rows)
        row, feature, value = self._source.truth_codes(part, rows)
        # The truth first: a part counts as done by its vectors, and must not lack its truth then.
        self._truth.put(ids, {"codes": Codes(row=base + row, latent=feature, value=value)})
        self._writer.put(ids, self._source.block(part, rows))
        return {"part": part, "rows": rows, "skipped": 0}

    def close(self) -> None:
        """Seal both groups."""
        self._writer.close()
        self._truth.close()


def _load(job: HarvestJob) -> LoadedModel:
    loaded = load(
        job.model,
        dtype=job.recipe["compute_dtype"],
        device=job.device,
        attn_implementation=job.attn_implementation,
        revision=job.revision,
    )
    model = {key: value for key, value in job.recipe["model"].items() if key != "family"}
    if model != (dict(loaded.files) if "commit" not in model else {"commit": loaded.revision}):
        raise ModelError(
            f"the files of {job.model} on this machine are not those the group {job.group!r} was planned "
            "with. Nothing was written. Give every worker the same model files.",
            kind="model-differs",
        )
    return loaded


def _bits(values: torch.Tensor, stored: str) -> Array:
    """Return a tensor's rows in the stored dtype; bfloat16 as ``uint16`` bits."""
    cast = values.to(device="cpu", dtype=getattr(torch, stored)).contiguous()
    return cast.view(torch.uint16).numpy() if cast.dtype == torch.bfloat16 else cast.numpy()
