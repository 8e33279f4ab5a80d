"""Stores in a bucket, over real HTTP: the whole life cycle, and what networks do to it."""

import errno
import itertools
import os
import pickle
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import store
from store import CorruptError, InvalidInputError, NotFoundError, StoreError, UnavailableError
from store.object_store import GAP_BYTES, PACKAGES, REQUEST_BYTES, ObjectStorage, coalesced
from store.testing.proxy import Faults, proxy
from store.testing.small import fill, small_store, tokens_store, values_of
from store.urls import open_storage

COLUMNS = {"h": "bfloat16[16]", "y": "int32"}
LENGTHS = (200, 90)


@given(st.lists(st.tuples(st.integers(0, 60 << 20), st.integers(1, 20 << 20)), max_size=12))
def test_requests_cover_what_is_asked_and_none_is_too_large(ranges):
    wanted = sorted((low, low + size) for low, size in ranges)
    found = coalesced(wanted)
    assert all(0 < high - low <= REQUEST_BYTES for low, high in found)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(found))
    for low, high in wanted:
        at = low
        for start, stop in found:
            if start <= at < stop:
                at = min(stop, high)
        assert at == high
    needless = sum(high - low for low, high in found)
    covered, end = 0, 0
    for low, high in wanted:
        covered += max(0, high - max(low, end))
        end = max(end, high)
    assert needless - covered <= GAP_BYTES * max(0, len(wanted) - 1)


@given(
    st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 1000)), max_size=8), st.integers(1, 900)
)
def test_ranges_that_overlap_come_back_each_with_its_own_bytes(ranges, request_bytes):
    """However requests are cut; a range may begin in one that was passed already."""
    made = ObjectStorage("memory://bucket/overlaps")
    data = np.random.default_rng(0).integers(0, 256, 4000, np.uint8)
    made.put("k", data.tobytes())
    buffers = [np.zeros(size, np.uint8) for _, size in ranges]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("store.object_store.REQUEST_BYTES", request_bytes)
        patch.setattr("store.object_store.GAP_BYTES", 50)
        made.read_into("k", [(low, b) for (low, _), b in zip(ranges, buffers, strict=True)])
    for (low, size), found in zip(ranges, buffers, strict=True):
        assert np.array_equal(found, data[low : low + size])


def test_urls_say_what_they_lack():
    with pytest.raises(InvalidInputError, match=r"unsupported-url.*names no bucket"):
        open_storage("s3://")
    for bad in (
        "s3://bucket/a::file:///etc",
        "http://x/y",
        "reference://x",
        "zip://x",
        "s3a://b/c",
    ):
        with pytest.raises(InvalidInputError, match="unsupported-url"):
            open_storage(bad)


@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_a_scheme_whose_package_is_missing_says_which(scheme):
    try:
        __import__(PACKAGES[scheme])
    except ImportError:
        with pytest.raises(InvalidInputError, match=f"missing-package.*{PACKAGES[scheme]}"):
            open_storage(f"{scheme}://bucket/x")
    else:
        pytest.skip(f"{PACKAGES[scheme]} is installed")


# -- what the library says, in our words ----------------------------------------------------------------------


def saying(error):
    """A bucket of which every call ends in an error."""

    class Library:
        def __getattr__(self, name):
            def call(*_, **__):
                raise error

            return call

    storage = ObjectStorage("s3://bucket/x")
    storage._mine = (os.getpid(), Library())
    return storage


def streamed(storage):
    stream = storage.stream("a")
    stream.write(b"12345678")
    stream.write(b"90")
    stream.finish()


