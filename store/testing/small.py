"""Small stores whose every value is a function of its row id, so that any row can be checked alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from store.opening import create
from store.reader import Store
from store.schema import Column
from store.summary import bfloat16_bits, float32_of_bits
from store.tokens import Document, TokenSequence
from store.values import Codes

Array = np.ndarray[Any, np.dtype[Any]]
PART_ROWS, PART_STRIDE = 512, 1024
LENGTHS = (90, 200, 150, 256, 256, 70, 31, 300, 120, 44, 60, 77)
DENSE: Mapping[str, str] = {"h": "bfloat16[16]", "f": "float32[4,5]", "i": "int8[32]"}
SCALARS: Mapping[str, str] = {"loss": "float32", "count": "int32", "triple": "bfloat16[3]"}


def words(row_ids: Any, width: int, seed: int = 0) -> Array:
    """Return ``uint64[R, width]``: a hash of (row id, element, seed)."""
    rows: Array = np.asarray(row_ids).astype(np.uint64).reshape(-1, 1)
    values: Array = (
        rows * np.uint64(1_000_003) + np.arange(width, dtype=np.uint64) + np.uint64(seed << 40)
    )
    values = (values ^ (values >> np.uint64(31))) * np.uint64(0xD6E8FEB86659FD93)
    return np.asarray(values ^ (values >> np.uint64(29)))


def values_of(row_ids: Any, column: Column, seed: int = 0) -> Array:
    """Return the values ``[R, *shape]`` a column holds at some rows, as ``put`` takes and ``read`` returns them."""
    width = int(np.prod(column.shape, dtype=np.int64))
    bits = words(row_ids, width, seed + len(column.name))
    dtype = np.dtype(np.float32) if column.dtype == "bfloat16" else column.stored
    if dtype.kind == "f":
        values = ((bits >> np.uint64(40)).astype(np.float64) / (1 << 22) - 2.0).astype(dtype)
        if column.dtype == "bfloat16":
            values = float32_of_bits(bfloat16_bits(values))
    else:
        values = (bits >> np.uint64(17)).astype(dtype)
    return values.reshape(-1, *column.shape)


def codes_of(row_ids: Any, latents: int = 300) -> Codes:
    """Return two or three codes for each row."""
    ids = np.asarray(row_ids, np.int64)
    counts = 2 + (ids % 2)
    row = np.repeat(ids, counts)
    nth = np.concatenate([np.arange(n) for n in counts]) if len(ids) else np.empty(0, np.int64)
    bits = words(row, 1, 9)[:, 0]
    latent = ((bits >> np.uint64(20)).astype(np.int64) + nth * 101) % latents
    value = ((bits >> np.uint64(44)).astype(np.float32) + 1) / np.float32(1 << 20)
    return Codes(row=row, latent=latent.astype(np.uint32), value=value)


def state_of(part: int) -> dict[str, Array]:
    """Return a partial state that is a function of its part."""
    bits = words(np.arange(3) + 1000 * part, 4, 5)
    return {
        "count": np.array([part + 1], np.int64),
        "h/mean": (bits >> np.uint64(40)).astype(np.float64) / (1 << 22) - 2.0,
        "nothing": np.empty((0, 2)),
        "scalar": np.array(-np.inf, np.float32),
    }


def sequences_of(lengths: Sequence[int], *, first: int = 0) -> Iterator[TokenSequence]:
    """Yield one sequence a length, each of a document of its own; every fifth is for validation."""
    for number, length in enumerate(lengths, start=first):
        text = "".join(chr(97 + (number + at) % 26) for at in range(length))
        split = int(number % 5 == 4)
        document = Document(doc_id=number, name=f"doc-{number}", text=text, split=split)
        flags = np.zeros(length, np.uint16)
        flags[0] = 2
        flags[-1] |= 1
        yield TokenSequence(
            token_ids=(np.arange(length) * 7 + number * 13) % 1000,
            spans=[(document, 0, length)],
            char_start=np.arange(length),
            char_end=np.arange(1, length + 1),
            flags=flags,
            split=split,
        )


def tokens_store(
    url: Any,
    lengths: Sequence[int] = LENGTHS,
    *,
    part_rows: int = PART_ROWS,
    part_stride: int = PART_STRIDE,
    seal: bool = True,
) -> Store:
    """Make a store with a tokens group only."""
    made = create(url, part_rows=part_rows, part_stride=part_stride)
    with made.writer("tokens", recipe={"source": "small", "lengths": list(lengths)}) as writer:
        for number, sequence in enumerate(sequences_of(lengths)):
            writer.put([sequence], position=number + 1)
        writer.seal() if seal else writer.flush()
    return made.refresh()


def fill(
    store: Store, group: str, columns: Mapping[str, str], *, seed: int = 0, **recipe: Any
) -> Store:
    """Write a group of dense and scalar columns over all rows; return the store as it then is."""
    recipe = {"by": "small", "seed": seed, **recipe}
    with store.writer(group, columns=columns, recipe=recipe) as writer:
        for part in store.view.parts("tokens"):
            ids = part * store.part_stride + np.arange(store.view.commit("tokens", part).rows)
            declared = writer.group.columns.values()
            writer.put(ids, {column.name: values_of(ids, column, seed) for column in declared})
    return store.refresh()


def small_store(url: Any, lengths: Sequence[int] = LENGTHS, **sizes: Any) -> Store:
    """Make a sealed store: tokens, ``acts`` (dense), ``labels`` (scalar), ``codes``, ``sample`` (masked), ``stat``."""
    made = fill(tokens_store(url, lengths, **sizes), "acts", DENSE)
    made = fill(made, "labels", SCALARS)
    ids = made.row_ids()
    with made.writer("codes", columns={"codes": "codes"}, recipe={"by": "small"}) as writer:
        writer.put(ids, {"codes": codes_of(ids)})
    kept = ids[words(ids, 1, 3)[:, 0] % np.uint64(3) == 0]
    columns = {"h": "bfloat16[16]", "y": "float32"}
    with made.writer("sample", columns=columns, recipe={"by": "small"}, masked=True) as writer:
        declared = writer.group.columns
        writer.put(kept, {name: values_of(kept, column) for name, column in declared.items()})
    with made.writer("stat", columns={"state": "partial"}, recipe={"by": "small"}) as writer:
        for part in made.view.parts("tokens"):
            writer.put_partial(part, {"state": state_of(part)})
    return made.refresh()
