"""The ring between model and store: in order, bounded, and a failed write stops what comes behind it."""

from __future__ import annotations

import signal
import threading

import pytest
import torch

from ingest.ring import Ring


@pytest.fixture
def ring():
    made = Ring("cpu", depth=2)
    yield made
    made.close()


def test_writes_come_in_order_one_at_a_time(ring):
    seen, inside = [], []

    def write(number):
        inside.append(number)
        assert inside == [number]
        seen.append(number)
        inside.remove(number)

    for number in range(50):
        ring.submit(lambda number=number: write(number))
    ring.drain()
    assert seen == list(range(50))


def test_no_more_is_under_way_than_may_be(ring):
    gate, begun = threading.Event(), []

    def write(number):
        begun.append(number)
        gate.wait(10)

    for number in range(2):
        ring.submit(lambda number=number: write(number))
    third = threading.Thread(target=ring.submit, args=(lambda: write(2),))
    third.start()
    third.join(0.2)
    assert third.is_alive()  # it waits: two are under way
    gate.set()
    third.join(10)
    ring.drain()
    assert begun == [0, 1, 2]


def test_a_write_that_fails_is_raised_and_nothing_behind_it_is_written(ring):
    gate, written = threading.Event(), []

    def fail():
        gate.wait(10)
        raise OSError("disk full")

    ring.submit(fail)
    ring.submit(lambda: written.append("behind it"))
    gate.set()
    with pytest.raises(OSError, match="disk full"):
        ring.submit(lambda: written.append("after that"))
    assert written == []
    ring.submit(lambda: written.append("after"))
    ring.drain()
    assert written[-1] == "after"


def test_what_was_cancelled_is_over_when_it_returns(ring):
    gate, state = threading.Event(), []

    def write():
        state.append("begun")
        gate.wait(10)
        state.append("done")

    ring.submit(write)
    ring.submit(lambda: state.append("second"))
    while not state:
        pass
    threading.Timer(0.1, gate.set).start()
    ring.cancel()
    assert state == ["begun", "done"]
    ring.drain()
    assert state == ["begun", "done"]


def test_values_on_the_cpu_are_handed_on_as_they_are(ring):
    value = torch.arange(4.0)
    landing = ring.land({"x": value})
    assert landing.wait()["x"].data_ptr() == value.data_ptr()


def test_cpu_time_is_told_once(ring):
    ring.submit(lambda: sum(range(10**6)))
    ring.drain()
    assert ring.cpu_seconds() > 0
    assert ring.cpu_seconds() == 0


@pytest.mark.parametrize("when", ["submit", "drain", "cancel"])
def test_an_interrupt_while_waiting_leaves_no_write_under_way(when):
    made = Ring("cpu", depth=1)
    begun, gate, state = threading.Event(), threading.Event(), []

    def write():
        begun.set()
        gate.wait(10)
        state.append("done")

    def interrupt():
        begun.wait(10)
        signal.raise_signal(signal.SIGINT)
        threading.Timer(0.2, gate.set).start()

    made.submit(write)
    begun.wait(10)
    threading.Timer(0.1, interrupt).start()
    call = {"submit": lambda: made.submit(lambda: state.append("next"))}
    with pytest.raises(KeyboardInterrupt):
        call.get(when, getattr(made, when))()
    assert state == ["done"]
    made.close()
