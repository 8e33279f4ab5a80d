"""The power is cut before every call of a small store's life: what was told stands, what is seen is whole.

The disk is a model that promises what POSIX does and nothing more (``store.testing.power``), under the real adapter. What
a cut may leave is tried out at its corners and by chance; real code opens it, checks all of it, and writes on.
"""

import contextlib
from pathlib import Path

import numpy as np
import pytest

from store import StoreError
from store.maintenance import retire
from store.opening import open_in
from store.posix import PosixStorage, PosixStream
from store.storage import Written
from store.testing.faults import Killed, Plan
from store.testing.life import ACTS, STRIDE, Life, check_told, check_whole
from store.testing.power import EXTREMES, LOSES_ALL, Chance, Disk, Process
from store.testing.small import sequences_of, values_of

ROOT = Path("/disk/store")


def alive(disk, plan=None, adapter=PosixStorage):
    """A process on a disk that lives a store's life."""
    return Life(adapter(ROOT, Process(disk, plan)), lambda: disk.now)


@pytest.fixture(scope="module")
def undisturbed():
    return alive(Disk()).run().digest()


class Cuts:
    """Cuts the power before every call on a disk, and has a look at what is left.

    Parameters
    ----------
    told
        A function that returns what was told so far.
    chances
        How many times chance decides what survives, beside the extremes.
    rerun
        The digest at which a rerun on what is left must end; None runs nothing.
    """

    def __init__(self, disk, told, *, lucks=EXTREMES, chances=0, rerun=None):
        self.disk, self.told, self.lucks, self.chances = disk, told, lucks, chances
        self.rerun, self.cuts, self.failure = rerun, 0, None
        self.seen = set()

    def __call__(self):
        self.cuts += 1
        chances = {f"chance {n}": Chance(f"{self.cuts} {n}") for n in range(self.chances)}
        for name, luck in {**self.lucks, **chances}.items():
            left = self.disk.after_power_cut(luck)
            mark = hash((left.contents(), self.told().size()))
            if self.failure is not None or mark in self.seen:
                continue
            self.seen.add(mark)
            try:
                self.check(left)
            except Exception as error:  # noqa: BLE001 - raised again when the run is over
                self.failure = error
                error.add_note(f"cut {self.cuts}, where the disk {name}")

    def check(self, left):
        storage = PosixStorage(ROOT, Process(left))
        check_told(storage, self.told())
        check_whole(storage)
        if self.rerun is not None:
            alive(left).run()
            report = check_whole(storage)
            assert report.digest == self.rerun
            assert report.orphans == [], report.orphans

    def raise_what_was_found(self):
        if self.failure is not None:
            raise self.failure


class WhenTold(Cuts):
    """Cuts only where something new was told."""

    size = -1

    def __call__(self):
        if self.told().size() > self.size:
            self.size = self.told().size()
            super().__call__()


def cut_everywhere(adapter=PosixStorage, **options):
    """Live a life on a disk, cutting before every call and behind the last one; return the cuts."""
    disk = Disk()
    life = alive(disk, adapter=adapter)
    disk.watch = cuts = Cuts(disk, lambda: life.told, **options)
    life.run()
    cuts()
    cuts.raise_what_was_found()
    return cuts


GC_CALLS = 8
"""How many calls gc's last ones may be fewer: which folders are empty when depends on random names."""


def another_died(at, adapter=PosixStorage, watching=WhenTold, **options):
    """A process dies behind its n-th call; another one lives on from there, cut wherever it was told something."""
    disk, plan = Disk(), Plan(at=at, mode="killed-after")
    with contextlib.suppress(Killed):
        alive(disk, plan).run()
    assert plan.dead or plan.calls > at - GC_CALLS
    life = alive(disk, adapter=adapter)
    disk.watch = cuts = watching(disk, lambda: life.told, **options)
    life.run()
    cuts()
    cuts.raise_what_was_found()


@pytest.fixture(scope="module")
def calls():
    """Every changing call of an undisturbed life."""
    life = alive(Disk())
    life.run()
    return life.storage.system.plan.log


@pytest.fixture
def one_part_a_folder(monkeypatch):
    """Commit records of neighbouring parts lie in folders of their own, as those of parts 4095 and 4096 do."""
    monkeypatch.setattr("store.layout.PARTS_A_FOLDER", 1)


RECORDS = ("store.json", "group.json", ".0.json", "sealed.json", "two", "manifest.json")
RECORDS += ("00000000.json", "dropped.json")


