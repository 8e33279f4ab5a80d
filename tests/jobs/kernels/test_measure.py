"""The clock's order, its summaries and its verdicts; no test here judges a duration."""

from __future__ import annotations

import math

import pytest

from jobs.errors import UsageError
from jobs.kernels import measure
from jobs.kernels.measure import ceilings, interleaved, noise_band, spread, timing, verdict


def test_methods_take_turns_and_warm_up_is_not_counted(monkeypatch):
    calls = []
    ticks = iter(range(10**6))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: float(next(ticks)))
    found = interleaved(
        {"a": lambda n: calls.append(("a", n)), "b": lambda n: calls.append(("b", n))}, repeats=5
    )
    assert [name for name, _ in calls] == ["a", "b"] * 7
    assert [n for name, n in calls if name == "a"] == [3, 4, 0, 1, 2, 3, 4]
    assert found["a"].samples == 5
    assert found["a"].median_us == found["b"].minimum_us == 1e6


def test_a_check_may_stop_it():
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interleaved({"a": lambda _: None}, repeats=5, check=stop)


def test_too_few_repeats_are_no_measurement():
    with pytest.raises(UsageError, match=r"bad-number: 4 timed runs.*0 for no times"):
        interleaved({"a": lambda _: None}, repeats=4)


def test_a_summary_is_median_and_fifths():
    found = timing([s * 1e-6 for s in (5, 1, 2, 3, 4, 6)])
    assert (found.median_us, found.minimum_us, found.samples) == (
        pytest.approx(3.5),
        pytest.approx(1.0),
        6,
    )
    assert found.p20_us == pytest.approx(2.0)
    assert found.p80_us == pytest.approx(5.0)


def test_the_band_is_what_one_thing_timed_twice_differs_by():
    steady = timing([1.0] * 9)
    slower = timing([1.2] * 9)
    assert noise_band(steady, steady) == 0.0
    assert (
        noise_band(slower, steady)
        == pytest.approx(noise_band(steady, slower))
        == pytest.approx(0.2)
    )
    restless = timing([0.5, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.5, 1.5])
    assert noise_band(steady, restless) == pytest.approx(spread(restless))
    assert spread(restless) == pytest.approx(0.2)  # fifths at 0.8 and 1.2
    assert spread(steady) == 0.0


@pytest.mark.parametrize(
    ("speedup", "said"),
    [
        (1.0, "no difference"),
        (1.09, "no difference"),
        (0.91, "no difference"),
        (1.2, "faster"),
        (0.5, "slower"),
        (math.nan, ""),
    ],
)
def test_inside_the_band_there_is_no_difference(speedup, said):
    assert verdict(speedup, 0.1) == said


def test_a_wide_band_hides_no_great_loss():
    assert verdict(0.05, 1.03) == "slower"
    assert verdict(0.5, 1.03) == "no difference"


@pytest.mark.parametrize("able", [True, False])
def test_ceilings_are_measured(monkeypatch, able):
    monkeypatch.setattr("jobs.kernels.measure.multiplies_bfloat16", lambda: able)
    found = ceilings(size=64, copy_bytes=1 << 16)
    products = ["product float32", *(["product bfloat16"] if able else [])]
    assert [c.quantity for c in found] == [*products, "copy"]
    assert all(c.value > 0 for c in found)
    assert all("threads" in c.setting for c in found)


def test_a_baseline_timed_twice_is_never_slower_than_itself():
    again, first = 12204.317998111947, 11678.105998726096
    assert verdict(first / again, again / first - 1) == "no difference"
