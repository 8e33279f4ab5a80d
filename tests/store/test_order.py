import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.order import Order, permute

PARTS = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 900)), min_size=1, max_size=5).map(
    lambda steps: [
        (int(part), rows)
        for part, rows in zip(np.cumsum([s for s, _ in steps]), [r for _, r in steps], strict=True)
    ]
)


def order_of(parts, **settings):
    return Order(
        parts=np.array([p for p, _ in parts]), rows=np.array([r for _, r in parts]), **settings
    )


def rows_of(order):
    """(part, row) of everything an order names, window by window, in final order."""
    found = []
    for number in range(order.windows):
        part, chunk = order.window(number)
        rows = [
            (int(order.parts[p]), row)
            for p, c in zip(part, chunk, strict=True)
            for row in range(c * 256, min((c + 1) * 256, int(order.rows[p])))
        ]
        found += [rows[i] for i in order.shuffle(number, len(rows))]
    return found


@given(st.integers(1, 5000), st.integers(0, 2**64 - 1))
def test_permute_is_a_permutation(count, key):
    image = permute(np.arange(count, dtype=np.uint64), count, key)
    assert np.array_equal(np.sort(image), np.arange(count))


@given(st.integers(2, 2**62), st.integers(0, 2**64 - 1), st.data())
def test_permute_stays_inside_and_equals_the_oracle(oracle, count, key, data):
    i = data.draw(st.integers(0, count - 1))
    image = int(permute(np.array([i], np.uint64), count, key)[0])
    assert 0 <= image < count
    assert image == oracle("order").permute(i, count, key)


@given(PARTS, st.integers(0, 2**63), st.integers(0, 40), st.integers(1, 2000))
def test_an_epoch_is_a_permutation_of_all_rows(parts, seed, epoch, window_rows):
    order = order_of(parts, seed=seed, epoch=epoch, window_rows=window_rows)
    rows = rows_of(order)
    assert sorted(rows) == [(part, row) for part, count in parts for row in range(count)]


@pytest.mark.parametrize("window_rows", [1, 256, 700, 100_000])
def test_the_order_is_what_the_format_says(oracle, window_rows):
    parts = [(0, 300), (2, 256), (3, 17), (9, 600)]
    wanted = oracle("order").order(parts, seed=11, epoch=2, window_rows=window_rows)
    assert rows_of(order_of(parts, seed=11, epoch=2, window_rows=window_rows)) == wanted


@given(st.integers(0, 2**64 - 1), st.integers(0, 70))
def test_the_shuffle_is_what_the_format_says(oracle, seed, count):
    order = order_of([(0, 1)], seed=seed, epoch=3, window_rows=256)
    key = oracle("order").subseed(f"{seed}/rows/3/5")
    assert order.shuffle(5, count).tolist() == oracle("order").shuffle(key, count)


def test_seeds_epochs_and_windows_differ():
    parts = [(0, 2000)]
    settings = {"seed": 1, "epoch": 0, "window_rows": 512}
    base = rows_of(order_of(parts, **settings))
    for changed in ({"seed": 2}, {"epoch": 1}, {"window_rows": 1024}):
        assert rows_of(order_of(parts, **{**settings, **changed})) != base
    assert rows_of(order_of(parts, **settings)) == base


def test_the_first_row_of_many_orders_is_uniform():
    """Chi-squared over 16 blocks of 128 rows; 45 is the 0.9999 quantile at 15 degrees of freedom."""
    order = [
        rows_of(order_of([(0, 2048)], seed=seed, epoch=0, window_rows=4096))[0][1] // 128
        for seed in range(800)
    ]
    counts = np.bincount(order, minlength=16)
    assert ((counts - 50) ** 2 / 50).sum() < 45
