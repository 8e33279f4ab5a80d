"""Crashes, lost answers and races: a part is whole or invisible, and a rerun ends at the same digest."""

import threading

import numpy as np
import pytest

import store
import store.opening
from store import ConflictError, InvalidInputError, StoreError
from store.testing.faults import FaultyStorage, Killed, Plan
from store.testing.small import codes_of, fill, sequences_of, tokens_store, values_of
from store.urls import open_storage

LENGTHS = [100, 200, 150, 256, 90]
COLUMNS = {"h": "bfloat16[16]", "y": "float32"}


def work(url):
    """Everything a writer does, from wherever the store stands."""
    made = store.create(url, part_rows=512, part_stride=512)
    with made.writer("tokens", recipe={"by": "test"}) as writer:
        if not writer.sealed:
            done = writer.position or 0
            rest = sequences_of(LENGTHS[done:], first=done)
            for number, sequence in enumerate(rest, start=done + 1):
                writer.put([sequence], position=number)
            writer.seal()
    made = made.refresh()
    ids = made.row_ids()
    for name, columns, masked in (
        ("acts", COLUMNS, False),
        ("codes", {"c": "codes"}, False),
        ("sample", {"z": "int16[20]"}, True),
    ):
        with made.writer(name, columns=columns, recipe={"by": "test"}, masked=masked) as writer:
            for part in made.view.parts("tokens"):
                mine = ids[ids // 512 == part][:: 3 if masked else 1]
                if not writer.done(part):
                    declared = writer.group.columns.values()
                    values = {
                        c.name: codes_of(mine) if c.kind == "codes" else values_of(mine, c)
                        for c in declared
                    }
                    writer.put(mine, values)
    made.refresh().pin()
    made.put_asset({"one": b"1", "two": b"2"})
    return made.refresh()


@pytest.fixture
def faulty(monkeypatch):
    """A function that makes every store opened from now on follow a plan; None ends it."""

    def use(plan):
        def opener(url):
            inner = open_storage(url)
            return inner if plan is None else FaultyStorage(inner, plan)

        monkeypatch.setattr(store.opening, "open_storage", opener)

    return use


@pytest.fixture(scope="module")
def undisturbed(memory_url):
    """(digest, number of writing calls) of a run nothing happened to."""
    url, plan = memory_url(), Plan()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.opening, "open_storage", lambda u: FaultyStorage(open_storage(u), plan))
        digest = work(url).digest()
    return digest, plan.calls


def check_what_is_seen(url, digest=None):
    """Whatever is visible is whole; no attempt that a commit names lost a file."""
    made = store.open(url)
    report = store.verify(made)
    assert report.problems == []
    if digest is not None:
        assert report.digest == digest


@pytest.mark.parametrize(("mode", "step"), [("killed-before", 1), ("killed-after", 2)])
def test_a_writer_killed_at_any_call_and_run_again_ends_at_the_same_digest(
    faulty, undisturbed, memory_url, mode, step
):
    """Dying behind a call is nearly dying before the next one, so every second will do there."""
    digest, calls = undisturbed
    for at in range(1, calls + 1, step):
        url = memory_url()
        faulty(Plan(at=at, mode=mode))
        with pytest.raises(Killed):
            work(url)
        faulty(None)
        if at > 1 or mode == "killed-after":
            check_what_is_seen(url)
        work(url)
        check_what_is_seen(url, digest)


@pytest.mark.parametrize(("mode", "step"), [("refused", 2), ("answer-lost", 1)])
def test_a_call_that_fails_or_whose_answer_is_lost_destroys_nothing(
    faulty, undisturbed, memory_url, mode, step
):
    digest, calls = undisturbed
    for at in range(1, calls + 1, step):
        url = memory_url()
        plan = Plan(at=at, mode=mode)
        faulty(plan)
        try:
            work(url)
        except StoreError as error:
            assert error.kind == "unavailable"  # noqa: PT017 - some calls' answers are not missed
        faulty(None)
        work(url)
        check_what_is_seen(url, digest)


def test_a_commit_whose_answer_was_lost_is_taken_as_made(faulty, memory_url, undisturbed):
    url, plan = memory_url(), Plan()
    faulty(plan)
    work(url)
    commits = [
        n for n, what in enumerate(plan.log, 1) if what.startswith("create groups/acts/commits")
    ]
    assert len(commits) == 2
    for at in commits:
        url = memory_url()
        faulty(Plan(at=at, mode="answer-lost"))
        assert work(url).digest() == undisturbed[0]
        assert store.verify(store.open(url)).orphans == []