CALLS = {
    "get": lambda s: s.get("a"),
    "get-some": lambda s: s.get("a", 5),
    "size": lambda s: s.size("a"),
    "create": lambda s: s.create("a", b"1"),
    "put": lambda s: s.put("a", b"1"),
    "stream": streamed,
    "keys": lambda s: list(s.keys("a")),
    "delete": lambda s: s.delete(["a"]),
    "read": lambda s: s.read_into("a", [(0, bytearray(3))]),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_what_is_not_permitted_is_said_at_once(monkeypatch, call):
    monkeypatch.setattr("store.object_store.PART_BYTES", 8)
    with pytest.raises(StoreError, match=r"does not let 'a'.*credentials") as caught:
        call(saying(PermissionError("denied")))
    assert caught.value.kind == "not-permitted"


def test_a_name_that_is_taken_is_told_from_what_went_wrong():
    class BehindError(OSError):
        status_code = 416

    for error in (FileExistsError(), OSError(errno.EINVAL, "taken")):
        assert saying(error).create("a", b"1") is False
    with pytest.raises(BehindError):  # of no create; whatever it is, it is not passed over
        saying(BehindError()).create("a", b"1")
    assert saying(BehindError()).get("a", 5) == b""
    with pytest.raises(CorruptError, match="ends before byte 3"):
        saying(BehindError()).read_into("a", [(0, bytearray(3))])


def test_where_there_is_nothing_there_are_no_keys_and_nothing_to_delete():
    storage = saying(FileNotFoundError())
    assert list(storage.keys("a")) == []
    storage.delete(["a"])
    with pytest.raises(NotFoundError):
        storage.get("a")


@pytest.mark.slow
def test_a_whole_life_in_a_bucket_is_that_on_a_disk(bucket_url, tmp_path):
    there, here = small_store(bucket_url), small_store(tmp_path / "s")
    report = store.verify(there)
    assert report.ok
    assert not report.orphans
    assert report.digest == store.verify(here).digest
    assert there.groups.keys() == here.groups.keys()
    for address in here.sites:
        assert np.array_equal(there.read(address, raw=True), here.read(address, raw=True))
    ids = here.row_ids()[::-7]
    assert np.array_equal(there.gather("acts:h", ids), here.gather("acts:h", ids))
    for one, other in zip(
        there.windows(["acts:h"], seed=3, window_rows=512),
        here.windows(["acts:h"], seed=3, window_rows=512),
        strict=True,
    ):
        assert np.array_equal(one.row_ids, other.row_ids)
        assert np.array_equal(one.columns["acts:h"], other.columns["acts:h"])
    for table in ("tokens", "sequences", "documents", "labels", "codes", "codes_by_latent"):
        assert there.arrow(table).equals(here.arrow(table))
        assert there.table(table).collect().equals(here.table(table).collect())
    pin = there.pin()
    assert store.open(bucket_url, pin=pin).read("acts:h").shape == here.read("acts:h").shape
    asset = there.put_asset({"a": b"1"})
    assert pickle.loads(pickle.dumps(there)).asset(asset) == {"a": b"1"}


@pytest.mark.slow
def test_a_damaged_object_in_a_bucket_is_an_error(s3_url):
    made = fill(tokens_store(s3_url, [200, 256]), "acts", COLUMNS)
    commit = made.view.commit("acts", 0)
    key = commit.prefix + "h/c/0/0"
    data = bytearray(made.view.storage.get(key))
    data[4096 + 50] ^= 1
    made.view.storage.put(key, bytes(data))
    with pytest.raises(CorruptError, match="chunk-damaged"):
        store.open(s3_url).read("acts:h")
    made.view.storage.delete([key])
    with pytest.raises(CorruptError, match="object-missing"):
        store.open(s3_url).read("acts:h")


# -- a network that misbehaves -------------------------------------------------------------------------------


def make(url):
    """Make or complete a small store through a storage of its own."""
    made = tokens_store(url, LENGTHS, part_rows=256, part_stride=256)
    return fill(made, "acts", COLUMNS)


@pytest.fixture(scope="module")
def digest():
    return make("memory://object-store-truth").digest()


def _through(server, faults, monkeypatch):
    line = proxy(server, faults)
    monkeypatch.setenv("AWS_ENDPOINT_URL", line.__enter__())
    return line


@pytest.fixture
def faulty(s3_server, monkeypatch):
    """A function that lays a misbehaving network before the server."""
    lines = []

    def lay(decide, **more):
        faults = Faults(decide=decide, **more)
        lines.append(_through(s3_server, faults, monkeypatch))
        return faults

    yield lay
    for line in lines:
        line.__exit__(None, None, None)


ACTS = ["lose", "cut", "double", "refuse", "busy"]
WRITES = [(act, what) for what in ("commits", "/parts/") for act in ACTS]
WRITES += [("lose", what) for what in ("group.json", "store.json", "sealed")]


@pytest.mark.slow
@pytest.mark.parametrize(("act", "what"), WRITES, ids=["-".join(write) for write in WRITES])
def test_a_write_that_goes_wrong_once_changes_nothing(s3_url, faulty, digest, act, what):
    """Whether it was done, done twice or not: the store is the undisturbed one, and nothing is left over."""
    hit = []

    def decide(number, method, path):
        if method == "PUT" and what in path and not hit:
            hit.append(path)
            return act
        return "pass"

    faulty(decide)
    made = make(s3_url)
    assert hit
    report = store.verify(made)
    assert report.ok, report.problems
    assert report.digest == digest
    assert not report.orphans


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_network_that_misbehaves_all_the_time_is_got_over(s3_url, faulty, digest, seed):
    """A tenth of all requests go wrong, reads and listings, too; a run that gives up is run again."""
    rng = random.Random(seed)
    faults = faulty(lambda *_: rng.choice(ACTS) if rng.random() < 0.1 else "pass")
    for _ in range(5):
        try:
            made = make(s3_url)
            break
        except UnavailableError:
            continue
    faults.decide = lambda *_: "pass"
    report = store.verify(made)
    assert report.ok, report.problems
    assert report.digest == digest


@pytest.mark.slow
def test_a_server_that_stays_away_is_said_and_nothing_is_lost(s3_url, faulty, monkeypatch):
    monkeypatch.setattr("store.object_store.FIRST_WAIT_SECONDS", 0.0)
    made = tokens_store(s3_url, LENGTHS)
    faults = faulty(lambda *_: "refuse")
    # The library tries on its own, each time with a wait; how often we do is not what this is about.
    monkeypatch.setattr("store.object_store.TRIES", 1)
    with pytest.raises(UnavailableError, match="Try again"):
        ObjectStorage(s3_url).get("store.json")
    faults.decide = lambda *_: "pass"
    assert store.open(s3_url).digest() == made.digest()


@pytest.mark.slow
def test_the_chunks_of_a_window_are_asked_for_at_once(s3_url, faulty, monkeypatch):
    """So its time does not grow with the number of chunks, only with their bytes."""
    made = tokens_store(s3_url, [256] * 32, part_rows=8192, part_stride=8192)
    made = fill(made, "acts", {"h": "float32[64]"})
    monkeypatch.setattr("store.object_store.GAP_BYTES", -1)  # every chunk its own request
    faults = faulty(
        lambda _n, method, path: "delay" if "/h/c/" in path else "pass", delay_seconds=5.0
    )
    fresh = store.open(s3_url)
    ids = fresh.row_ids()[5::512]  # no two of neighbouring chunks, which are one request
    assert np.array_equal(fresh.gather("acts:h", ids), values_of(ids, fresh.column("acts:h")))
    reads = [path for method, path, _ in faults.requests if method == "GET" and "/h/c/" in path]
    assert len(reads) >= 16
    assert faults.most_at_once >= 14
