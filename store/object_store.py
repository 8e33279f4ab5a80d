"""Storage on object stores, through fsspec: ``s3://``, ``gs://``, ``az://``. The only door to fsspec.

Object stores write whole objects atomically, so only ``create`` needs more: a conditional put, which these services
have. Where its answer is lost the caller reads back; here, whatever may pass is tried again a few times and then raised as
``unavailable``. Listings are never cached. Ranges of one call are read at once, neighbours in one request.

``s3`` is tested against a server in every run of the slow tests; ``gs`` and ``az`` against emulators of those services, where
they are installed (``store/testing/servers.py``), and against no service itself.

Credentials and endpoints are fsspec's and the services' own affair (``AWS_…`` variables, ``FSSPEC_S3_ENDPOINT_URL``, …).
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import functools
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from store.checksum import extend
from store.errors import InvalidInputError, StoreError, UnavailableError
from store.storage import ReadInto, Written, check_key, missing, short

PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs"}
"""Scheme to the package that speaks it; all three have conditional puts."""
TRIES = 6
FIRST_WAIT_SECONDS = 0.1
GAP_BYTES = 1 << 20
"""Ranges no farther apart are read in one request: about what a request's latency is worth at 100 MB/s."""
REQUEST_BYTES = 16 << 20
"""A request reads at most this: several connections are faster than one."""
CONNECTIONS = 64
"""Requests under way at once at most."""
CALL_BYTES = 8 << 20
"""Read at once by one call, so that what a call holds does not grow with the column's width."""
CALLS_AT_ONCE = 16
"""Together they hold 128 MiB."""
PART_BYTES = 16 << 20
"""Parts of a multipart upload."""
_PASSING = {errno.EBUSY, errno.EIO, getattr(errno, "EREMOTEIO", errno.EIO), errno.ETIMEDOUT}
_TAKEN = {errno.EINVAL, errno.EEXIST}  # a 412 without its reason comes as EINVAL


