"""A store as a read-only ``zarr.abc.store.Store``: whole columns in zarr-python, no byte copied, nothing filled.

What links and references cannot do, this does: a part that is missing, retired, purged or damaged is an error when a chunk
of it is read, never a fill value. Each shard's size, identity and index are checked when it is first touched, its
chunks by Zarr's own ``crc32c`` codec. Behind the last row of a part nothing is stored; there Zarr shows zeros to the end of
a chunk and fill values beyond, and ``valid`` is False.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype

from jobs.export.tree import Shown, Tree
from store import InvalidInputError, NotFoundError, Store

_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """What a key stands for: its size in bytes, and how bytes ``start:stop`` of it are read."""

    size: int
    read: Callable[[int, int], Any]


class ActlakeStore(ZarrStore):  # type: ignore[misc]
    """What zarr-python opens: ``zarr.open_group(ActlakeStore(store.open(url)), mode="r")``.

    Arrays are ``<group>/<column>``, indexed by row id, beside ``<group>/valid``. bfloat16 is shown as its bits
    (``uint16``), columns of the 8-bit codecs as their coded rows (``uint8``); their attributes say so.

    Parameters
    ----------
    opened
        A store, live or pinned. The parts are those it sees now; where several processes must see the same ones, pin it.
    groups
        Names; default: every group with dense columns. Samples, tables, codes and states are not shown.

    Raises
    ------
    JobError
        ``masked-group``, ``no-columns`` or ``not-purged``.
    CorruptError, NotFoundError
        When a chunk is read: what is there is damaged, or there is no such part.

    Examples
    --------
    >>> import numpy as np, store, zarr
    >>> s = store.create("memory://zarr-store-example", part_rows=256)
    >>> with s.writer("tokens", recipe={"from": "me"}) as w:
    ...     w.put([store.TokenSequence(token_ids=np.arange(6))])
    ...     w.seal()
    >>> s = s.refresh()
    >>> with s.writer("mine", columns={"h": "float32[16]"}, recipe={"by": "me"}) as w:
    ...     w.put(s.row_ids(), {"h": np.ones((6, 16), np.float32)})
    >>> tree = zarr.open_group(ActlakeStore(s.refresh()), mode="r")
    >>> float(tree["mine/h"][:6].sum()), int(tree["mine/valid"][:].sum())
    (96.0, 6)
    """

    supports_writes = False
    supports_deletes = False
    supports_listing = True
    supports_consolidated_metadata = False

    def __init__(self, opened: Store, groups: Sequence[str] | None = None) -> None:
        super().__init__(read_only=True)
        self._opened, self._asked = opened, None if groups is None else tuple(groups)
        self._tree = Tree(opened, groups, pin=opened.view.pin)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._opened, self._asked)

    def _same(self) -> tuple[Any, ...]:
        parts = tuple(self._tree.parts.items())  # two live stores may see more and fewer
        return self._opened.url, self._opened.id, self._opened.view.pin, self._asked, parts

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self._same() == other._same()

    def __hash__(self) -> int:
        return hash(self._same())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._opened.url!r}, pin={self._opened.view.pin!r})"

    # -- what there is ---------------------------------------------------------------------------------

    def _find(self, key: str) -> Item | None:
        """Return what a key stands for; None where the hierarchy has no such key."""
        if (document := self._tree.documents.get(key)) is not None:
            return Item(size=len(document), read=lambda start, stop: document[start:stop])
        node, _, place = key.partition("/c/")
        number = place.partition("/")[0]
        if _NUMBER.fullmatch(number) is None:
            return None
        part = int(number)
        if node in self._tree.masks and place == number:
            return self._valid(self._tree.masks[node], part)
        shown = self._tree.arrays.get(node)
        return self._shard(shown, part) if shown and key == shown.chunk(part) else None

    def _valid(self, group: str, part: int) -> Item | None:
        """Return a chunk of ``valid``; its fill value, False, is right for a part that is not there."""
        if part not in self._tree.parts[group]:
            return None
        return Item(
            size=self._opened.part_stride,
            read=lambda start, stop: self._tree.mask(group, part)[start:stop],
        )

    def _shard(self, shown: Shown, part: int) -> Item:
        view = self._opened.view
        if part not in self._tree.parts[shown.group]:
            raise self._no_part(shown.group, part)
        commit = view.commit(shown.group, part)
        key, size = commit.prefix + shown.shard, commit.objects[shown.shard].size

        def read(start: int, stop: int) -> Any:
            view.shard(commit, shown.column)  # its size, identity and index are checked on the way
            data = np.empty(stop - start, np.uint8)
            view.storage.read_into(key, [(start, data)])
            return data

        return Item(size=size, read=read)

    def _no_part(self, group: str, part: int) -> NotFoundError:
        gone = part in self._opened.view.retired(group)
        what = "is retired" if gone else "was not committed when the store was opened"
        return NotFoundError(
            f"rows of part {part} of group {group!r} of {self._opened.url} were asked for; it {what}. Nothing was "
            f"returned, no fill value either. The array {group}/valid says which rows there are.",
            kind="part-missing",
            group=group,
            part=part,
        )

    def _keys(self, prefix: str) -> Iterator[str]:
        """Yield every key that starts with ``prefix``; chunks of committed parts only."""
        yield from (key for key in self._tree.documents if key.startswith(prefix))
        for path, group in self._tree.owners.items():
            if path.startswith(prefix) or prefix.startswith(f"{path}/"):
                keys = (self._tree.chunk(path, part) for part in self._tree.parts[group])
                yield from (key for key in keys if key.startswith(prefix))

    # -- reading ---------------------------------------------------------------------------------------

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Return the bytes behind a key, or a range of them; None where the hierarchy has no such key."""
        item = self._find(key)
        if item is None:
            return None
        start, stop = _bounds(key, item.size, byte_range)
        made = (prototype or default_buffer_prototype()).buffer
        return made.from_bytes(item.read(start, stop))

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """See ``get_sync``; reads of one call run side by side in threads."""
        await self._ensure_open()
        return await asyncio.to_thread(
            self.get_sync, key, prototype=prototype, byte_range=byte_range
        )

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return the bytes behind several keys or ranges of them, in order."""
        wanted = (self.get(key, prototype, byte_range) for key, byte_range in key_ranges)
        return list(await asyncio.gather(*wanted))

    async def exists(self, key: str) -> bool:
        """Return whether a key is there: for a chunk, whether its part is committed."""
        try:
            return await asyncio.to_thread(self._find, key) is not None
        except NotFoundError:
            return False

    async def getsize(self, key: str) -> int:
        """Return the size behind a key: for a chunk, what its commit says, without touching it."""
        try:
            item = await asyncio.to_thread(self._find, key)
        except NotFoundError as error:
            raise FileNotFoundError(error.message) from error  # what Zarr's own stores raise
        if item is None:
            raise FileNotFoundError(key)
        return item.size

    async def list(self) -> AsyncIterator[str]:
        """Yield every key."""
        for key in self._keys(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Yield every key that starts with ``prefix``."""
        for key in self._keys(prefix):
            yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names directly below a path."""
        base = f"{prefix.rstrip('/')}/" if prefix else ""
        for name in dict.fromkeys(key[len(base) :].partition("/")[0] for key in self._keys(base)):
            yield name

    # -- writing is refused ----------------------------------------------------------------------------

    async def set(self, key: str, value: Buffer) -> None:  # noqa: ARG002 - the library's names
        """Refuse."""
        self._check_writable()

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:  # noqa: ARG002
        """Refuse."""
        self._check_writable()

    async def delete(self, key: str) -> None:  # noqa: ARG002
        """Refuse."""
        self._check_writable()

    async def delete_dir(self, prefix: str) -> None:  # noqa: ARG002
        """Refuse."""
        self._check_writable()

    async def clear(self) -> None:
        """Refuse."""
        self._check_writable()


def _bounds(key: str, size: int, byte_range: ByteRequest | None) -> tuple[int, int]:
    """Return which bytes a request means; one that means none is refused, for Zarr fills what comes back empty."""
    match byte_range:
        case None:
            return 0, size
        case RangeByteRequest(start=start, end=stop):
            stop = min(stop, size)
        case OffsetByteRequest(offset=start):
            stop = size
        case SuffixByteRequest(suffix=count):
            start, stop = max(size - count, 0), size
        case _:
            msg = f"Unexpected byte_range, got {byte_range}."
            raise ValueError(msg)
    if not 0 <= start < stop:
        raise InvalidInputError(
            f"{byte_range} of {key!r} was asked for, which has {size} bytes. Nothing was returned. Ask for bytes it has.",
            kind="bad-range",
        )
    return start, stop
