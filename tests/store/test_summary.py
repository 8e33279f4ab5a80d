import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.summary import Summary, bfloat16_bits, float32_of_bits
from store.testing.strategies import cuts, float32_values


def exact(bits):
    """The value of bfloat16 bits as a fraction, the format read from its definition."""
    sign = -1 if bits >> 15 else 1
    exponent, fraction = bits >> 7 & 0xFF, bits & 0x7F
    if exponent == 0:
        return sign * Fraction(fraction, 1 << 7) * Fraction(2) ** -126
    return sign * (1 + Fraction(fraction, 1 << 7)) * Fraction(2) ** (exponent - 127)


def nearest_even(value):
    """Bits of the bfloat16 nearest to a finite float, ties to the even one; by search, not by bit tricks."""
    sign = 0x8000 if math.copysign(1, value) < 0 else 0
    size = Fraction(abs(value))
    low, high = 0, 0x7F80  # 0x7F80 stands for 2**128, one step above the largest
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if exact(middle) <= size else (low, middle)
    above = Fraction(2) ** 128 if high == 0x7F80 else exact(high)
    if size - exact(low) == above - size:
        return sign | (low if low % 2 == 0 else high)
    return sign | (low if size - exact(low) < above - size else high)


@given(float32_values(16))
def test_float32_rounds_to_the_nearest_bfloat16(values):
    for value, bits in zip(values, bfloat16_bits(values), strict=True):
        if np.isnan(value):
            assert np.isnan(float32_of_bits(np.array([bits])))[0]
        elif np.isinf(value):
            assert bits == (0x7F80 if value > 0 else 0xFF80)
        else:
            assert bits == nearest_even(float(value))


def test_ties_go_to_the_even_neighbour():
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF], np.uint32)
    assert bfloat16_bits(bits.view(np.float32)).tolist() == [0x3F80, 0x3F82, 0x3F81, 0x3F80]


def test_every_bfloat16_survives_the_round_trip():
    bits = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
    back = bfloat16_bits(float32_of_bits(bits))
    quiet = np.where((bits & 0x7F80 == 0x7F80) & (bits & 0x7F != 0), bits | 0x40, bits)
    assert np.array_equal(back, quiet)
    widened = float32_of_bits(bits).view(np.uint32)
    assert np.array_equal(widened, bits.astype(np.uint32) << 16)


def summary_of(values):
    found = Summary()
    found.update(values)
    return found


@given(st.data())
def test_any_split_merges_to_the_whole(data):
    rows = data.draw(st.integers(0, 30))
    values = data.draw(float32_values(rows * 3)).reshape(rows, 3)
    pieces = [summary_of(values[a:b]) for a, b in data.draw(cuts(rows))]
    merged = Summary()
    for piece in pieces:
        merged = merged.merge(piece)
    whole = summary_of(values)
    assert (merged.rows, merged.nonfinite) == (whole.rows, whole.nonfinite)
    assert merged.max_abs == whole.max_abs
    assert merged.first_bad_row == whole.first_bad_row
    assert merged.norm_sum == pytest.approx(whole.norm_sum, rel=1e-12)
    assert merged.merge(Summary()) == Summary().merge(merged) == merged


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "uint64"])
def test_summaries_say_norm_and_largest_magnitude(dtype, rng):
    values = (rng.normal(size=(50, 20)) * 10).astype(np.int64).clip(0).astype(dtype)
    wide = values.astype(np.float64)
    found = summary_of(values).to_json()
    assert found["mean_norm"] == pytest.approx(np.linalg.norm(wide, axis=1).mean(), rel=1e-6)
    assert found["max_abs"] == wide.max()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_counted_not_summed(bad, rng):
    values = rng.normal(size=(40, 8)).astype(np.float32)
    good = summary_of(np.delete(values, 17, axis=0))
    values[17, 3] = bad
    found = summary_of(values)
    assert (found.nonfinite, found.first_bad_row, found.rows) == (1, 17, 40)
    assert found.norm_sum == pytest.approx(good.norm_sum)
    assert found.max_abs == good.max_abs


def test_rows_with_both_infinities_and_huge_finite_rows_raise_no_alarm_of_numpy():
    values = np.array([[np.inf, -np.inf], [3e38, -3e38]], np.float32)
    found = summary_of(values)
    assert (found.nonfinite, found.first_bad_row) == (2, 0)
    assert found.max_abs == float(np.float32(3e38))
