"""The opened store: row ranges, gathers, sequences, windows, tables, pins, digests, assets, writers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from store import layout
from store.assets import get_asset, put_asset
from store.buffers import Pool
from store.conditions import Condition
from store.coverage import Coverage
from store.digest import digest
from store.groups import seal
from store.indexes import Indexes
from store.pins import pin_id, write_pin
from store.rows import LATENT_ENDING, Rows, table_files, table_place
from store.schema import Column, Group
from store.storage import Storage
from store.tokens import TokensWriter
from store.view import View
from store.windows import Windows, where_groups
from store.writer import Writer

if TYPE_CHECKING:
    from store.frames import LazyFrame

Array = np.ndarray[Any, np.dtype[Any]]


class Store:
    """One wide table of rows; columns come in groups.

    A column is addressed ``group:site``, or ``site`` where only one group has it. bfloat16 comes back as
    float32 (exact), or as ``uint16`` bits with ``raw=True``.
    """

    def __init__(
        self, storage: Storage, record: Mapping[str, Any], pin: str | None, *, indexes: bool = True
    ) -> None:
        self._storage = storage
        self.id: str = record["store"]
        self.part_stride: int = record["part_stride"]
        self.part_rows: int = record["part_rows"]
        self.view = View(storage, self.id, self.part_stride, pin)
        self._rows = Rows(view=self.view)
        self._indexes = Indexes(self.view, used=indexes)

    @property
    def url(self) -> str:
        """Where the store is."""
        return self._storage.url

    def refresh(self) -> Store:
        """Return the store as it is now (where it was opened with a pin: what of the pin is left)."""
        return self._reopened(self.view.pin, indexes=self._indexes.used)

    def live(self) -> Store:
        """Return the store as it is now, whatever pin it was opened with."""
        return self._reopened(None, indexes=self._indexes.used)

    def _reopened(self, pin: str | None, *, indexes: bool) -> Store:
        record = {"store": self.id, "part_stride": self.part_stride, "part_rows": self.part_rows}
        return Store(self._storage, record, pin, indexes=indexes)

    def without_indexes(self) -> Store:
        """Return the store, reading every part's own files: where an index is damaged, or for comparison."""
        return self._reopened(self.view.pin, indexes=False)

    # -- what is there ---------------------------------------------------------------------------------

    @property
    def groups(self) -> Mapping[str, Group]:
        """The groups by name, tokens first."""
        return self.view.groups

    @property
    def sites(self) -> list[str]:
        """Addresses of all dense columns."""
        return [
            f"{group.name}:{column.name}"
            for group in self.groups.values()
            for column in group.columns.values()
            if column.kind == "dense"
        ]

    @property
    def coverage(self) -> Mapping[str, Coverage]:
        """How far each group reaches."""
        return {name: self.view.coverage(name) for name in self.groups}

    def column(self, address: str) -> Column:
        """Return a column's declaration."""
        return self.view.resolve(address)[1]

    # -- rows ------------------------------------------------------------------------------------------

    def row_ids(self, rows: slice = slice(None), group: str = "tokens") -> Array:
        """Return the row ids (``int64``) of a range of a group's rows, counted in part order."""
        return self._rows.row_ids(rows, group)

    def read(
        self,
        column: str,
        rows: slice = slice(None),
        *,
        raw: bool = False,
        out: Array | None = None,
    ) -> Array:
        """Return a range of a column's rows, ``[R, *shape]``, counted in part order without gaps.

        ``out`` is filled and returned where it is given (else ``bad-out``: C-contiguous, of that shape and dtype);
        reading into memory that was used before is faster.
        """
        return self._rows.read(column, rows, raw=raw, out=out)

    def gather(
        self, column: str, row_ids: Any, *, raw: bool = False, out: Array | None = None
    ) -> Array:
        """Return the rows of given ids in the given order, ``[R, *shape]``, in ``out`` if given; repeats are fine.

        Raises
        ------
        NotFoundError
            ``row-missing``: the column does not hold one of the rows.
        """
        return self._rows.gather(column, row_ids, raw=raw, out=out)

    def sequences(self, column: str, seq_ids: Any, *, raw: bool = False) -> list[Array]:
        """Return whole sequences of a column, one array ``[T, *shape]`` each.

        Raises
        ------
        InvalidInputError
            ``masked-group``: the group holds a sample of the rows, not whole sequences.
        """
        return self._rows.sequences(column, seq_ids, raw=raw)

    def windows(
        self,
        columns: Sequence[str],
        *,
        seed: int,
        epoch: int = 0,
        window_rows: int | None = None,
        where: Sequence[Condition] = (),
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        raw: bool = False,
        pool: Pool | None = None,
    ) -> Windows:
        """Return one epoch of shuffled windows over the parts all columns share.

        Parameters
        ----------
        columns
            Addresses of dense or scalar columns.
        window_rows
            Rows held at once; all rows make a full shuffle. Default: min(all rows, a quarter of the free
            memory, 4 M rows).
        where
            AND-list of ``(column, operator, value)`` over the tokens' and scalar columns, applied before
            positions are counted.
        start
            Position to begin at.
        rank, world
            Rank ``r`` gets the positions ≡ r modulo world.
        pool
            Memory of windows that nobody holds any more, for several epochs; default: one of this epoch's own. It counts as
            taken where ``window_rows`` is left to the free memory: then say it, or epochs may differ in their windows.
        """
        resolved = [(name, *self.view.resolve(name)) for name in columns]
        groups = {
            "tokens",
            *(group.name for _, group, _ in resolved),
            *where_groups(self.view, where),
        }
        return Windows(
            view=self.view,
            columns=resolved,
            seed=seed,
            epoch=epoch,
            window_rows=window_rows,
            where=tuple(where),
            start=start,
            rank=rank,
            world=world,
            raw=raw,
            pin=self.pin_id(sorted(groups)),
            pool=Pool() if pool is None else pool,
        )

    def partial(self, column: str, part: int) -> dict[str, Array]:
        """Return the state a partial column holds of one part: name → array, read-only.

        Raises
        ------
        InvalidInputError
            ``column-kind``: the column is not partial.
        NotFoundError
            ``part-missing``: the part is not committed.
        """
        return self._rows.partial(column, part)

    # -- tables ----------------------------------------------------------------------------------------

    def arrow(self, name: str) -> Any:
        """Return a whole table as ``pyarrow.Table``: tokens, sequences, documents, or a group's name."""
        return self._indexes.arrow(*table_place(self.view, name))

    def table(self, name: str) -> LazyFrame:
        """Return a table as a Polars lazy frame over verified files (``<group>_by_latent`` in no promised order)."""
        return self._indexes.lazy(*table_place(self.view, name))

    def strongest(self, group: str, latents: Any, count: int | None = None) -> Any:
        """Return the largest codes of some latents, ``count`` of each (None: all), sorted by (latent, −value, row).

        An Arrow table; with an index (``actlake compact``) one or two row groups are read for each latent.
        """
        place, _, _ = table_place(self.view, f"{group}{LATENT_ENDING}")
        return self._indexes.strongest(place, latents, count)

    def files(self, name: str) -> list[str]:
        """Return a table's committed, verified Parquet files in part order, for other tools to read."""
        return table_files(self.view, name)

    def tokens(self) -> LazyFrame:
        """Return the tokens table as a Polars lazy frame."""
        return self.table("tokens")

    # -- pins, digests, assets -------------------------------------------------------------------------

    def pin_id(self, groups: Sequence[str] | None = None) -> str:
        """Return the id the pin of tokens and some groups (default: all) has, without writing it."""
        names = sorted({"tokens", *(groups or self.groups)})
        return pin_id(self.view.entries(names), self.view.tombstones)

    def pin(self, groups: Sequence[str] | None = None) -> str:
        """Write the pin of tokens and some groups (default: all) and return its id."""
        names = sorted({"tokens", *(groups or self.groups)})
        entries = self.view.entries(names)
        for name in names:  # a pin must not outlive a record it lists
            self._storage.settle(layout.commits_prefix(name))
        return write_pin(self._storage, self.id, entries, self.view.tombstones)

    def digest(self, groups: Sequence[str] | None = None) -> str:
        """Return the logical digest: equal digests mean logically identical contents."""
        return digest(self.view, list(groups or self.groups))

    def put_asset(self, files: Mapping[str, bytes]) -> str:
        """Write content-addressed files and return the asset's id."""
        return put_asset(self._storage, files)

    def asset(self, asset: str) -> dict[str, bytes]:
        """Return an asset's files, checked."""
        return get_asset(self._storage, asset)

    def seal(self, group: str) -> bool:
        """Seal a group where every part of sealed tokens is committed; return whether it is sealed."""
        view = self.refresh().view
        tokens, parts = view.sealed("tokens"), view.parts(group)
        if tokens is None:
            return False
        retired = view.retired(group) & set(range(tokens["parts"]))
        if len(parts) + len(retired) != tokens["parts"]:
            return False
        rows = sum(view.commit(group, part).slots for part in parts)
        # Whoever sealed the tokens may have died before that was durable.
        self._storage.settle(layout.commits_prefix("tokens"))
        seal(self._storage, self.id, group, tokens["parts"], rows, retired=bool(retired))
        return True

    # -- writing ---------------------------------------------------------------------------------------

    @overload
    def writer(
        self,
        group: Literal["tokens"],
        *,
        recipe: Mapping[str, Any],
        provenance: Mapping[str, Any] | None = None,
    ) -> TokensWriter: ...

    @overload
    def writer(
        self,
        group: str,
        *,
        columns: Mapping[str, str],
        recipe: Mapping[str, Any],
        codec: str = "raw",
        masked: bool = False,
        allow_nonfinite: bool | Collection[str] = False,
        provenance: Mapping[str, Any] | None = None,
    ) -> Writer: ...

    def writer(
        self,
        group: str,
        *,
        recipe: Mapping[str, Any],
        columns: Mapping[str, str] | None = None,
        codec: str = "raw",
        masked: bool = False,
        allow_nonfinite: bool | Collection[str] = False,
        provenance: Mapping[str, Any] | None = None,
    ) -> Writer | TokensWriter:
        """Return the writer of a group: ``tokens``, which defines the rows, or one aligned to them.

        Parameters
        ----------
        columns
            Name to ``"bfloat16[4096]"``, ``"float32"`` or ``"codes"``; not for ``tokens``, whose are fixed.
        recipe
            Everything needed to make the group again (JSON); a group of that name with another recipe is
            refused.
        masked
            The group holds a sample of the rows.
        allow_nonfinite
            Accept NaN and infinities, in all columns or in those named; else a part that holds one is refused.
        provenance
            Facts about this run that do not identify the data (hardware, threads, versions).

        Examples
        --------
        >>> import numpy as np, store
        >>> s = store.create("memory://writer-example", part_rows=256)
        >>> with s.writer("tokens", recipe={"from": "me"}) as w:
        ...     w.put([store.TokenSequence(token_ids=np.arange(6))])
        ...     w.seal()
        >>> s = s.refresh()
        >>> with s.writer("mine", columns={"h": "float32[16]"}, recipe={"by": "me"}) as w:
        ...     w.put(s.row_ids(), {"h": np.ones((6, 16), np.float32)})
        >>> float(s.refresh().read("h").sum())
        96.0
        """
        live = self if self.view.pin is None else self.live()
        if group == "tokens":
            sized = {**recipe, "part_rows": self.part_rows}
            return TokensWriter(live, recipe=sized, provenance=provenance)
        return Writer(
            live,
            group,
            columns={
                name: Column.parse(name, spec, codec=codec)
                for name, spec in (columns or {}).items()
            },
            recipe={**recipe, **({"mask": recipe.get("mask") or "rows"} if masked else {})},
            allow_nonfinite=allow_nonfinite,
            provenance=provenance or {},
        )
