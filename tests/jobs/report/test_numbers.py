"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.report import numbers

CASES = [
    (numbers.count, 400_000, "400 000"),
    (numbers.count, -1234, "−1 234"),
    (numbers.count, float("nan"), "–"),
    (numbers.size, 999, "999 B"),
    (numbers.size, 307_200_000, "307 MB"),
    (numbers.size, 999_600, "1.0 MB"),
    (numbers.size, 1_200_000_000_000, "1.2 TB"),
    (numbers.share, 0.1734, "17.3 %"),
    (numbers.share, 1.0, "100 %"),
    (numbers.share, 0, "0 %"),
    (numbers.share, 4e-9, "< 0.001 %"),
    (numbers.decimal, 0.17344, "0.173"),
    (numbers.decimal, 0.9999, "1"),
    (numbers.decimal, 31.8, "31.8"),
    (numbers.decimal, 1234.5, "1234"),
    (numbers.decimal, 98_765.4, "98 765"),
    (numbers.decimal, 3e-7, "3.00e−07"),
    (numbers.decimal, float("inf"), "–"),
    (numbers.duration, 0.0, "0 s"),
    (numbers.duration, 3.25, "3.2 s"),
    (numbers.duration, 252, "4 min 12 s"),
    (numbers.duration, 59.99, "60 s"),
    (numbers.duration, 7_260, "2 h 1 min"),
    (numbers.rate, 21_234.5, "21 200 rows/s"),
    (numbers.rate, 0, "–"),
]


@pytest.mark.parametrize(
    ("form", "value", "said"), CASES, ids=lambda case: getattr(case, "__name__", str(case))
)
def test_numbers_are_said_humanly(form, value, said):
    assert form(value).replace("\u2009", " ").replace("\u00a0", " ") == said


def test_a_column_keeps_its_zeros():
    assert numbers.decimal(9.0, trim=False) == "9.00"


@given(value=st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_three_digits_are_within_half_a_percent(value):
    said = numbers.decimal(value).replace("\u2009", "").replace("−", "-")
    assert math.isclose(float(said), value, rel_tol=0.005, abs_tol=0.0)


@given(value=st.integers(0, 10**17))
def test_sizes_are_within_five_percent(value):
    number, unit = numbers.size(value).split("\u00a0")
    scale = 1000 ** ("B", "kB", "MB", "GB", "TB", "PB").index(unit)
    assert math.isclose(float(number) * scale, value, rel_tol=0.05)
