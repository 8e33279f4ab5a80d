"""What every storage must keep, as functions anyone may run over a storage of his own.

Each function of ``CONTRACT`` takes an empty ``Storage`` and raises ``AssertionError`` where it breaks its word::

    @pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
    def test_my_storage(check, tmp_path):
        check(MyStorage(tmp_path))

What only some storages can promise (that ``put`` notices a taken key, that a name outlives a power cut) is not in it.
``CONTRACT_AT_LENGTH`` writes more than a storage sends in one request, and takes seconds.
"""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from store.checksum import crc32c
from store.errors import CorruptError, InvalidInputError, NotFoundError
from store.storage import Storage
from store.testing.claims import refused, together

Check = Callable[[Storage], None]
KEYS = (
    "a",
    "A",
    "_",
    "0",
    "a.b-c=d@e_f",
    "x" * 128,
    "d/b/c/d/e/f/g/h/i/j/k/l/m/n",
    "a.",
    "a.json/b",
)
"""Legal keys of every kind, none the folder of another."""
ILLEGAL = (
    "",
    "/x",
    "../x",
    "a/../b",
    "a//b",
    ".x",
    "a/.b",
    "a\0",
    "a/",
    "a b",
    "a%20b",
    "ä",
    "a\\b",
    "a\n",
)
RACERS = 16
LARGE_BYTES = (40 << 20) + 17  # several parts of a multipart upload, and a piece of one


def _read(storage: Storage, key: str, offset: int, size: int) -> bytes:
    data = bytearray(size)
    storage.read_into(key, [(offset, data)])
    return bytes(data)


# -- writing ---------------------------------------------------------------------------------------------------


def what_is_created_is_never_replaced(storage: Storage) -> None:
    """``create`` returns whether it wrote; the first one's bytes stay."""
    assert storage.create("a/b.json", b"one")
    assert not storage.create("a/b.json", b"two")
    assert not storage.create("a/b.json", b"one")
    assert storage.get("a/b.json") == b"one"
    assert [storage.get("a/b.json", most) for most in (0, 2, 3, 9)] == [
        b"o",
        b"one",
        b"one",
        b"one",
    ]
    assert list(storage.keys("")) == ["a/b.json"]


def of_many_racing_creators_one_wins(storage: Storage) -> None:
    """Exactly one of many threads is told that it wrote, and its bytes are the object's."""
    for number in range(4):
        key = f"race/record-{number}"
        won: list[int] = []

        def run(mine: int, key: str = key, won: list[int] = won) -> None:
            if storage.create(key, b"%d" % mine * 1000):
                won.append(mine)

        together(run, RACERS)
        assert len(won) == 1, f"{len(won)} of {RACERS} were told that they wrote {key}"
        assert storage.get(key) == b"%d" % won[0] * 1000
    assert len(list(storage.keys("race"))) == 4


def what_is_written_says_its_size_and_checksum(storage: Storage) -> None:
    """Whatever kind of buffers the bytes came in; and when, by a clock that is not a day away from ours."""
    pieces: list[Any] = [
        b"abc",
        np.arange(10, dtype=np.int16),
        bytearray(b"x"),
        memoryview(b""),
        b"end",
    ]
    stream = storage.stream("s")
    stream.write(*pieces[:3])
    stream.write(*pieces[3:])
    written = stream.finish()
    data = b"".join(bytes(memoryview(piece).cast("B")) for piece in pieces)
    assert storage.get("s") == data
    assert (written.size, written.crc32c) == (len(data), crc32c(data))
    put = storage.put("p", data)
    assert (put.size, put.crc32c) == (len(data), crc32c(data))
    assert storage.size("s") == storage.size("p") == len(data)
    assert abs(storage.modified("s") - time.time()) < 86_400


def nothing_is_seen_before_it_is_finished(storage: Storage) -> None:
    """Show a stream's key when ``finish`` returns, whole, and not before."""
    stream = storage.stream("deep/er/s")
    stream.write(bytes(100_000))
    for call in (storage.get, storage.size, storage.modified):
        refused(NotFoundError, "object-missing", call, "deep/er/s")
    stream.write(b"end")
    stream.finish()
    assert storage.get("deep/er/s") == bytes(100_000) + b"end"
    assert list(storage.keys("")) == ["deep/er/s"]


def readers_see_a_whole_object_or_none(storage: Storage) -> None:
    """Another thread that asks all the while never sees a part of one."""
    seen, done = set(), threading.Event()

    def watch() -> None:
        while True:
            last = done.is_set()
            try:
                seen.add(len(storage.get("watched")))
            except NotFoundError:
                seen.add(-1)
            if last:
                return

    thread = threading.Thread(target=watch)
    thread.start()
    stream = storage.stream("watched")
    for _ in range(20):
        stream.write(bytes(50_000))
    stream.finish()
    done.set()
    thread.join()
    assert seen <= {-1, 1_000_000}, f"sizes {sorted(seen)} were seen"
    assert 1_000_000 in seen