class ObjectStorage:
    """A prefix of a bucket behind ``Storage``.

    Parameters
    ----------
    url
        ``s3://bucket/prefix`` and the like.
    options
        Passed to the file system (``endpoint_url``, ``key``, …); default: what the environment says.

    Raises
    ------
    InvalidInputError
        ``missing-package``: the package that speaks the scheme is not installed.
    """

    call_bytes = CALL_BYTES
    calls_at_once = CALLS_AT_ONCE

    def __init__(self, url: str, **options: Any) -> None:
        self.url = url.rstrip("/")
        self.scheme, _, path = self.url.partition("://")
        self._root = path
        # The library's own limit is 10 connections: with 100 ms a request it would cap a reader at 160 chunks/s.
        usual = (
            {"config_kwargs": {"max_pool_connections": CONNECTIONS}} if self.scheme == "s3" else {}
        )
        self._options = {**usual, **options}
        self._mine: tuple[int, Any] | None = None
        self._lock = threading.Lock()
        if not path.partition("/")[0]:
            raise InvalidInputError(
                f"{url!r} names no bucket. Nothing was read or written. Say {self.scheme}://BUCKET/PREFIX.",
                kind="unsupported-url",
            )
        self._fs()

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened, (self.url, self._options)

    def _fs(self) -> Any:
        """Return the file system; each process has its own, for they hold threads and connections."""
        with self._lock:
            if self._mine is None or self._mine[0] != os.getpid():
                import fsspec

                try:
                    made = fsspec.filesystem(
                        self.scheme,
                        skip_instance_cache=True,
                        use_listings_cache=False,
                        **self._options,
                    )
                except ImportError as error:
                    package = PACKAGES[self.scheme]
                    raise InvalidInputError(
                        f"{self.url} needs the package {package!r}, which is not installed. Nothing was read or "
                        f"written. Install it: pip install {package}",
                        kind="missing-package",
                    ) from error
                self._mine = (os.getpid(), made)
            return self._mine[1]

    def _path(self, key: str) -> str:
        return f"{self._root}/{check_key(key)}"

    def _folder(self, prefix: str) -> str:
        return f"{self._root}/{prefix}".rstrip("/") + "/"

    def _call(self, key: str, call: Callable[[Any], Any]) -> Any:
        """Do something, again where the cause may pass, and say what went wrong in our words."""
        wait = FIRST_WAIT_SECONDS
        for number in range(1, TRIES + 1):
            try:
                return call(self._fs())
            except FileExistsError:
                raise
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
                raise missing(key, self.url) from error
            except PermissionError as error:
                raise self._refused(key, error) from error
            except Exception as error:
                if isinstance(error, StoreError) or _is_taken(error) or _is_behind(error):
                    raise
                if number == TRIES:
                    raise UnavailableError(
                        f"{self.url}: {key!r} failed {TRIES} times, the last time with {_said(error)}. What was "
                        "committed before stands. Try again.",
                        path=key,
                    ) from error
                time.sleep(wait * random.random())
                wait *= 2
        raise AssertionError

    def _refused(self, key: str, error: BaseException) -> StoreError:
        return StoreError(
            f"{self.url} does not let {key!r} be written or read ({_said(error)}). Nothing was changed. Check the "
            "credentials and what they may do.",
            kind="not-permitted",
            path=key,
        )

    # -- writing ---------------------------------------------------------------------------------------

    def create(self, key: str, data: bytes) -> bool:
        """See ``Storage``."""
        path = self._path(key)
        try:
            self._call(key, lambda fs: fs.pipe_file(path, data, mode="create"))
        except FileExistsError:
            return False
        except OSError as error:
            if not _is_taken(error):
                raise
            return False
        return True

    def put(self, key: str, data: bytes) -> Written:
        """See ``Storage``; the key is nobody else's, so writing again is harmless."""
        path = self._path(key)
        self._call(key, lambda fs: fs.pipe_file(path, bytes(data)))
        return Written(size=len(data), crc32c=extend(0, data))

    def stream(self, key: str) -> ObjectStream:
        """See ``Storage``."""
        return ObjectStream(self, key, self._path(key))

    def delete(self, keys: Iterable[str]) -> None:
        """See ``Storage``."""
        for key in keys:
            with contextlib.suppress(KeyError):
                path = self._path(key)
                self._call(key, functools.partial(_removed, path))

    def settle(self, prefix: str) -> None:
        """Do nothing: what can be seen is durable."""

    # -- reading ---------------------------------------------------------------------------------------

    def get(self, key: str, most: int | None = None) -> bytes:
        """See ``Storage``."""
        path = self._path(key)
        if most is None:
            return bytes(self._call(key, lambda fs: fs.cat_file(path)))
        try:
            return bytes(self._call(key, lambda fs: fs.cat_file(path, start=0, end=most + 1)))
        except Exception as error:
            if not (_is_taken(error) or _is_behind(error)):
                raise
            return b""  # of an empty object there is no range

    def size(self, key: str) -> int:
        """See ``Storage``."""
        path = self._path(key)
        found = self._call(key, lambda fs: fs.info(path))
        if found["type"] != "file":
            raise missing(key, self.url)
        return int(found["size"])

    def modified(self, key: str) -> float:
        """See ``Storage``."""
        path = self._path(key)
        self.size(key)  # a folder has no time, and each file system says so in its own words
        return float(self._call(key, lambda fs: fs.modified(path)).timestamp())

    def read_into(self, key: str, ranges: Sequence[tuple[int, Any]]) -> None:
        """See ``Storage``; neighbouring ranges come in one request, all requests at once."""
        path = self._path(key)
        views = [(offset, memoryview(buffer).cast("B")) for offset, buffer in ranges]
        wanted = sorted((item for item in views if len(item[1])), key=lambda item: item[0])
        pieces = coalesced([(offset, offset + len(view)) for offset, view in wanted])
        starts, ends = [low for low, _ in pieces], [high for _, high in pieces]

        def cat(fs: Any) -> Any:
            return fs.cat_ranges([path] * len(pieces), starts, ends, on_error="raise")

        if pieces:
            try:
                found = self._call(key, cat)
            except Exception as error:
                if not (_is_taken(error) or _is_behind(error)):
                    raise
                raise short(key, self.url, *self._last(wanted)) from error
            self._copy(key, list(zip(pieces, found, strict=True)), wanted)

    @contextlib.contextmanager
    def reading(self, key: str, soon: Sequence[Sequence[int]] = ()) -> Iterator[ReadInto]:
        """See ``Storage``."""
        del soon
        yield functools.partial(self.read_into, key)

    def mapped(self, key: str) -> None:
        """Return None: every look would be a request."""

    def _copy(self, key: str, pieces: list[Any], wanted: list[tuple[int, Any]]) -> None:
        starts = [low for (low, _), _ in pieces]
        for offset, view in wanted:
            done = 0
            while done < len(view):
                at = offset + done
                (low, high), data = pieces[bisect.bisect_right(starts, at) - 1]
                take = min(high - at, len(view) - done)
                chunk = data[at - low : at - low + take]
                if len(chunk) != take:
                    raise short(key, self.url, offset, len(view))
                view[done : done + take] = chunk
                done += take

    @staticmethod
    def _last(wanted: list[tuple[int, Any]]) -> tuple[int, int]:
        offset, view = max(wanted, key=lambda item: item[0] + len(item[1]))
        return offset, len(view)

    def keys(self, prefix: str) -> Iterator[str]:
        """See ``Storage``."""
        folder = self._folder(prefix)
        try:
            found = self._call(prefix, lambda fs: fs.find(folder))
        except KeyError:
            return
        for path in found:
            name = path.lstrip("/")
            if name.startswith(folder):
                yield name[len(self._root) + 1 :]

    def folders(self, prefix: str) -> list[str]:
        """See ``Storage``."""
        folder = self._folder(prefix)
        try:
            found = self._call(prefix, lambda fs: fs.ls(folder, detail=True, refresh=True))
        except KeyError:
            return []
        inside = (item["name"].strip("/") for item in found if item["type"] == "directory")
        return sorted(name.rpartition("/")[2] for name in inside if name != folder.strip("/"))

    def local_path(self, key: str) -> None:
        """Return None: nothing lies on this machine."""
        check_key(key)


