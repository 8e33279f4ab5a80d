"""Zarr-python's own tests of a store, over ours: what reads must pass, what writes must be refused.

Those tests put bytes under keys of their own choosing, which the keys of a hierarchy are not. So they are laid beside it:
objects of the store's storage, found and listed by the two methods through which everything else goes.
"""

import asyncio
import functools
import inspect
import itertools
import pickle

import pytest
import zarr.testing.store as zarr_store_tests
from zarr.core.buffer import cpu, default_buffer_prototype

from jobs.export.zarr_store import ActlakeStore, Item
from store.testing.small import fill, tokens_store

NUMBERS = itertools.count()


class Planted(ActlakeStore):
    """The store with objects laid beside its hierarchy, and the hierarchy out of the way."""

    def __init__(self, opened, *, read_only=True):
        if not read_only:
            msg = "a store is read-only to Zarr"
            raise ValueError(msg)
        super().__init__(opened)
        self.planted, self._number = {}, next(NUMBERS)

    def __reduce__(self):
        return type(self), (self._opened,)

    def plant(self, key, data):
        """Lay bytes under any key."""
        name = f"planted/{self._number}/{key.encode().hex()}"
        self._opened.view.storage.create(name, data)
        self.planted[key] = name

    def _find(self, key):
        if key not in self.planted:
            return None
        storage, name = self._opened.view.storage, self.planted[key]

        def read(start, stop):
            data = bytearray(stop - start)
            storage.read_into(name, [(start, data)])
            return data

        return Item(size=storage.size(name), read=read)

    def _keys(self, prefix):
        return (key for key in self.planted if key.startswith(prefix))

    async def _set_many(self, values):
        for key, value in values:
            self.plant(key, value.to_bytes())


def in_turn(test):
    """An async test as a plain one."""

    @functools.wraps(test)
    def run(*arguments, **named):
        return asyncio.run(test(*arguments, **named))

    return run


WRITES = {
    "test_serializable_store": "sets a key through the store; here: test_pickled_it_is_the_same",
    "test_store_read_only": "asks for a store that can be written",
    "test_set": "writes",
    "test_set_not_open": "writes",
    "test_set_if_not_exists": "writes",
    "test_exists": "sets a key through the store; here: test_planted_keys_exist",
    "test_clear": "deletes",
}
"""Their tests that cannot pass, and why; each is run, and must be refused as writing to what is read-only."""
SKIPPED_BY_THEMSELVES = {
    *("test_delete", "test_delete_dir", "test_delete_nonexistent_key_does_not_raise"),
    *("test_set_sync", "test_delete_sync", "test_delete_sync_missing"),
}
"""Their tests that ask first whether a store deletes or writes at once: it does not."""


@pytest.fixture(scope="module", params=["memory", "posix"])
def opened(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("suite") / "s"
    place = f"memory://zarr-store-suite{folder}" if request.param == "memory" else folder
    return fill(tokens_store(place, [200]), "acts", {"h": "int8[16]"})


class TestZarrsOwn(zarr_store_tests.StoreTests):
    """What every Zarr store must do."""

    store_cls = Planted
    buffer_cls = cpu.Buffer

    async def set(self, store, key, value):
        store.plant(key, value.to_bytes())

    async def get(self, store, key):
        name = store.planted[key]
        return self.buffer_cls.from_bytes(store._opened.view.storage.get(name))

    @pytest.fixture
    def store_kwargs(self, opened):
        return {"opened": opened}

    @pytest.fixture
    def store(self, open_kwargs):
        return asyncio.run(self.store_cls.open(**open_kwargs))

    @pytest.fixture
    def store_not_open(self, store_kwargs):
        return self.store_cls(**store_kwargs)

    def test_store_repr(self, store):
        assert repr(store) == f"Planted({store._opened.url!r}, pin=None)"

    def test_store_supports_writes(self, store):
        assert not store.supports_writes
        assert not store.supports_deletes

    def test_store_supports_listing(self, store):
        assert store.supports_listing

    @pytest.mark.parametrize("read_only", [True, False])
    def test_store_open_read_only(self, open_kwargs, read_only):
        """Theirs where that is asked for; a store that can be written is refused."""
        theirs = in_turn(zarr_store_tests.StoreTests.test_store_open_read_only)
        if read_only:
            theirs(self, open_kwargs, read_only)
        else:
            with pytest.raises(ValueError, match="read-only"):
                theirs(self, open_kwargs, read_only)

    def test_planted_keys_exist(self, store):
        assert not asyncio.run(store.exists("foo/zarr.json"))
        store.plant("foo/zarr.json", b"bar")
        assert asyncio.run(store.exists("foo/zarr.json"))

    def test_pickled_it_is_the_same(self, opened):
        store = ActlakeStore(opened)
        again = pickle.loads(pickle.dumps(store))
        assert again == store
        assert again.read_only
        key, prototype = "acts/h/c/0/0", default_buffer_prototype()
        found = asyncio.run(again.get(key, prototype)).to_bytes()
        assert found == asyncio.run(store.get(key, prototype)).to_bytes()


def _refused(test, why):
    @functools.wraps(test)
    def run(*arguments, **named):
        return test(*arguments, **named)

    refusals = (ValueError, AssertionError, NotImplementedError)
    return pytest.mark.xfail(raises=refusals, reason=why, strict=True)(run)


def _taken_over():
    """Make their async tests plain ones, and what writes an expected refusal."""
    theirs = zarr_store_tests.StoreTests
    for name in sorted(name for name in dir(theirs) if name.startswith("test_")):
        test = inspect.getattr_static(theirs, name)
        if name in vars(TestZarrsOwn):
            continue
        if inspect.iscoroutinefunction(test):
            test = in_turn(test)
        if name in WRITES:
            test = _refused(test, WRITES[name])
        setattr(TestZarrsOwn, name, test)


_taken_over()


def test_every_test_of_theirs_is_run_or_has_its_reason():
    theirs = {name for name in dir(zarr_store_tests.StoreTests) if name.startswith("test_")}
    assert set(WRITES) | SKIPPED_BY_THEMSELVES <= theirs
    assert len(theirs - set(WRITES) - SKIPPED_BY_THEMSELVES) >= 30