def dies_behind(calls, *ends):
    """The numbers of the calls that are of some kind (``mkdir``) or make a name that ends so."""
    return [
        at
        for at, what in enumerate(calls, start=1)
        if what.partition(" ")[0] in ends or (what.startswith("link ") and what.endswith(ends))
    ]


# -- what is promised ----------------------------------------------------------------------------------------


def test_the_power_fails_before_every_call(calls):
    corners = ("loses all", "keeps names, not bytes")
    cuts = cut_everywhere(lucks={name: EXTREMES[name] for name in corners})
    assert cuts.cuts == len(calls) + 1 > 300


@pytest.mark.slow
def test_the_power_fails_before_every_call_and_a_rerun_ends_at_the_undisturbed_store(undisturbed):
    cuts = cut_everywhere(chances=5, rerun=undisturbed)
    assert len(cuts.seen) > cuts.cuts


@pytest.mark.usefixtures("one_part_a_folder")
def test_what_a_process_relied_on_survives_though_its_maker_died_before_it_was_durable(calls):
    for at in dies_behind(calls, "00000000.0.json", "sealed.json", "manifest.json"):
        another_died(at, lucks={"loses all": LOSES_ALL})


@pytest.mark.slow
@pytest.mark.usefixtures("one_part_a_folder")
def test_of_two_processes_one_dies_behind_every_name_it_makes(calls, undisturbed):
    for at in dies_behind(calls, "link", "mkdir"):
        another_died(at, lucks={"loses all": LOSES_ALL}, rerun=undisturbed)


@pytest.mark.slow
@pytest.mark.usefixtures("one_part_a_folder")
def test_of_two_processes_one_dies_behind_a_record_and_the_power_fails_at_any_call_later(calls):
    for at in dies_behind(calls, "two", "manifest.json", "00000001.0.json", "sealed.json"):
        another_died(at, watching=Cuts, chances=2)


def dying(disk, name):
    """A storage whose process dies when it has made a name, before that is durable."""

    class Dying(Process):
        def link(self, source, target):
            super().link(source, target)
            if target.name == name:
                self.plan.dead = True

    return PosixStorage(ROOT, Dying(disk))


def add_tokens(storage, number, *, seal=False):
    with open_in(storage).writer("tokens", recipe={"by": "life"}) as writer:
        if number is not None:
            (sequence,) = sequences_of([50], first=number)
            writer.put([sequence], position=number + 1)
            writer.flush()
        if seal:
            writer.seal()


def add_acts(storage, parts):
    with open_in(storage).writer("acts", columns=ACTS, recipe={"by": "life"}) as writer:
        for part in parts:
            ids = part * STRIDE + np.arange(50)
            writer.put(ids, {c.name: values_of(ids, c) for c in writer.group.columns.values()})
        return writer


@pytest.fixture
def disk():
    """A store of one unsealed part of tokens."""
    disk = Disk()
    life = alive(disk)
    life.begin()
    add_tokens(life.storage, 0)
    return disk


def on(disk):
    return PosixStorage(ROOT, Process(disk))


def after(disk):
    """What a process finds that lost everything it could lose."""
    return on(disk.after_power_cut(LOSES_ALL))


def test_a_pin_does_not_outlive_what_it_lists(disk):
    with pytest.raises(Killed):
        add_acts(dying(disk, "00000000.0.json"), [0])
    pin = open_in(on(disk)).pin()
    pinned = open_in(after(disk), pin)
    assert pinned.read("acts:h").shape == (50, 16)


def test_a_part_that_is_passed_over_stays_done(disk):
    with pytest.raises(Killed):
        add_acts(dying(disk, "00000000.0.json"), [0])
    assert add_acts(on(disk), [0]).passed_rows == 50
    assert list(open_in(after(disk)).view.parts("acts")) == [0]


@pytest.mark.usefixtures("one_part_a_folder")
def test_a_part_of_tokens_does_not_outlive_the_one_before_it(disk):
    with pytest.raises(Killed):
        add_tokens(dying(disk, "00000001.0.json"), 1)
    add_tokens(on(disk), 2)
    assert list(open_in(after(disk)).view.parts("tokens")) == [0, 1, 2]


def test_a_retired_part_does_not_outlive_its_commit(disk):
    with pytest.raises(Killed):
        add_tokens(dying(disk, "00000001.0.json"), 1)
    retire(open_in(on(disk)), [1], "not wanted")
    storage = after(disk)
    add_tokens(storage, 2)
    assert list(open_in(storage).view.parts("tokens")) == [0, 2]


