"""What an ingest will come to before it is run: rows, parts, bytes, floating-point operations, seconds here.

Rows and parts are counted, not guessed: the source is read and cut as the ingest would, and only lengths are kept. Bytes of dense
columns follow from the shards' layout; of tables, from the first part, written to memory. Operations and seconds come from a few
batches that are really run, and are told of padded batches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from ingest.models import LoadedModel
from ingest.plan import Batching
from store import TokenSequence, create
from store.codecs import CODECS
from store.layout import CHUNK_ROWS, ShardLayout
from store.schema import Column

_REPEATS = 2  # of a batch that is timed, after one that warms up
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


def packed(groups: Iterable[Sequence[int]], part_rows: int) -> list[list[int]]:
    """Return the lengths of sequences by part; those of one group stay in one part, as writers keep them."""
    parts: list[list[int]] = [[]]
    room = part_rows
    for group in groups:
        if sum(group) > room:
            parts.append([])
            room = part_rows
        parts[-1].extend(group)
        room -= sum(group)
    return parts


def cut(groups: Iterable[Sequence[TokenSequence]], part_rows: int, stride_rows: int) -> Cut:
    """Return the parts that sequences fall into.

    Parameters
    ----------
    groups
        Sequences that stay in one part: one each, or both roles of a pair.
    """
    first: list[Sequence[TokenSequence]] = []
    held = 0

    def counted() -> Iterator[list[int]]:
        nonlocal held
        for group in groups:
            counts = [len(one) for one in group]
            held += sum(counts)
            if held <= part_rows:  # the first part's: what does not fit it ends it
                first.append(group)
            yield counts

    lengths = packed(counted(), part_rows)
    parts = tuple(sum(part) for part in lengths)
    rows = sum(parts)
    size = _table_bytes(first, part_rows, stride_rows)
    return Cut(
        rows=rows,
        sequences=sum(map(len, lengths)),
        parts=parts,
        lengths=tuple(tuple(part) for part in lengths),
        tokens_bytes=round(size * rows / max(1, parts[0])),
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


def column_bytes(spec: str, codec: str, parts: Sequence[int], stride_rows: int) -> tuple[int, bool]:
    """Return the bytes of a column over parts of some rows, and whether that is to the byte.

    It is for dense columns, unless their codec's outcome depends on the values: then this is what they would take uncoded.
    Scalar columns are counted as their values are, before Parquet makes them smaller and with 8 bytes a row for its id.
    """
    column = Column.parse("planned", spec, codec=codec)
    if column.kind != "dense":
        return (column.row_bytes + 8) * sum(parts), False
    coded = CODECS.get(column.codec)().row_bytes(column)
    size = sum(
        ShardLayout(
            row_bytes=coded or column.row_bytes, rows=rows, stride_rows=stride_rows
        ).total_bytes
        for rows in parts
    )
    return size, coded is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Forward:
    """What running the model over all batches comes to."""

    padded_tokens: int
    """Tokens of all batches, padding included."""
    flops: float
    """Floating-point operations, a multiplication and an addition being two; of attention, all pairs of a batch."""
    seconds: float
    """On this machine, by the median of a few batches."""


Run = Callable[[torch.Tensor, torch.Tensor], object]
"""Does with a batch (ids, mask) what the ingest would."""


def forward(
    loaded: LoadedModel,
    run: Run,
    lengths: Sequence[Sequence[int]],
    batching: Batching,
    device: str = "cpu",
    *,
    longest: int | None = None,
) -> Forward:
    """Return what running the model over all batches comes to.

    Operations are counted in two runs of one sequence, of the shortest and the longest batch: they grow with the length and its
    square; ``longest`` is what the rows of an image are. Seconds are taken of batches of the shortest, the longest and a usual
    length, after one that warms up.
    """
    limit = longest or loaded.adapter.max_positions
    shapes = [one for part in lengths for one in batching.batches(part, limit)]
    if not shapes:
        return Forward(padded_tokens=0, flops=0.0, seconds=0.0)
    size = np.array([one.size for one in shapes])
    length = np.array([one.length for one in shapes])
    tokens = size * length
    sampled = sorted({int(length.min()), int(np.median(length)), int(length.max())})
    per_token = [
        _seconds(run, batching.size, one, device) / (batching.size * one) for one in sampled
    ]
    ends = [sampled[0], sampled[-1]]
    rates = [_operations(loaded, run, one, device) / one for one in ends]
    return Forward(
        padded_tokens=int(tokens.sum()),
        flops=float((np.interp(length, ends, rates) * tokens).sum()),
        seconds=float((np.interp(length, sampled, per_token) * tokens).sum()),
    )


def _example(size: int, length: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.ones((size, length), dtype=torch.long, device=device)
    return ids, torch.ones_like(ids)


def _seconds(run: Run, size: int, length: int, device: str) -> float:
    """Return the seconds of a batch, the median of a few after one that warms up."""
    took = []
    for _ in range(_REPEATS + 1):
        began = time.perf_counter()
        run(*_example(size, length, device))
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        took.append(time.perf_counter() - began)
    return float(np.median(took[1:]))


def _operations(loaded: LoadedModel, run: Run, length: int, device: str) -> int:
    """Return the operations of one sequence, attention and experts computed in plain sight: fused kernels do not say theirs."""
    model: Any = loaded.model
    attention = model.config._attn_implementation
    experts = getattr(model.config, "_experts_implementation", None)
    counter = FlopCounterMode(display=False)
    model.set_attn_implementation("eager")
    if experts is not None:
        model.set_experts_implementation("eager")
    try:
        with counter:
            run(*_example(1, length, device))
    finally:
        model.set_attn_implementation(attention)
        if experts is not None:
            model.set_experts_implementation(experts)
    return int(counter.get_total_flops())


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
    """Reads within a month from which on keeping is cheaper than computing each time; None where it never is, and where
    computing has no price."""


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
    reads = None if gain <= 0 else math.ceil((compute + write + month) / gain)
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
    columns: Mapping[str, int]
    """Bytes by column."""
    about: tuple[str, ...]
    """Columns whose bytes are not to the byte: scalar ones, and those whose codec's outcome depends on the values, which are
    counted uncoded."""
    tokens_bytes: int
    padded_tokens: int
    flops: float
    forward_seconds: float
    money: Money | None = None

    @property
    def group_bytes(self) -> int:
        """Bytes of all columns."""
        return sum(self.columns.values())

    def advice(self, part_rows: int) -> list[str]:
        """Return what a look at the numbers says."""
        said = []
        largest = max(self.columns.values(), default=0) / max(1, self.parts)
        if largest > _GIB:
            fewer = max(CHUNK_ROWS, int(part_rows * _GIB / largest) // CHUNK_ROWS * CHUNK_ROWS)
            said.append(
                f"a shard would have {largest / 1e9:.1f} GB: --part-rows {fewer} makes them about one"
            )
        return said

    def to_json(self) -> dict[str, Any]:
        """Return the estimate for programs."""
        return {**asdict(self), "group_bytes": self.group_bytes}