def what_is_abandoned_leaves_nothing(storage: Storage) -> None:
    """Abandoning twice is fine, and after ``finish`` it does nothing."""
    stream = storage.stream("deep/er/s")
    stream.write(b"abc")
    stream.abandon()
    stream.abandon()
    assert list(storage.keys("")) == []
    assert storage.folders("") == []
    stream = storage.stream("deep/er/s")
    stream.write(b"again")
    stream.finish()
    stream.abandon()
    assert storage.get("deep/er/s") == b"again"


def empty_objects_are_objects(storage: Storage) -> None:
    """Nothing in them, but they are there, however they came."""
    assert storage.create("created", b"")
    assert not storage.create("created", b"more")
    assert storage.put("put", b"").size == 0
    assert storage.stream("streamed").finish().crc32c == crc32c(b"")
    for key in ("created", "put", "streamed"):
        assert storage.get(key) == storage.get(key, 0) == storage.get(key, 7) == b""
        assert storage.size(key) == 0
        storage.read_into(key, [])
        storage.read_into(key, [(0, bytearray())])
        refused(CorruptError, "object-short", _read, storage, key, 0, 1)
    assert sorted(storage.keys("")) == ["created", "put", "streamed"]


# -- reading ---------------------------------------------------------------------------------------------------


def ranges_are_read_in_any_order_and_shape(storage: Storage) -> None:
    """Overlapping, repeated, empty and far-apart ranges of one call each get their own bytes."""
    data = np.random.default_rng(0).integers(0, 256, 3_000_000, np.uint8)
    storage.put("k", data.tobytes())
    wanted = [
        (2_999_990, 10),
        (0, 10),
        (5, 0),
        (0, 10),
        (3, 10),
        (1_500_000, 70_000),
        (2_000_000, 1),
    ]
    buffers = [np.zeros(size, np.uint8) for _, size in wanted]
    storage.read_into("k", list(zip([offset for offset, _ in wanted], buffers, strict=True)))
    for (offset, size), found in zip(wanted, buffers, strict=True):
        assert np.array_equal(found, data[offset : offset + size]), f"bytes {offset}, {size}"
    table = np.empty((2, 5), np.int16)
    storage.read_into("k", [(7, table)])
    assert table.tobytes() == data[7:27].tobytes()


def short_reads_are_refused(storage: Storage) -> None:
    """Take a range that ends behind the object for damage, wherever it begins and whatever is asked beside it."""
    storage.put("k", bytes(range(100)))
    for offset, size in ((91, 10), (100, 1), (0, 101), (10**9, 1)):
        refused(CorruptError, "object-short", _read, storage, "k", offset, size)
        both = [(0, bytearray(4)), (offset, bytearray(size))]
        refused(CorruptError, "object-short", storage.read_into, "k", both)


def what_is_not_there_is_said(storage: Storage) -> None:
    """Whatever is asked of it; a folder is no object either."""
    storage.put("folder/x", b"1")
    calls: list[Callable[[str], Any]] = [storage.get, storage.size, storage.modified]
    calls.append(lambda key: _read(storage, key, 0, 1))
    for key in ("nothing", "nothing/here", "folder", "folder/x/y"):
        for call in calls:
            refused(NotFoundError, "object-missing", call, key)
    assert list(storage.keys("nothing")) == storage.folders("nothing") == []
    storage.settle("nothing/here")


# -- names -----------------------------------------------------------------------------------------------------


def legal_keys_are_told_apart(storage: Storage) -> None:
    """Every legal character, length, depth and case is a key of its own."""
    for number, key in enumerate(KEYS):
        assert storage.create(key, b"%d" % number), key
    assert sorted(storage.keys("")) == sorted(KEYS)
    for number, key in enumerate(KEYS):
        assert storage.get(key) == b"%d" % number, key
    storage.delete(KEYS)
    assert list(storage.keys("")) == []


def illegal_keys_are_refused(storage: Storage) -> None:
    """Keys that leave the storage or that another one could not hold, before anything is touched."""
    for key in ILLEGAL:
        for call in (storage.create, storage.put):
            refused(InvalidInputError, "bad-key", call, key, b"")
        for ask in (storage.stream, storage.local_path):
            refused(InvalidInputError, "bad-key", ask, key)
    assert list(storage.keys("")) == []


def what_is_written_is_listed_at_once(storage: Storage) -> None:
    """By the writer and by a storage that was asked before; what is deleted is listed no more."""
    assert list(storage.keys("a")) == storage.folders("a") == []
    for number in range(30):
        storage.put(f"a/{number:02d}/x", b"")
        assert len(list(storage.keys("a"))) == len(storage.folders("a")) == number + 1
    storage.delete([f"a/{number:02d}/x" for number in range(29)])
    assert list(storage.keys("a")) == ["a/29/x"]
    assert storage.folders("a") == ["29"]