def test_a_group_is_not_sealed_longer_than_its_tokens(disk):
    writer = open_in(on(disk)).writer("acts", columns=ACTS, recipe={"by": "life"})
    with pytest.raises(Killed):
        add_tokens(dying(disk, "sealed.json"), None, seal=True)
    ids = np.arange(50)
    with writer:
        writer.put(ids, {c.name: values_of(ids, c) for c in writer.group.columns.values()})
    view = open_in(after(disk)).view
    assert view.sealed("acts") is not None
    assert view.sealed("tokens") is not None


def test_a_folder_that_others_removed_and_made_again_is_synced_again():
    disk = Disk()
    ours = on(disk)
    ours.put("g/p/one", b"1")
    ours.delete(["g/p/one"])
    with pytest.raises(Killed):
        PosixStorage(ROOT, Process(disk, Plan(at=2, mode="killed-after"))).put("g/p/two", b"2")
    ours.put("g/p/three", b"3")
    assert after(disk).get("g/p/three") == b"3"


def test_a_store_whose_folder_another_is_just_making_is_there_to_stay():
    disk = Disk()
    with pytest.raises(Killed):
        alive(disk, Plan(at=2, mode="killed-after")).begin()
    life = alive(disk)
    life.begin()
    check_told(after(disk), life.told)


# -- the same checks catch adapters that promise less -----------------------------------------------------------


class NoSyncOfData(PosixStorage):
    def __init__(self, root, system):
        system.fdatasync = lambda fd: None
        super().__init__(root, system)


class NoSyncBehindTheLink(PosixStorage):
    naming = False

    def _sync_names(self, folder, made):
        self.naming = True
        super()._sync_names(folder, made)
        self.naming = False

    def sync_folder(self, folder):
        if self.naming:
            super().sync_folder(folder)


class NoSyncOfNewFolders(PosixStorage):
    def _sync_names(self, folder, made):
        pass


class RecordsBeforeObjects(PosixStorage):
    """Objects of an attempt are finished only behind the next commit record, and said to be there before."""

    def __init__(self, root, system):
        super().__init__(root, system)
        self.late, self.said = [], set()

    def size(self, key):
        return 0 if self.late and key in self.said else super().size(key)

    def stream(self, key):
        stream = super().stream(key)
        self.said.add(key)
        return Unfinished(stream, self.late) if "/parts/" in key else stream

    def create(self, key, data):
        made = super().create(key, data)
        while "/commits/" in key and self.late:
            self.late.pop().finish()
        return made


class Unfinished:
    def __init__(self, stream: PosixStream, late):
        self.stream, self.late, self.write = stream, late, stream.write

    def finish(self):
        self.late.append(self.stream)
        return Written(size=self.stream._size, crc32c=self.stream._crc)

    def abandon(self):
        pass


class NoSettling(PosixStorage):
    def settle(self, prefix):
        pass


class NoSyncOfWhatOthersMade(PosixStorage):
    def _sync_names(self, folder, made):
        self._durable |= {folder, *folder.parents} - made
        super()._sync_names(folder, made)


class NoSyncOfATakenRecord(PosixStorage):
    creating = False

    def create(self, key, data):
        taken = self.local_path(key)
        if (
            self._is_folder(taken.parent)
            and taken.name in self.system._folder(taken.parent).entries
        ):
            return False
        return super().create(key, data)


WORSE = (NoSyncOfData, NoSyncBehindTheLink, NoSyncOfNewFolders, RecordsBeforeObjects)


@pytest.mark.parametrize("adapter", WORSE, ids=lambda adapter: adapter.__name__)
def test_an_adapter_that_promises_less_is_caught(adapter):
    with pytest.raises((AssertionError, StoreError)) as caught:
        cut_everywhere(adapter)
    assert caught.value.__notes__[0].startswith("cut ")


def others_died(numbers, adapter):
    for at in numbers:
        another_died(at, adapter, lucks={"loses all": LOSES_ALL})


WORSE_BESIDE_OTHERS = (NoSettling, NoSyncOfWhatOthersMade, NoSyncOfATakenRecord)


@pytest.mark.slow
@pytest.mark.usefixtures("one_part_a_folder")
@pytest.mark.parametrize("adapter", WORSE_BESIDE_OTHERS, ids=lambda adapter: adapter.__name__)
def test_an_adapter_that_trusts_what_others_made_is_caught(adapter, calls):
    cut_everywhere(adapter, lucks={"loses all": LOSES_ALL})  # alone it is as good
    with pytest.raises((AssertionError, StoreError)) as caught:
        others_died(dies_behind(calls, *RECORDS, "mkdir"), adapter)
    assert caught.value.__notes__[0].startswith("cut ")
