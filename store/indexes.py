"""Reads tables through the indexes of a group, and through the parts themselves where no index speaks for them.

An index stands in for a part where it names the hash of the commit the view sees: never for a part that came later, was
replaced, retired or dropped, nor for one of which rows are hidden. What is read is the same with and without; only how many
files are opened differs. A damaged index is an error, not a reason to read a hundred thousand files in silence.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from store import tables
from store.assets import get_asset
from store.commits import Commit
from store.errors import CorruptError, InvalidInputError, NotFoundError
from store.frames import Slice, lazy, lazy_by_latent
from store.index_records import BY_LATENT, ROWS, Index, damaged, load_indexes, starts
from store.objects import object_schema
from store.view import View

if TYPE_CHECKING:
    from store.frames import LazyFrame

Array = np.ndarray[Any, np.dtype[Any]]
_OPEN_FILES = 16
_BLOCK_ROWS = 1 << 20


def replaceable(view: View, group: str) -> dict[int, Commit]:
    """Return the commits of the parts an index may stand in for: those of which every row is to be seen."""
    return {
        part: view.commit(group, part) for part in view.parts(group) if view.visible(part) is None
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """What one index is used for: some of the parts it is a copy of."""

    index: Index
    taken: Array
    """``bool[P]``: the parts read through it."""

    @property
    def whole(self) -> bool:
        """Whether every row of the index is to be seen."""
        return bool(self.taken.all())


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """Rows of one file of an index, ``low`` to ``high``."""

    share: Share
    file: int
    low: int
    high: int


class Indexes:
    """The indexes of a view.

    Parameters
    ----------
    used
        Whether there are any; False: every part is read by itself.
    """

    def __init__(self, view: View, *, used: bool = True) -> None:
        self.view = view
        self.used = used
        self._shares: dict[tuple[str, str], tuple[list[Share], list[int]]] = {}
        self._files: OrderedDict[str, tables.TableFile] = OrderedDict()
        self._verified: set[str] = set()
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _indexes, (self.view, self.used)

    def shares(self, group: str, path: str) -> tuple[list[Share], list[int]]:
        """Return which index is used for which parts of a table, and the parts that are read by themselves.

        The index of the most parts is taken first (of equals, that of the smallest key), then those that add to it.
        """
        key = (group, path)
        with self._lock:
            if key not in self._shares:
                self._shares[key] = self._choose(group, path)
            return self._shares[key]

    def _choose(self, group: str, path: str) -> tuple[list[Share], list[int]]:
        view, shares = self.view, []
        table = path.removesuffix(".parquet")
        found = list(load_indexes(view.storage, view.store_id, group, table)) if self.used else []
        left = replaceable(view, group) if found else {}
        fits = {index.key: fitting(index, left) for index in found}
        for index in sorted(found, key=lambda one: (-fits[one.key].sum(), one.key)):
            taken = fitting(index, left)
            if taken.any():
                shares.append(Share(index=index, taken=taken))
                left = {p: c for p, c in left.items() if p not in set(index.parts[taken].tolist())}
        covered = {part for share in shares for part in share.index.parts[share.taken].tolist()}
        return shares, [part for part in view.parts(group) if part not in covered]

    # -- whole tables ----------------------------------------------------------------------------------

    def arrow(self, group: str, path: str, schema: Any) -> Any:
        """Return a whole table."""
        pieces = list(self._pieces(group, path))
        return tables.concat(pieces) if pieces else schema.empty_table()

    def _pieces(self, group: str, path: str) -> Iterator[Any]:
        shares, rest = self.shares(group, path)
        if path == f"{BY_LATENT}.parquet" and shares:
            for share in shares:
                yield from self.blocks(share, [(0, int(share.index.rows.sum()))])
            yield from (self._part(group, part, path) for part in rest)
            return
        for source in self._runs(group, path):
            if isinstance(source, Run):
                yield self.file(source.share.index, source.file).read(source.low, source.high)
            else:
                yield self._part(group, source, path)

    def lazy(self, group: str, path: str, schema: Any) -> LazyFrame:
        """Return a table as a Polars lazy frame."""
        shares, rest = self.shares(group, path)
        if path == f"{BY_LATENT}.parquet" and shares:
            return self._lazy_codes(group, path, shares, rest)
        sources: list[Any] = []
        parts: list[int] = []
        for source in [*self._runs(group, path), None]:
            if isinstance(source, int):
                parts.append(source)
                continue
            sources += self.view.lazy_sources(group, path, parts) if parts else []
            sources += [] if source is None else [self._source(source)]
            parts = []
        return lazy(sources, schema)

    def _source(self, run: Run) -> Any:
        index = run.share.index
        asset, rows = index.files[run.file]
        self.file(index, run.file)
        key = f"assets/{asset}/{ROWS}"
        source = self.view.storage.local_path(key) or self.view.storage.get(key)
        if run.high - run.low == rows:
            return source
        return Slice(source=source, low=run.low, rows=run.high - run.low)

    def _runs(self, group: str, path: str) -> Iterator[Run | int]:
        """Yield what a table is read from, in part order: rows of indexes' files, and parts by themselves."""
        shares, rest = self.shares(group, path)
        found: dict[int, Run | int] = {part: part for part in rest}
        for share in shares:
            found |= places(share)
        at: Run | int | None = None
        for place in (found[part] for part in sorted(found)):
            if isinstance(at, Run) and isinstance(place, Run) and _follows(at, place):
                at = Run(share=at.share, file=at.file, low=at.low, high=place.high)
                continue
            if at is not None:
                yield at
            at = place
        if at is not None:
            yield at

    # -- codes by latent -------------------------------------------------------------------------------

    def strongest(self, group: str, latents: Any, count: int | None) -> Any:
        """Return the ``count`` largest codes (None: all) of each of some latents; see ``Store.strongest``."""
        wanted = _latents(latents)
        path = f"{BY_LATENT}.parquet"
        shares, rest = self.shares(group, path)
        found = [piece for share in shares for piece in self._strongest(share, wanted, count)]
        for part in rest:
            data = self._part(group, part, path)
            held = tables.column(data, "latent")
            lows, highs = (np.searchsorted(held, wanted, side) for side in ("left", "right"))
            ends = highs if count is None else np.minimum(highs, lows + count)
            found += [data.slice(a, b - a) for a, b in zip(lows, ends, strict=True) if a < b]
        if not found:
            return tables.CODES.empty_table()
        data = tables.concat(found)
        return data if len(shares) == 1 and not rest else _merged(data, count)

    def _strongest(self, share: Share, wanted: Array, count: int | None) -> Iterator[Any]:
        index = share.index
        chosen = np.isin(index.latents, wanted)
        if count is None:
            yield from self.blocks(share, _ranges(index, chosen))
            return
        first = starts(index.codes)
        for at in np.flatnonzero(chosen):
            low, end, left, step = int(first[at]), int(first[at + 1]), count, count
            while left > 0 and low < end:
                data = self._seen(share, low, min(low + step, end)).slice(0, left)
                low, left, step = low + step, left - len(data), 2 * step
                yield data

    def _lazy_codes(
        self, group: str, path: str, shares: Sequence[Share], rest: Sequence[int]
    ) -> LazyFrame:
        latents = np.unique(np.concatenate([share.index.latents for share in shares]))

        def read(wanted: Array) -> Iterator[Any]:
            for share in shares:
                chosen = wanted[np.searchsorted(latents, share.index.latents)]
                yield from self.blocks(share, _ranges(share.index, chosen))
            yield from (self._part(group, part, path) for part in rest)

        return lazy_by_latent(latents, read)

    def blocks(self, share: Share, ranges: Sequence[tuple[int, int]]) -> Iterator[Any]:
        """Yield the rows of some ranges that are to be seen, about a million at once."""
        held: list[Any] = []
        rows = 0
        for low, high in ranges:
            for at in range(low, high, _BLOCK_ROWS):
                held.append(self._seen(share, at, min(at + _BLOCK_ROWS, high)))
                rows += len(held[-1])
                if rows >= _BLOCK_ROWS:
                    yield tables.concat(held)
                    held, rows = [], 0
        if held:
            yield tables.concat(held)

    def _seen(self, share: Share, low: int, high: int) -> Any:
        """Return the rows ``low`` to ``high`` of an index that belong to parts read through it."""
        index, pieces = share.index, []
        first = index.file_starts
        at = int(np.searchsorted(first, low, side="right")) - 1
        while low < high:
            end = min(high, int(first[at + 1]))
            pieces.append(self.file(index, at).read(low - int(first[at]), end - int(first[at])))
            low, at = end, at + 1
        data = tables.concat(pieces) if pieces else tables.CODES.empty_table()
        if share.whole:
            return data
        part = tables.column(data, "row") // self.view.stride_rows
        return tables.masked(data, np.isin(part, index.parts[share.taken]))

    # -- files -----------------------------------------------------------------------------------------

    def _part(self, group: str, part: int, path: str) -> Any:
        return self.view.table(self.view.commit(group, part), path)

    def file(self, index: Index, number: int) -> tables.TableFile:
        """Return an open file of an index, checked whole when this view first touches it."""
        asset, rows = index.files[number]
        with self._lock:
            if asset not in self._files:
                self._files[asset] = self._open(index, asset, rows)
                if len(self._files) > _OPEN_FILES:
                    self._files.popitem(
                        last=False
                    )  # another thread may be reading it: closed when nobody has it
            self._files.move_to_end(asset)
            return self._files[asset]

    def _open(self, index: Index, asset: str, rows: int) -> tables.TableFile:
        storage, key = self.view.storage, f"assets/{asset}/{ROWS}"
        local = storage.local_path(key)
        try:
            source: Any = local
            if local is None or asset not in self._verified:
                source = get_asset(storage, asset)[ROWS]
                group = self.view.group(index.group)
                tables.check_bytes(source, key, rows, object_schema(group, index.path))
            file = tables.TableFile(local or source, key)
        except (CorruptError, NotFoundError, KeyError) as error:
            why = f"{key} is gone or damaged ({getattr(error, 'kind', 'not listed')})"
            raise damaged(storage, index.key, why) from error
        if file.rows != rows:
            raise damaged(storage, index.key, f"{key} holds {file.rows} rows where it says {rows}")
        self._verified.add(asset)
        return file