def listings_take_whole_folder_names(storage: Storage) -> None:
    """Tell ``a`` from ``ab``; folders are one level, sorted."""
    for key in ("a/1", "a/b/2", "ab/3", "c"):
        storage.put(key, b"")
    assert sorted(storage.keys("a")) == sorted(storage.keys("a/")) == ["a/1", "a/b/2"]
    assert list(storage.keys("c/")) == []
    assert storage.folders("") == ["a", "ab"]
    assert storage.folders("a") == storage.folders("a/") == ["b"]
    storage.delete(["a/b/2", "a/1"])
    assert storage.folders("") == ["ab"]


def deleting_is_final_and_never_an_error(storage: Storage) -> None:
    """Let what is not there be deleted, too; a deleted key is free again."""
    storage.put("a/b", b"1")
    storage.put("a/c", b"2")
    storage.delete(["nothing/here", "a/b", "a/b"])
    storage.delete([])
    refused(NotFoundError, "object-missing", storage.get, "a/b")
    assert list(storage.keys("")) == ["a/c"]
    assert storage.create("a/b", b"3")
    assert storage.get("a/b") == b"3"


# -- processes and threads -------------------------------------------------------------------------------------


def pickled_it_is_the_same_storage(storage: Storage) -> None:
    """Read there what was written here and the other way: workers get storages this way."""
    storage.put("a/k", b"before")
    again = pickle.loads(pickle.dumps(storage))
    assert again.url == storage.url
    assert again.get("a/k") == b"before"
    again.put("a/l", b"after")
    assert storage.get("a/l") == b"after"
    assert not storage.create("a/l", b"mine")


def threads_may_share_it(storage: Storage) -> None:
    """Each finds its own objects whole while the others write and list."""
    wrong = []

    def run(number: int) -> None:
        for at in range(5):
            key, data = f"t/{number}/{at}", bytes([number]) * (1000 + at)
            storage.put(key, data)
            if storage.get(key) != data or key not in set(storage.keys(f"t/{number}")):
                wrong.append(key)

    together(run, 6)
    assert wrong == []
    assert len(list(storage.keys("t"))) == 30


CONTRACT: tuple[Check, ...] = (
    what_is_created_is_never_replaced,
    of_many_racing_creators_one_wins,
    what_is_written_says_its_size_and_checksum,
    nothing_is_seen_before_it_is_finished,
    readers_see_a_whole_object_or_none,
    what_is_abandoned_leaves_nothing,
    empty_objects_are_objects,
    ranges_are_read_in_any_order_and_shape,
    short_reads_are_refused,
    what_is_not_there_is_said,
    legal_keys_are_told_apart,
    illegal_keys_are_refused,
    what_is_written_is_listed_at_once,
    listings_take_whole_folder_names,
    deleting_is_final_and_never_an_error,
    pickled_it_is_the_same_storage,
    threads_may_share_it,
)


def large_objects_come_back_whole(storage: Storage) -> None:
    """Streamed in pieces, put at once and abandoned half way; ranges across the seams."""
    data = np.random.default_rng(0).integers(0, 256, LARGE_BYTES, np.uint8)
    stream = storage.stream("big")
    for low in range(0, len(data), 5 << 20):
        stream.write(data[low : low + (5 << 20)])
    refused(NotFoundError, "object-missing", storage.get, "big")
    written = stream.finish()
    assert (written.size, written.crc32c) == (len(data), crc32c(data.tobytes()))
    assert storage.size("big") == len(data)
    wanted = [
        (0, 10),
        (20 << 20, 1 << 20),
        (LARGE_BYTES - 7, 7),
        (5, 17 << 20),
        (15 << 20, 2 << 20),
    ]
    buffers = [np.empty(size, np.uint8) for _, size in wanted]
    storage.read_into("big", [(low, b) for (low, _), b in zip(wanted, buffers, strict=True)])
    for (low, size), found in zip(wanted, buffers, strict=True):
        assert np.array_equal(found, data[low : low + size])
    gone = storage.stream("gone")
    gone.write(data)
    gone.abandon()
    assert list(storage.keys("")) == ["big"]
    storage.put("put", data.tobytes())
    assert crc32c(storage.get("put")) == written.crc32c


def many_objects_are_listed_whole(storage: Storage) -> None:
    """More than a service returns on one page of a listing (1000)."""
    wanted = [f"many/{number:04d}/x" for number in range(1100)]

    def run(number: int) -> None:
        for key in wanted[number::RACERS]:
            storage.put(key, b"")

    together(run, RACERS)
    assert sorted(storage.keys("many")) == wanted
    assert storage.folders("many") == [f"{number:04d}" for number in range(1100)]


CONTRACT_AT_LENGTH: tuple[Check, ...] = (
    large_objects_come_back_whole,
    many_objects_are_listed_whole,
)
