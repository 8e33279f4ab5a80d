"""What an ingest will come to before it is run: rows, parts, bytes, floating-point operations, seconds here.

Rows and parts are counted, not guessed: the source is read and cut as the ingest would, and only lengths are kept. Bytes of dense
columns follow from the shards' layout; of tables, from the first part, written to memory. Operations and seconds come from a few
batches that are really run, and grow with the tokens of padded batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from ingest.models import LoadedModel
from ingest.models.derived import Derived
from ingest.plan import batches
from store import TokenSequence, create
from store.codecs import CODECS
from store.layout import CHUNK_ROWS, ShardLayout
from store.schema import Column

_SAMPLES = 3  # batches that are timed, after one that warms up
_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """A source as its parts would hold it."""

    rows: int
    sequences: int
    parts: tuple[int, ...]
    """Rows of each part."""
    lengths: tuple[tuple[int, ...], ...]
    """Rows of each sequence, by part."""
    tokens_bytes: int
    """Of the tables of the tokens, from the first part's."""


def cut(groups: Iterable[Sequence[TokenSequence]], part_rows: int, stride_rows: int) -> Cut:
    """Return the parts that sequences fall into.

    Parameters
    ----------
    groups
        Sequences that stay in one part: one each, or both roles of a pair.
    """
    lengths: list[list[int]] = [[]]
    first: list[Sequence[TokenSequence]] = []
    room = part_rows
    for group in groups:
        need = sum(len(one) for one in group)
        if need > room:
            lengths.append([])
            room = part_rows
        if len(lengths) == 1:
            first.append(group)
        lengths[-1].extend(len(one) for one in group)
        room -= need
    parts = tuple(sum(part) for part in lengths)
    rows = sum(parts)
    held = _table_bytes(first, part_rows, stride_rows)
    return Cut(
        rows=rows,
        sequences=sum(map(len, lengths)),
        parts=parts,
        lengths=tuple(tuple(part) for part in lengths),
        tokens_bytes=round(held * rows / max(1, parts[0])),
    )


def _table_bytes(
    groups: Sequence[Sequence[TokenSequence]], part_rows: int, stride_rows: int
) -> int:
    """Return the bytes of a part's tables, written to memory and let go."""
    made = create(f"memory://plan-{uuid4().hex}", part_rows=part_rows, part_stride=stride_rows)
    writer = made.writer("tokens", recipe={})
    with writer:
        for group in groups:
            writer.put(list(group))
        writer.seal()
    view = made.refresh().view
    sizes = [
        item.size
        for part in view.parts("tokens")
        for item in view.commit("tokens", part).objects.values()
    ]
    view.storage.delete(list(view.storage.keys("")))
    return sum(sizes)