def test_objects_are_written_before_the_record_that_names_them(faulty, memory_url):
    plan = Plan()
    faulty(plan)
    work(memory_url())
    seen = []
    for what in plan.log:
        if what.startswith(("put ", "finish ")):
            seen.append(what.split()[1])
        if what.startswith("create ") and "/commits/" in what:
            group, part = what.split("/")[1], what.rpartition("/")[2][:8]
            mine = [key for key in seen if key.startswith(f"groups/{group}/parts/{part}/")]
            assert mine, what
    assert plan.log[-1].endswith("manifest.json")
    last = [n for n, what in enumerate(plan.log) if "groups/acts/" in what][-1]
    assert plan.log[last] == "create groups/acts/sealed.json"


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, MemoryError])
def test_an_interrupt_just_behind_the_commit_deletes_nothing(memory_url, monkeypatch, interrupt):
    made = tokens_store(memory_url(), LENGTHS)
    create = type(made.view.storage).create

    def interrupted(self, key, data):
        landed = create(self, key, data)
        if "/acts/commits/" in key:
            raise interrupt
        return landed

    monkeypatch.setattr(type(made.view.storage), "create", interrupted)
    ids = np.arange(made.view.commit("tokens", 0).rows)
    writer = made.writer("acts", columns={"h": "float32[16]"}, recipe={})
    with pytest.raises(interrupt), writer:
        writer.put(ids, {"h": np.ones((len(ids), 16))})
    monkeypatch.undo()
    assert made.refresh().read("h").sum() == 16 * len(ids)


def test_of_racing_attempts_the_first_wins_and_the_other_leaves_nothing(url):
    made = tokens_store(url, LENGTHS)
    ids = np.arange(made.view.commit("tokens", 0).rows)
    first, second = (made.writer("acts", columns={"h": "float32[16]"}, recipe={}) for _ in range(2))
    half = len(ids) // 2
    for low, high in ((0, half), (half, len(ids))):
        for writer, value in ((second, 2.0), (first, 1.0)):
            writer.put(ids[low:high], {"h": np.full((high - low, 16), value)})
    assert first.committed == second.committed
    assert np.array_equal(made.refresh().read("h"), np.full((len(ids), 16), 2.0, np.float32))
    assert len(made.view.storage.folders("groups/acts/parts/00000000")) == 1
    report = store.verify(made)
    assert report.ok
    assert report.orphans == []


def test_many_threads_write_one_group_and_every_part_is_there_once(url):
    made = tokens_store(url, [200] * 12, part_rows=256, part_stride=256)
    failures = []

    def run(seed):
        try:
            with made.writer("acts", columns=COLUMNS, recipe={}) as writer:
                for part in np.random.default_rng(seed).permutation(12):
                    ids = part * 256 + np.arange(200)
                    declared = writer.group.columns.values()
                    writer.put(ids, {c.name: values_of(ids, c) for c in declared})
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert failures == []
    made = made.refresh()
    assert made.coverage["acts"].sealed
    assert np.array_equal(made.read("h"), values_of(made.row_ids(), made.column("h")))
    assert store.verify(made).to_json()["orphans"] == []


def test_two_recipes_race_for_one_name_and_one_is_told(url):
    made = tokens_store(url)
    results = []

    def run(seed):
        try:
            made.writer("acts", columns=COLUMNS, recipe={"seed": seed})
            results.append("made")
        except ConflictError as error:
            results.append(error.kind)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(6)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sorted(results) == ["group-recipe"] * 5 + ["made"]


def test_a_group_that_followed_the_tokens_is_sealed_after_them(memory_url):
    made = tokens_store(memory_url(), LENGTHS, seal=False)
    with made.writer("acts", columns={"y": "float32"}, recipe={}) as writer:
        ids = made.row_ids()
        writer.put(ids, {"y": np.ones(len(ids))})
    assert not made.refresh().coverage["acts"].sealed
    with made.writer("tokens", recipe={"source": "small", "lengths": LENGTHS}) as writer:
        writer.seal()
    with made.writer("acts", columns={"y": "float32"}, recipe={}):
        pass
    assert made.refresh().coverage["acts"].sealed


def test_a_table_that_readers_would_refuse_is_not_written(memory_url, monkeypatch):
    made = tokens_store(memory_url(), [200], seal=False)
    largest = max(item.size for item in made.view.commit("tokens", 0).objects.values())
    monkeypatch.setattr("store.layout.MAX_TABLE_BYTES", largest)
    with pytest.raises(InvalidInputError, match=r"table-too-large.*smaller part_rows"):
        fill(made, "acts", {"y": "float32[15]"})
    monkeypatch.undo()
    assert made.refresh().view.parts("acts") == {}


def test_more_text_than_readers_take_is_not_written(memory_url, monkeypatch):
    monkeypatch.setattr("store.parquet_bounds.MAX_TEXT_BYTES", 1000)
    with pytest.raises(InvalidInputError, match=r"table-too-large.*text"):
        tokens_store(memory_url(), [200] * 8, part_rows=2048, part_stride=2048)
