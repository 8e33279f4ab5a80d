"""Many processes on one store, in orders and with faults that a seed decides: what is read is right, always.

Some seeds here, two thousand in the slow tests, as many as one likes by hand:
``ACTLAKE_SEEDS=1000000 pytest -m loops tests/store/test_simulator.py``. A seed that fails says so: run it alone with
``ACTLAKE_SEED=<n>``. After every call a ledger says what no step may do (``store.testing.ledger``), after some of them and at
the end all is read.
"""

import os
import re
import sys

import pytest

from store.attempts import Attempt
from store.commits import Item, expected_objects
from store.testing.ledger import Ledger
from store.testing.scenarios import (
    ID,
    STRIDE,
    founded,
    opened,
    reader,
    run_seed,
    run_seeds,
    write_tokens,
)
from store.testing.simulator import NONE, Actor, Odds, Simulation

PROCESSES = os.cpu_count() or 1


@pytest.mark.parametrize("seed", range(0, 24, 3))
def test_many_processes_and_faults_end_at_the_undisturbed_store(seed):
    run_seed(seed)


@pytest.mark.parametrize("seed", range(1, 22, 3))
def test_groups_that_end_while_they_are_used_are_gone_or_right(seed):
    run_seed(seed)


@pytest.mark.parametrize("seed", range(2, 20, 3))
def test_rows_that_are_removed_while_others_write_are_gone_and_the_rest_is_right(seed):
    run_seed(seed)


def test_a_seed_is_one_order_of_calls():
    def calls(seed):
        actors = [Actor("t", write_tokens, lives=2), Actor("r", reader(3), lives=2)]
        simulation = Simulation(actors, seed, storage=founded())
        simulation.run()
        # Attempts have random ids, and pins name them.
        return [re.sub("[0-9a-f]{16,}", "…", call) for call in simulation.calls]

    assert calls(3) == calls(3) != calls(4)


def test_faults_strike():
    """The odds are such that processes die; else the rest would prove little."""
    storage = founded()
    odds = Odds(killed_before=0.05, killed_after=0.05, refused=0.05, answer_lost=0.05)
    actor = Actor("t", write_tokens, lives=50, odds=odds)
    simulation = Simulation([actor], 1, storage=storage)
    simulation.run()
    assert actor.deaths > 3
    for fate in ("killed_before", "killed_after", "refused", "answer_lost"):
        assert any(f"({fate})" in call for call in simulation.calls), fate


def _say(capsys, seeds, account, seconds):
    with capsys.disabled():
        sys.stdout.write(f"\n{len(seeds)} seeds in {seconds:.0f} s: {account}\n")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_thousand_seeds(capsys):
    seeds = range(1000, 3000)
    account, seconds = run_seeds(seeds, PROCESSES)
    _say(capsys, seeds, account, seconds)
    assert account.deaths > len(seeds)
    assert account.deleted > len(seeds)


@pytest.mark.loops
@pytest.mark.timeout(0)
def test_as_many_seeds_as_one_likes(capsys):
    if one := os.environ.get("ACTLAKE_SEED"):
        run_seed(int(one))
        return
    seeds = range(10_000, 10_000 + int(os.environ.get("ACTLAKE_SEEDS", "20000")))
    _say(capsys, seeds, *run_seeds(seeds, PROCESSES))


def test_a_seed_that_fails_says_how_to_replay_it(monkeypatch):
    monkeypatch.setattr(Ledger, "deleting", lambda *_: pytest.fail("nothing may be deleted"))
    with pytest.raises(
        AssertionError, match=r"seed 5 fails: ACTLAKE_SEED=5 pytest -m loops tests/"
    ):
        run_seed(5)


def test_the_ledger_catches_what_no_step_may_do(monkeypatch):
    """Else it would prove little."""
    storage = founded()
    Simulation([Actor("tokens", write_tokens, odds=NONE)], 0, storage=storage).run()
    key = next(key for key in storage.keys("groups/tokens/parts"))
    with pytest.raises(AssertionError, match="a record names it"):
        storage.delete([key])
    with pytest.raises(AssertionError, match="was deleted"):
        storage.delete(["groups/tokens/sealed.json"])
    made = opened(storage)
    attempt = Attempt(
        storage=storage,
        store_id=ID,
        group=made.view.group("tokens"),
        part=9,
        stride_rows=STRIDE,
    )
    for path in expected_objects(attempt.group):
        attempt._items.append(Item(path=path, size=1, crc32c="00000000", rows=1))
    monkeypatch.setattr(Attempt, "_check_kept", lambda self: None)
    with pytest.raises(AssertionError, match="which is not there"):
        attempt.commit(1, tokens=None, summary={}, provenance={})