class ObjectStream:
    """An object sent in parts while it is written; the service shows it when the last part is confirmed."""

    def __init__(self, storage: ObjectStorage, key: str, path: str) -> None:
        self._storage, self._key, self._path = storage, key, path
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._file: Any = None
        self._size = 0
        self._crc = 0

    def write(self, *buffers: Any) -> None:
        """See ``Stream``."""
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            self._crc = extend(self._crc, view)
            self._size += len(view)
            self._held.append(bytes(view))
            self._held_bytes += len(view)
        if self._held_bytes >= PART_BYTES:
            self._send()

    def _send(self) -> None:
        data, self._held, self._held_bytes = b"".join(self._held), [], 0
        with self._translated():
            if self._file is None:
                self._file = self._storage._fs().open(self._path, "wb", block_size=PART_BYTES)
            self._file.write(data)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn whatever goes wrong into ours; an upload that failed half way is not taken up again."""
        try:
            yield
        except PermissionError as error:
            self.abandon()
            raise self._storage._refused(self._key, error) from error
        except Exception as error:
            self.abandon()
            raise UnavailableError(
                f"{self._storage.url}: writing {self._key!r} failed with {_said(error)}. What was committed before "
                "stands, the part being written is dropped. Run the same command again.",
                path=self._key,
            ) from error

    def finish(self) -> Written:
        """See ``Stream``."""
        if self._file is None:
            self._storage.put(self._key, b"".join(self._held))
            self._held = []
        else:
            self._send()
            with self._translated():
                self._file.close()
            self._file = None
        return Written(size=self._size, crc32c=self._crc)

    def abandon(self) -> None:
        """See ``Stream``."""
        file, self._file, self._held = self._file, None, []
        if file is not None:
            with contextlib.suppress(
                Exception
            ):  # what is left of an upload expires by the bucket's own rule
                file.discard()
            file.closed = True


def _removed(path: str, fs: Any) -> None:
    fs.rm_file(path)


def _opened(url: str, options: dict[str, Any]) -> ObjectStorage:
    return ObjectStorage(url, **options)


def _is_taken(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in _TAKEN


def _is_behind(error: BaseException) -> bool:
    """Whether a range begins behind the object's end: HTTP 416, which s3fs says as EINVAL and the others as a number."""
    return 416 in (getattr(error, "status_code", None), getattr(error, "code", None))


def _said(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]


def coalesced(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join ascending ranges that are near each other, and cut what is too large for one request.

    Returns
    -------
    Ranges that do not overlap, ascending, which together cover those given.
    """
    joined: list[list[int]] = []
    for low, high in ranges:
        if joined and low - joined[-1][1] <= GAP_BYTES:
            joined[-1][1] = max(high, joined[-1][1])
        else:
            joined.append([low, high])
    return [
        (start, min(start + REQUEST_BYTES, high))
        for low, high in joined
        for start in range(low, high, REQUEST_BYTES)
    ]