def _indexes(view: View, used: bool) -> Indexes:  # noqa: FBT001 - pickle gives no names
    return Indexes(view, used=used)


def fitting(index: Index, commits: dict[int, Commit]) -> Array:
    """Return which of an index's parts are as they were when it was made, ``bool[P]``."""
    entries = zip(index.parts.tolist(), index.commits, strict=True)
    return np.array([p in commits and commits[p].hash == commit for p, commit in entries], bool)


def places(share: Share) -> dict[int, Run]:
    """Return where an index has the rows of each part that is read through it and has any."""
    index = share.index
    first, files = starts(index.rows), index.file_starts
    at = np.searchsorted(files, first[:-1], side="right") - 1
    return {
        int(index.parts[i]): Run(
            share=share,
            file=int(at[i]),
            low=int(first[i] - files[at[i]]),
            high=int(first[i + 1] - files[at[i]]),
        )
        for i in np.flatnonzero(share.taken & (index.rows > 0))
    }


def _follows(one: Run, other: Run) -> bool:
    return one.share is other.share and one.file == other.file and one.high == other.low


def _ranges(index: Index, chosen: Array) -> list[tuple[int, int]]:
    """Return the row ranges of some latents, neighbours joined."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], chosen, [False]]).astype(np.int8)))
    first = starts(index.codes)
    return [(int(first[a]), int(first[b])) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _latents(latents: Any) -> Array:
    wanted = np.asarray(latents).reshape(-1)
    if wanted.size and (wanted.dtype.kind not in "iu" or wanted.min() < 0 or wanted.max() >> 32):
        raise InvalidInputError(
            f"latents were given as {wanted.dtype} from {wanted.min()} to {wanted.max()}; they are integers from 0 that "
            "fit in uint32. Nothing was read. Mend the call.",
            kind="bad-latents",
        )
    # np.unique would import numpy.ma first
    return np.array(sorted(set(wanted.tolist())), np.uint32)


def _merged(data: Any, count: int | None) -> Any:
    """Return codes by (latent, −value, row), the first ``count`` of each latent."""
    row, latent, value = (tables.column(data, name) for name in ("row", "latent", "value"))
    order = np.lexsort((row, -value, latent))
    if count is not None:
        rank = np.arange(len(order)) - np.searchsorted(latent[order], latent[order])
        order = order[rank < count]
    return data.take(order)
