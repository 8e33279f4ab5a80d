"""A disk that loses power: of what was not synced it keeps what luck decides, as a POSIX file system may.

The bytes of a file are durable from its fdatasync or fsync on; a name (made, linked, removed) from the fsync of its
folder on. Nothing else is promised here, neither that names come back in the order they were made nor that bytes come
with their name: real file systems are kinder, each in its own way. ``Process`` is a ``System`` on such a disk.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from store.system import Entry, System
from store.testing.faults import Killed, Plan


@dataclass(eq=False)
class File:
    """Bytes as processes see them, and as they are on the disk."""

    data: bytes = b""
    durable: bytes = b""
    links: int = 0
    modified: float = 0.0


@dataclass(eq=False)
class Folder:
    """Names as processes see them; and for each that was changed since the last fsync, what it stood for before."""

    entries: dict[str, Node] = field(default_factory=dict)
    unsynced: dict[str, list[Node | None]] = field(default_factory=dict)
    """Name → what it stood for at the fsync, then after each change."""

    def set(self, name: str, node: Node | None) -> None:
        """Let a name stand for something, or for nothing any more."""
        self.unsynced.setdefault(name, [self.entries.get(name)]).append(node)
        if node is None:
            del self.entries[name]
        else:
            self.entries[name] = node


Node = File | Folder


class Luck(Protocol):
    """What survives."""

    def name(self, states: Sequence[Node | None]) -> Node | None:
        """Return what a name stands for afterwards: one of what it stood for since it was durable."""

    def data(self, file: File) -> bytes:
        """Return what unsynced bytes have become."""


@dataclass(frozen=True, slots=True)
class Extreme:
    """The same for everything: a corner of what may happen."""

    made: bool
    """Names made since the last fsync are kept."""
    removed: bool
    """Names removed since the last fsync stay removed."""
    fill: bytes | None = None
    """Unsynced bytes: lost (None), or as many of this one."""

    def name(self, states: Sequence[Node | None]) -> Node | None:
        """See ``Luck``."""
        for node in reversed(states):
            if (self.removed if node is None else self.made) or node is states[0]:
                return node
        return states[0]

    def data(self, file: File) -> bytes:
        """See ``Luck``."""
        return file.durable if self.fill is None else self.fill * len(file.data)


LOSES_ALL = Extreme(made=False, removed=False)
EXTREMES: Mapping[str, Luck] = {
    "loses all": LOSES_ALL,
    "keeps names, not bytes": Extreme(made=True, removed=True),
    "keeps names and zeros": Extreme(made=True, removed=False, fill=b"\0"),
    "removes and makes nothing": Extreme(made=False, removed=True),
}


class Chance:
    """Each name and each file for itself, by a seed: bytes whole, cut, zeros, a mixture, or nothing."""

    def __init__(self, seed: int | str) -> None:
        self._rng = random.Random(f"power {seed}")

    def name(self, states: Sequence[Node | None]) -> Node | None:
        """See ``Luck``."""
        return self._rng.choice(states)

    def data(self, file: File) -> bytes:
        """See ``Luck``."""
        size = len(file.data)
        cut = self._rng.randint(0, size)
        return self._rng.choice(
            [
                file.data,
                file.durable,
                file.data[:cut],
                bytes(size),
                bytes(cut),
                file.data[:cut] + bytes(size - cut),
            ]
        )


class Disk:
    """Folders and files, seen and durable, shared by processes.

    Parameters
    ----------
    watch
        Called before every call that changes something, while nothing else goes on.
    """

    def __init__(self, root: Folder | None = None, *, now: float = 0.0) -> None:
        self.root = Folder() if root is None else root
        self.now = now
        self.watch: Callable[[], None] = lambda: None

    def after_power_cut(self, luck: Luck) -> Disk:
        """Return a disk with what is left when power comes back; this one is as it was."""
        files: dict[File, File] = {}

        def left(node: Node) -> Node:
            if isinstance(node, Folder):
                kept = dict(node.entries)
                for name, states in sorted(node.unsynced.items()):
                    kept.pop(name, None)
                    if (survivor := luck.name(states)) is not None:
                        kept[name] = survivor
                return Folder({name: left(kept[name]) for name in sorted(kept)})
            if node not in files:
                data = node.durable if node.data is node.durable else luck.data(node)
                files[node] = File(data, data, 0, node.modified)
            files[node].links += 1
            return files[node]

        root = left(self.root)
        assert isinstance(root, Folder)
        return Disk(root, now=self.now)

    def contents(self) -> frozenset[tuple[str, bytes | None]]:
        """Return (path, bytes) of every file as seen, and (path, None) of every folder."""

        def walk(folder: Folder, base: str) -> Iterator[tuple[str, bytes | None]]:
            for name, node in folder.entries.items():
                yield f"{base}/{name}", node.data if isinstance(node, File) else None
                if isinstance(node, Folder):
                    yield from walk(node, f"{base}/{name}")

        return frozenset(walk(self.root, ""))


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    node: Node

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """See ``Entry``."""
        del follow_symlinks
        return isinstance(self.node, Folder)


class Process(System):
    """One process on such a disk; it may die at its n-th changing call (see ``Plan``)."""

    def __init__(self, disk: Disk, plan: Plan | None = None) -> None:
        self.disk = disk
        self.plan = Plan() if plan is None else plan
        self._open: dict[int, Node] = {}

    def _change(self, what: str, call: Callable[[], None]) -> None:
        def done() -> None:
            self.disk.watch()
            self.disk.now += 1e-3
            call()

        self.plan.run(what, done)

    def _alive(self) -> None:
        if self.plan.dead:
            raise Killed

    def _folder(self, path: Path) -> Folder:
        """Return the folder a path names."""
        self._alive()
        node: Node | None = self.disk.root
        for name in path.parts[1:]:
            if not isinstance(node, Folder):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
            node = node.entries.get(name)
            if node is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        if not isinstance(node, Folder):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        return node

    def _node(self, path: Path) -> Node:
        if path == path.parent:
            return self.disk.root
        node = self._folder(path.parent).entries.get(path.name)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return node

    def _free(self, path: Path) -> Folder:
        folder = self._folder(path.parent)
        if path.name in folder.entries:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        return folder

    def _file(self, fd: int) -> File:
        self._alive()
        node = self._open[fd]
        if isinstance(node, Folder):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        return node

    # -- the calls -------------------------------------------------------------------------------------

    def open(self, path: Path | str, flags: int, mode: int = 0o777) -> int:
        """See ``System``."""
        del mode
        path = Path(path)
        if flags & os.O_CREAT:
            assert flags & os.O_EXCL
            node: Node = File(links=1)
            self._change(f"open {path.name}", lambda: self._add(path, node))
        else:
            node = self._node(path)
        fd = max(self._open, default=2) + 1
        self._open[fd] = node
        return fd

    def _add(self, path: Path, node: Node) -> None:
        if isinstance(node, File):
            node.modified = self.disk.now
        self._free(path).set(path.name, node)

    def close(self, fd: int) -> None:
        """See ``System``."""
        self._alive()
        del self._open[fd]

    def write(self, fd: int, data: memoryview) -> int:
        """See ``System``."""
        file = self._file(fd)

        def append() -> None:
            file.data, file.modified = file.data + bytes(data), self.disk.now

        self._change("write", append)
        return len(data)

    def read(self, fd: int, size: int) -> bytes:
        """See ``System``; files here are read once, from their beginning."""
        return self._file(fd).data[:size]

    def preadv(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        """See ``System``."""
        data, at = self._file(fd).data, offset
        for buffer in buffers:
            found = data[at : at + len(buffer)]
            buffer[: len(found)] = found
            at += len(found)
        return at - offset

    def begin_read(self, fd: int, offset: int, size: int) -> None:
        """See ``System``."""
        del offset, size
        self._file(fd)

    def mmap(self, fd: int) -> memoryview:
        """See ``System``."""
        return memoryview(self._file(fd).data)

    def begin_sync(self, fd: int, offset: int, size: int) -> None:
        """See ``System``; what promises nothing changes nothing."""
        del offset, size
        self._file(fd)

    def fdatasync(self, fd: int) -> None:
        """See ``System``."""
        file = self._file(fd)

        def sync() -> None:
            file.durable = file.data

        self._change("fdatasync", sync)

    def fsync(self, fd: int) -> None:
        """See ``System``."""
        node = self._open[fd]
        if isinstance(node, File):
            self.fdatasync(fd)
        else:
            self._change("fsync", node.unsynced.clear)

    def fstat(self, fd: int) -> os.stat_result:
        """See ``System``."""
        self._alive()
        return _status(self._open[fd])

    def stat(self, path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        """See ``System``."""
        del follow_symlinks
        self._alive()
        return _status(self._node(path))

    def link(self, source: Path, target: Path) -> None:
        """See ``System``."""

        def link() -> None:
            node = self._node(source)
            assert isinstance(node, File)
            self._free(target).set(target.name, node)
            node.links += 1

        self._change(f"link {target.name}", link)

    def unlink(self, path: Path) -> None:
        """See ``System``."""

        def unlink() -> None:
            node = self._node(path)
            if isinstance(node, Folder):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
            node.links -= 1
            self._folder(path.parent).set(path.name, None)

        self._change(f"unlink {path.name}", unlink)

    def mkdir(self, path: Path) -> None:
        """See ``System``."""
        self._change(f"mkdir {path.name}", lambda: self._add(path, Folder()))

    def rmdir(self, path: Path) -> None:
        """See ``System``."""

        def rmdir() -> None:
            if self._folder(path).entries:
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))
            self._folder(path.parent).set(path.name, None)

        self._change(f"rmdir {path.name}", rmdir)

    def scandir(self, path: Path) -> AbstractContextManager[Iterator[Entry]]:
        """See ``System``."""
        found = [_Entry(name, node) for name, node in self._folder(path).entries.items()]
        return contextlib.nullcontext(iter(found))


def _status(node: Node) -> os.stat_result:
    if isinstance(node, Folder):
        return os.stat_result((stat.S_IFDIR | 0o755, 0, 0, 1, 0, 0, 0, 0, 0, 0))
    times = (node.modified, node.modified, node.modified)
    mode = stat.S_IFREG | 0o644
    return os.stat_result((mode, 0, 0, node.links, 0, 0, len(node.data), *times))
