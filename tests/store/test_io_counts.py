"""How often the operating system is asked, for how many bytes, and into whose memory: what speed rests on, counted."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import store
from store.buffers import Pool
from store.errors import CorruptError, InvalidInputError
from store.layout import SLOT_BYTES, ShardLayout, shard_path
from store.opening import open_in
from store.posix import PosixStorage
from store.system import System
from store.testing.proxy import Faults, proxy
from store.testing.small import fill, tokens_store, values_of

SITE, WIDTH = "acts:h", 64
PART_CHUNKS, PARTS = 4, 3
LAYOUT = ShardLayout(row_bytes=2 * WIDTH, rows=PART_CHUNKS * 256, stride_rows=PART_CHUNKS * 256)


def owner(buffer):
    """Return where the memory begins that a buffer is a piece of."""
    while buffer.base is not None:
        buffer = buffer.base.obj if isinstance(buffer.base, memoryview) else buffer.base
    return buffer.ctypes.data


class Counting(System):
    """The system, and what it was asked of shards."""

    def __init__(self):
        self.shards, self.opens, self.reads = set(), 0, []

    def open(self, path, flags, mode=0o777):
        """See ``System``."""
        fd = super().open(path, flags, mode)
        self.shards.discard(fd)
        if "/h/c/" in str(path):
            self.shards.add(fd)
            self.opens += 1
        return fd

    def preadv(self, fd, buffers, offset):
        """See ``System``."""
        if fd in self.shards:
            self.reads.append((offset, [np.frombuffer(buffer, np.uint8) for buffer in buffers]))
        return super().preadv(fd, buffers, offset)

    def clear(self):
        """Forget."""
        self.opens = 0
        self.reads.clear()

    @property
    def chunks(self):
        """How many chunks were asked for, those that came twice counted twice; nothing but whole ones was."""
        found = 0
        for offset, buffers in self.reads:
            size = sum(map(len, buffers))
            whole, rest = divmod(size - LAYOUT.coded_bytes, LAYOUT.spacing)
            assert rest == 0
            assert (offset - SLOT_BYTES) % LAYOUT.spacing == 0
            found += whole + 1
        return found

    @property
    def buffers(self):
        """How many places were read into."""
        return len({owner(buffer) for _, buffers in self.reads for buffer in buffers})


@pytest.fixture
def counted(tmp_path):
    """A store of three parts whose shards are open, and the system it asks."""
    rows = PART_CHUNKS * 256
    made = tokens_store(
        tmp_path / "s", [256] * (PART_CHUNKS * PARTS), part_rows=rows, part_stride=rows
    )
    fill(made, "acts", {"h": f"bfloat16[{WIDTH}]"})
    system = Counting()
    opened = open_in(PosixStorage(tmp_path / "s", system))
    for part in range(PARTS):
        opened.view.shard(opened.view.commit("acts", part), opened.column(SITE))
    system.clear()
    return opened, system


def test_whole_chunks_are_read_once_by_way_of_one_buffer(counted):
    opened, system = counted
    out = np.empty((PARTS * PART_CHUNKS * 256, WIDTH), np.uint16)
    assert opened.read(SITE, raw=True, out=out) is out
    assert len(system.reads) == system.opens == PARTS  # those of a part lie one behind the other
    assert system.chunks == PARTS * PART_CHUNKS
    assert system.buffers == 1
    wanted = values_of(opened.row_ids(), opened.column(SITE))
    assert np.array_equal(out.astype(np.uint32) << 16, wanted.view(np.uint32))


@pytest.mark.parametrize("window_rows", [256, 1024, 4096])
def test_an_epoch_reads_every_chunk_once(counted, window_rows):
    opened, system = counted
    for epoch in range(2):
        system.clear()
        rows = [
            w.row_ids for w in opened.windows([SITE], seed=0, epoch=epoch, window_rows=window_rows)
        ]
        assert len(np.unique(np.concatenate(rows))) == PARTS * PART_CHUNKS * 256
        assert system.chunks == PARTS * PART_CHUNKS
        assert len(system.reads) <= PARTS * PART_CHUNKS
        assert system.buffers == 1


@pytest.mark.parametrize("call_bytes", [1, 2 * LAYOUT.coded_bytes, 1 << 20])
def test_neighbours_are_read_at_once_as_far_as_the_cache_holds_them(
    counted, monkeypatch, call_bytes
):
    opened, system = counted
    monkeypatch.setattr(opened.view.storage, "call_bytes", call_bytes)
    found = opened.read(SITE)
    assert np.array_equal(found, values_of(opened.row_ids(), opened.column(SITE)))
    at_once = max(1, min(PART_CHUNKS, call_bytes // LAYOUT.coded_bytes))
    assert len(system.reads) == PARTS * PART_CHUNKS // at_once
    assert system.chunks == PARTS * PART_CHUNKS


def test_windows_nobody_holds_give_their_memory_to_the_next(counted):
    opened, _ = counted
    addresses, taken = set(), 0
    for window in opened.windows([SITE], seed=0, window_rows=256, raw=True):
        addresses.add(window.columns[SITE].ctypes.data)
        taken += 1
        del window
    assert (taken, len(addresses)) == (PARTS * PART_CHUNKS, 1)


def test_epochs_may_share_their_memory(counted):
    opened, _ = counted
    pool, addresses = Pool(), set()
    for epoch in range(3):
        for window in opened.windows([SITE], seed=0, epoch=epoch, window_rows=1024, pool=pool):
            addresses.add(window.columns[SITE].ctypes.data)
            del window
    assert len(addresses) == 1


def test_a_window_somebody_holds_is_left_alone(counted):
    opened, _ = counted
    column = opened.column(SITE)
    held, few = [], []
    for window in opened.windows([SITE], seed=0, window_rows=256):
        held.append((window.row_ids, window.columns[SITE]))
        few.append((window.row_ids[7:9], window.columns[SITE].reshape(-1)[7 * WIDTH : 9 * WIDTH]))
        del window
    for ids, found in [*held, *few]:
        assert np.array_equal(found.reshape(len(ids), WIDTH), values_of(ids, column))
    assert len({found.ctypes.data for _, found in held}) == PARTS * PART_CHUNKS


def test_a_pool_keeps_no_memory_that_is_too_small_for_what_follows():
    pool = Pool()
    small = pool.take((10,), np.int16)
    del small
    large = pool.take((100,), np.float64)
    assert not pool.free
    view = large[3:5]
    del large
    assert not pool.free
    del view
    assert [len(memory) for memory in pool.free] == [800]
    assert pool.take((100,), np.float64).base is not None
    del pool  # what is lent outlives it


def test_few_rows_of_checked_chunks_are_copied_from_the_mapped_file(counted):
    opened, system = counted
    ids = opened.row_ids()[5::37][::-1]
    first = opened.gather(SITE, ids)
    assert system.chunks == PARTS * PART_CHUNKS  # whole ones, for they are checked
    system.clear()
    again = opened.gather(SITE, ids)
    assert not system.reads
    assert np.array_equal(first, again)
    assert np.array_equal(again, values_of(ids, opened.column(SITE)))
    system.clear()
    opened.gather(SITE, ids)
    assert (system.opens, system.reads) == (0, [])


def test_a_mapped_file_that_was_cut_short_is_an_error(counted):
    opened, _ = counted
    ids = opened.row_ids()[5::37]
    for _ in range(2):
        opened.gather(SITE, ids)
    commit = opened.view.commit("acts", 1)
    path = opened.view.storage.local_path(commit.prefix + shard_path("h", 2))
    with path.open("rb+") as file:
        file.truncate(4096)
    with pytest.raises(CorruptError, match="4096 bytes") as caught:
        opened.gather(SITE, ids)
    assert caught.value.kind == "object-size"


def test_a_window_takes_one_request_a_shard_from_an_object_store(s3_server, s3_url, monkeypatch):
    rows = PART_CHUNKS * 256
    made = tokens_store(s3_url, [256] * (PART_CHUNKS * PARTS), part_rows=rows, part_stride=rows)
    fill(made, "acts", {"h": f"bfloat16[{WIDTH}]"})
    faults = Faults()
    with proxy(s3_server, faults) as line:
        monkeypatch.setenv("AWS_ENDPOINT_URL", line)
        opened = store.open(s3_url)
        for _ in range(2):
            faults.requests.clear()
            (window,) = opened.windows([SITE], seed=0, window_rows=PARTS * rows)
        assert [method for method, path, _ in faults.requests if "/h/c/" in path] == ["GET"] * PARTS
        assert len(faults.requests) == PARTS
    assert np.array_equal(window.columns[SITE], values_of(window.row_ids, opened.column(SITE)))


LARGE_ROWS, LARGE_WIDTH = 12 * 256, 1024  # 6 MiB of bfloat16: summarised beside the write


def large(tmp_path, system):
    """A store of tokens, and values of one part."""
    rows = LARGE_ROWS
    url = tmp_path / "large"
    tokens_store(url, [256] * (rows // 256), part_rows=rows, part_stride=rows)
    values = np.random.default_rng(0).standard_normal((rows, LARGE_WIDTH), np.float32)
    return open_in(PosixStorage(url, system)), values


def test_the_disk_is_told_of_all_but_the_last_bytes_before_the_end(tmp_path):
    begun = []

    class Telling(System):
        def begin_sync(self, fd, offset, size):
            begun.append((offset, size))
            super().begin_sync(fd, offset, size)

    made, values = large(tmp_path, Telling())
    with made.writer("acts", columns={"h": f"bfloat16[{LARGE_WIDTH}]"}, recipe={}) as writer:
        for low in range(0, LARGE_ROWS, 512):
            writer.put(made.row_ids()[low : low + 512], {"h": values[low : low + 512]})
    (commit,) = writer.committed
    size = commit.objects[shard_path("h", 2)].size
    assert [offset for offset, _ in begun] == [0, *np.cumsum([n for _, n in begun])[:-1]]
    assert 0 <= size - sum(n for _, n in begun) < 5 << 20
    assert store.verify(made.refresh()).ok


def test_a_large_put_with_a_bad_value_is_refused_whole_and_put_again(tmp_path):
    made, values = large(tmp_path, System())
    good, ids = values.copy(), made.row_ids()
    values[777, 5] = np.nan
    columns = {"h": f"float32[{LARGE_WIDTH}]"}
    with made.writer("acts", columns=columns, recipe={}) as writer:
        with pytest.raises(InvalidInputError, match="row 777") as caught:
            writer.put(ids, {"h": values})
        assert caught.value.kind == "nonfinite"
        writer.put(ids, {"h": good})
    made = made.refresh()
    assert np.array_equal(made.read("acts:h"), good)
    summary = made.view.commit("acts", 0).summary["h"]
    norms = np.sqrt((good.astype(np.float64) ** 2).sum(axis=1))
    assert float(summary["mean_norm"]) == pytest.approx(norms.mean(), rel=1e-12)
    assert float(summary["max_abs"]) == np.abs(good).max()


def test_what_will_be_read_is_announced_before_it_is(counted, monkeypatch):
    """Every range once, and never behind its own read: the disk is at it while what came before is copied."""
    opened, system = counted
    told = []
    begin_read, preadv = system.begin_read, system.preadv
    monkeypatch.setattr(
        system,
        "begin_read",
        lambda fd, *at: told.append(("begin", fd, at[0])) or begin_read(fd, *at),
    )
    monkeypatch.setattr(
        system, "preadv", lambda fd, to, at: told.append(("read", fd, at)) or preadv(fd, to, at)
    )
    for call_bytes in (1, 2 * LAYOUT.coded_bytes, 1 << 20):
        monkeypatch.setattr(opened.view.storage, "call_bytes", call_bytes)
        told.clear()
        list(opened.windows([SITE], seed=1, window_rows=512))
        begun, read = (
            [(fd, at) for what, fd, at in told if what == name] for name in ("begin", "read")
        )
        assert sorted(begun) == sorted(read)
        waiting = set()
        for what, fd, at in told:
            if what == "begin":
                waiting.add((fd, at))
            else:
                waiting.remove((fd, at))
        assert not waiting


def test_threads_may_share_a_pool():
    pool, wrong = Pool(), []

    def take(seed):
        rng = np.random.default_rng(seed)
        for _ in range(4000):
            size = int(rng.integers(1, 40))
            held = pool.take((size,), np.int64)
            held[:] = seed
            if len(held) != size or (held != seed).any():
                wrong.append(seed)
            del held

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(take, range(4)))
    assert not wrong