def column_bytes(spec: str, codec: str, parts: Sequence[int], stride_rows: int) -> int | None:
    """Return the bytes of a column over parts of some rows; None where only its values tell.

    Dense columns to the byte; scalar ones as their values are, before Parquet makes them smaller.
    """
    column = Column.parse("planned", spec, codec=codec)
    if column.kind != "dense":
        return column.row_bytes * sum(parts)
    row_bytes = CODECS.get(column.codec)().row_bytes(column)
    if row_bytes is None:
        return None
    return sum(
        ShardLayout(row_bytes=row_bytes, rows=rows, stride_rows=stride_rows).total_bytes
        for rows in parts
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Forward:
    """What running the model over all batches comes to."""

    padded_tokens: int
    """Tokens of all batches, padding included."""
    flops: float
    """Floating-point operations, a multiplication and an addition being two; of attention, all pairs of a batch."""
    seconds: float
    """On this machine, by the median of a few batches."""


def forward(
    loaded: LoadedModel, sites: Sequence[str], lengths: Sequence[Sequence[int]], batch: int
) -> Forward:
    """Return what the forwards come to, from a few batches that are run as far as the deepest site."""
    limit = loaded.adapter.max_positions
    shapes = [one for part in lengths for one in batches(part, batch, limit)]
    tokens = sum(one.size * one.length for one in shapes)
    derived = Derived(loaded.adapter)
    rates, flops = [], 0.0
    for number, one in enumerate(_spread(shapes, _SAMPLES)):
        ids = torch.ones((one.size, one.length), dtype=torch.long)
        mask = torch.ones_like(ids)
        if not number:
            flops = _operations(loaded, partial(derived.capture, ids, mask, sites)) / ids.numel()
        began = time.perf_counter()
        derived.capture(ids, mask, sites)
        rates.append((time.perf_counter() - began) / ids.numel())
    per_token = float(np.median(rates)) if rates else 0.0
    return Forward(padded_tokens=tokens, flops=flops * tokens, seconds=per_token * tokens)


def _operations(loaded: LoadedModel, run: Callable[[], object]) -> int:
    """Return the operations of a run, attention computed in plain sight: fused kernels do not say theirs."""
    model: Any = loaded.model
    counter = FlopCounterMode(display=False)
    own = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with counter:
            run()
    finally:
        model.set_attn_implementation(own)
    return int(counter.get_total_flops())


def _spread(items: Sequence[Any], count: int) -> Iterator[Any]:
    """Yield some items, evenly spread."""
    for at in range(min(count, len(items))):
        yield items[at * len(items) // min(count, len(items))]


@dataclass(frozen=True, kw_only=True, slots=True)
class Prices:
    """What keeping and computing cost; money of any one currency."""

    storage_gb_month: float
    """A gigabyte (10⁹ bytes) kept for a month."""
    put_1000: float = 0.0
    """A thousand objects written."""
    get_1000: float = 0.0
    """A thousand requests to read."""
    machine_hour: float = 0.0
    """An hour of the machine that runs the model."""
    machine_flops: float | None = None
    """Operations that machine does in a second, as used; None takes the seconds measured here."""
    currency: str = "$"


@dataclass(frozen=True, kw_only=True, slots=True)
class Money:
    """What a group costs to make, to keep and to read."""

    currency: str
    compute: float
    """Running the model once."""
    write: float
    month: float
    """Keeping it for a month."""
    read: float
    """Reading all of it once."""
    reads_until_keeping_pays: int | None
    """Reads within a month from which on keeping is cheaper than computing each time; None where it never is."""


def money(prices: Prices, run: Forward, parts: int, columns: int, size: int) -> Money:
    """Return what making, keeping and reading a group cost; each shard is one object, read 8 MiB at a time."""
    seconds = run.seconds if prices.machine_flops is None else run.flops / prices.machine_flops
    compute = prices.machine_hour * seconds / 3600
    objects = parts * (columns + 2)
    write = prices.put_1000 * objects / 1000
    month = prices.storage_gb_month * size / 1e9
    read = prices.get_1000 * (objects + size / (8 << 20)) / 1000
    # n reads: keeping is compute + write + month + n read; computing each time is n compute
    gain = compute - read
    reads = None if gain <= 0 else int(-(-(compute + write + month) // gain))
    return Money(
        currency=prices.currency,
        compute=compute,
        write=write,
        month=month,
        read=read,
        reads_until_keeping_pays=reads,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What an ingest would come to."""

    rows: int
    sequences: int
    parts: int
    columns: Mapping[str, int | None]
    """Bytes by column; None where the codec's outcome depends on the values."""
    tokens_bytes: int
    padded_tokens: int
    flops: float
    forward_seconds: float
    money: Money | None = None

    @property
    def group_bytes(self) -> int:
        """Bytes of the columns that are known beforehand."""
        return sum(size or 0 for size in self.columns.values())

    def advice(self, part_rows: int) -> list[str]:
        """Return what a look at the numbers says."""
        said = []
        largest = max((size or 0 for size in self.columns.values()), default=0) / max(1, self.parts)
        if largest > _GIB:
            fewer = max(CHUNK_ROWS, int(part_rows * _GIB / largest) // CHUNK_ROWS * CHUNK_ROWS)
            said.append(
                f"a shard would have {largest / 1e9:.1f} GB: --part-rows {fewer} makes them about one"
            )
        return said

    def to_json(self) -> dict[str, Any]:
        """Return the estimate for programs."""
        return {**asdict(self), "group_bytes": self.group_bytes}
