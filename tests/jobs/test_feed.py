"""Rows as batches: batch i is the same from any start, and nothing comes twice in an epoch."""

from __future__ import annotations

import weakref
from itertools import count, islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import store
from jobs.blocks import blocks, survivors
from jobs.errors import JobError
from jobs.feed import StoreFeed, rows_identity, tensor_of, usual_rows
from store.errors import InvalidInputError
from store.tokens import FLAG_SPECIAL

NUMBER = count()
DTYPES = ("float32", "float16", "bfloat16", "float64")
LENGTHS = (120, 136, 200, 56, 256, 90, 31)


def fill_tokens(held, lengths=LENGTHS, die_after=None):
    """Write sequences of these lengths; the first row of each is special, splits go 0 0 1 0 0 1 …."""
    with held.writer("tokens", recipe={"of": "tests"}) as writer:
        for number in range(writer.position or 0, len(lengths)):
            flags = np.zeros(lengths[number], np.uint16)
            flags[0] = FLAG_SPECIAL
            sequence = store.TokenSequence(
                token_ids=np.arange(lengths[number]), flags=flags, split=int(number % 3 == 2)
            )
            writer.put([sequence], position=number + 1)
            if die_after is not None and len(writer.committed) > die_after:
                raise KeyboardInterrupt
        writer.seal()


def rows_of(ids, width):
    """Return rows that tell their row id, the same whoever makes them, ``float64[R, width]``."""
    return np.sin(ids[:, None] * 0.37 + np.arange(width) * 1.7) * (1 + ids[:, None] % 5)


def fill_group(held, name, columns, ids=None, **options):
    held = held.refresh()
    ids = held.row_ids() if ids is None else ids
    with held.writer(name, columns=columns, recipe={"of": name}, **options) as writer:
        for part in np.unique(ids // held.part_stride):
            mine = ids[ids // held.part_stride == part]
            values = {}
            for column in columns:
                spec = writer.group.columns[column]
                dtype = np.float32 if spec.dtype == "bfloat16" else spec.stored
                flat = rows_of(mine, int(np.prod(spec.shape))).astype(dtype)
                values[column] = flat.reshape(len(mine), *spec.shape)
            writer.put(mine, values)


@pytest.fixture(scope="module")
def held():
    made = store.create(f"memory://feed-{next(NUMBER)}", part_rows=256)
    fill_tokens(made)
    for dtype in DTYPES:
        fill_group(made, dtype, {f"x.{dtype}": f"{dtype}[2,3,4]"})
    fill_group(made, "acts", {"h": "float32[16]", "loss": "float32"})
    ids = made.refresh().row_ids()
    fill_group(made, "sample", {"s": "bfloat16[16]"}, ids=ids[ids % 7 < 3], masked=True)
    return made.refresh()


def take(feed, start, number):
    return [
        (batch.row_ids.numpy().copy(), batch.x.numpy().copy())
        for batch in islice(feed.batches(start), number)
    ]


def same(one, two):
    assert len(one) == len(two)
    for (ids, x), (other_ids, other_x) in zip(one, two, strict=True):
        np.testing.assert_array_equal(ids, other_ids)
        np.testing.assert_array_equal(x, other_x)


def by_windows(feed, epochs):
    """The obvious way: every epoch's windows one behind the other."""
    windows = [
        window
        for epoch in range(epochs)
        for window in feed.store.windows(
            list(feed.columns),
            seed=feed.seed,
            epoch=epoch,
            window_rows=feed.window_rows,
            where=feed.where,
        )
    ]
    ids = np.concatenate([window.row_ids for window in windows])
    x = np.concatenate(
        [window.columns[feed.columns[0]].reshape(len(window.row_ids), -1) for window in windows]
    )
    return ids, x


@pytest.mark.parametrize("column", [*(f"x.{dtype}" for dtype in DTYPES), "s", "h"])
@pytest.mark.parametrize(
    ("where", "window_rows"),
    [((), None), ((), 256), (usual_rows("train"), 512), ((("loss", ">", 0.0),), 256)],
    ids=["full shuffle", "small windows", "train", "by a scalar"],
)
def test_batches_are_the_windows_cut_up(held, column, where, window_rows):
    feed = StoreFeed(held, column, 50, seed=3, where=where, window_rows=window_rows)
    ids, x = by_windows(feed, 3)
    number = len(ids) // 50
    found = take(feed, 0, number)
    np.testing.assert_array_equal(np.concatenate([i for i, _ in found]), ids[: number * 50])
    np.testing.assert_array_equal(
        np.concatenate([v for _, v in found]), x[: number * 50].astype(np.float32)
    )
    assert {len(i) for i, _ in found} == {50}
    assert found[0][1].shape == (50, feed.widths.width)


@given(
    batch_rows=st.integers(1, 400),
    start=st.integers(0, 12),
    window_rows=st.sampled_from([None, 256, 512, 5000]),
    where=st.sampled_from([(), usual_rows("train"), usual_rows(None), (("pos", "in", (1, 2, 3)),)]),
)
def test_a_batch_is_the_same_from_any_start(held, batch_rows, start, window_rows, where):
    probe = StoreFeed(held, "h", 1, where=where, window_rows=window_rows)
    batch_rows = min(batch_rows, probe.rows)
    feed = StoreFeed(held, "h", batch_rows, seed=1, where=where, window_rows=window_rows)
    same(take(feed, 0, start + 3)[start:], take(feed, start, 3))


@pytest.mark.parametrize("column", ["h", "s"])
def test_every_row_comes_once_an_epoch_as_it_is_stored(held, column):
    where = (("flags", "lacks", FLAG_SPECIAL),)
    feed = StoreFeed(held, column, 16, where=where, window_rows=256)
    found = take(feed, 0, 3 * feed.rows // 16 + 1)
    ids = np.concatenate([i for i, _ in found])
    x = np.concatenate([v for _, v in found])
    wanted = {int(i) for block in blocks(held, column, where=where) for i in block.row_ids}
    assert len(wanted) == feed.rows
    for epoch in range(3):
        assert set(ids[epoch * feed.rows : (epoch + 1) * feed.rows].tolist()) == wanted
    assert ids[: feed.rows].tolist() != ids[feed.rows : 2 * feed.rows].tolist()
    np.testing.assert_array_equal(x, held.gather(column, ids))


def test_a_store_written_by_other_attempts_gives_the_same_batches(held):
    twin = store.create(f"memory://feed-{next(NUMBER)}", part_rows=256)
    for died_after in range(3):
        with pytest.raises(KeyboardInterrupt):
            fill_tokens(twin, die_after=died_after)
    fill_tokens(twin)
    fill_group(twin, "acts", {"h": "float32[16]", "loss": "float32"})
    twin = twin.refresh()
    assert twin.digest(["acts"]) == held.digest(["acts"])
    one, two = (
        StoreFeed(s, "h", 64, where=usual_rows("train"), window_rows=256) for s in (held, twin)
    )
    same(take(one, 5, 20), take(two, 5, 20))
    assert one.state() == two.state()


def test_the_state_tells_what_decides_the_batches(held):
    def state(column="acts:h", batch_rows=8, **options):
        return StoreFeed(held, column, batch_rows, **{"window_rows": 256, **options}).state()

    other = [
        state(), state("float32:x.float32"), state(batch_rows=9), state(seed=1), state(window_rows=512),
        state(where=usual_rows(None)), state(where=(("loss", ">", 0.0),)),
    ]  # fmt: skip
    assert len({str(found) for found in other}) == len(other)
    assert state() == state()


def test_the_identity_of_rows_names_the_filters_group(held):
    tokens_only = rows_identity(held.view, "x.float32", usual_rows("train"))
    assert tokens_only == rows_identity(held.view, "x.float32")
    assert rows_identity(held.view, "x.float32", (("loss", ">", 0.0),)) != tokens_only


def test_batches_are_the_callers_own(held):
    feed = StoreFeed(held, "h", 40, window_rows=256)
    expected = take(feed, 0, 30)
    kept = []
    for batch in islice(feed.batches(0), 30):
        x = batch.x
        kept.append(x.clone())
        x.fill_(torch.nan)
    same([(i, x.numpy()) for (i, _), x in zip(expected, kept, strict=True)], expected)


@pytest.mark.parametrize("column", ["h", "s"])
def test_one_window_is_held_at_a_time_whoever_keeps_the_batches(held, column, monkeypatch):
    feed = StoreFeed(held, column, 30, window_rows=256)
    windows, seen = feed._windows, []

    def watched(epoch, start=0, names=()):
        for window in windows(epoch, start, names):
            seen.append(weakref.ref(window.columns[column]))
            yield window
            del window
            assert seen[-1]() is None

    monkeypatch.setattr(feed, "_windows", watched)
    kept = [batch.x for batch in islice(feed.batches(0), 3 * feed.rows // 30)]
    assert len(seen) > 6
    assert torch.cat(kept).isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_shapes_are_flattened_and_numbers_exact(held, dtype):
    feed = StoreFeed(held, f"x.{dtype}", 32)
    assert feed.widths.width == 24
    ids, x, *_ = next(feed.batches(0))
    assert (x.dtype, ids.dtype) == (torch.float32, torch.int64)
    np.testing.assert_array_equal(
        x.numpy(), held.gather(f"x.{dtype}", ids.numpy()).reshape(32, 24).astype(np.float32)
    )
    rounding = {"float32": 1e-6, "float64": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}[dtype]
    np.testing.assert_allclose(x, rows_of(ids.numpy(), 24), rtol=rounding, atol=1e-3)


@pytest.mark.parametrize("rows", [0, 3])
def test_tensors_of_few_rows_keep_their_width(rows):
    assert tensor_of(np.zeros((rows, 2, 3), np.uint16), "bfloat16").shape == (rows, 6)
    assert tensor_of(np.zeros((rows, 2, 3), np.float16), "float16").shape == (rows, 6)
    assert tensor_of(np.zeros((3, rows, 2), np.float32).transpose(1, 0, 2), "float32").shape == (
        rows,
        6,
    )


# -- blocks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["x.bfloat16", "h", "s"])
@pytest.mark.parametrize("block_rows", [256, 4096])
@pytest.mark.parametrize(
    "where", [(), usual_rows("val"), (("acts:loss", ">", 0.0),), (("pos", "<", 0),)],
    ids=["all", "val", "scalar", "none"],
)  # fmt: skip
def test_blocks_are_the_filtered_rows_in_order(held, column, block_rows, where):
    found = list(
        blocks(held, column, where=where, extra=["pos", "token_id"], block_rows=block_rows)
    )
    group = held.view.resolve(column)[0].name
    ids = held.row_ids(group=group)
    keep = np.ones(len(ids), bool)
    if where == usual_rows("val"):
        keep = (held.gather("split", ids) == 1) & (held.gather("flags", ids) & FLAG_SPECIAL == 0)
    elif where:
        keep = held.gather("loss", ids) > 0 if where[0][0] == "acts:loss" else ~keep
    expected = ids[keep]
    got = np.concatenate([np.empty(0, np.int64), *(block.row_ids for block in found)])
    np.testing.assert_array_equal(got, expected)
    for block in found:
        values = held.gather(column, block.row_ids).reshape(len(block.row_ids), -1)
        np.testing.assert_array_equal(block.x.numpy(), values)
        for name in ("pos", "token_id"):
            np.testing.assert_array_equal(block.tokens[name], held.gather(name, block.row_ids))
        assert 0 < len(block.row_ids) <= block_rows


def test_blocks_of_some_parts(held):
    found = np.concatenate([b.row_ids for b in blocks(held, "h", parts=[2, 0])])
    assert (found // held.part_stride).tolist() == sorted(
        found // held.part_stride, key=[2, 0].index
    )
    assert set(found // held.part_stride) == {0, 2}


def test_no_row_survives_a_filter_by_what_is_not_there_yet():
    made = store.create(f"memory://feed-{next(NUMBER)}", part_rows=256)
    fill_tokens(made)
    fill_group(made, "acts", {"h": "float32[16]"})
    ids = made.refresh().row_ids()
    fill_group(made, "late", {"score": "float32"}, ids=ids[ids < made.part_stride])
    made, where = made.refresh(), (("score", ">", -100.0),)
    assert survivors(made.view, 0, where).all()
    assert not survivors(made.view, 1, where).any()
    got = np.concatenate([b.row_ids for b in blocks(made, "h", where=where)])
    assert set(StoreFeed(made, "h", 1, where=where).store.row_ids()) >= set(got)
    assert StoreFeed(made, "h", 1, where=where).rows == len(got)


# -- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["loss", "acts:loss", "pos"])
def test_columns_that_are_not_dense_are_refused(held, column):
    for read in (lambda: StoreFeed(held, column, 8), lambda: list(blocks(held, column))):
        with pytest.raises(JobError, match=r"column-kind.*is scalar.*acts:h"):
            read()


def test_a_batch_larger_than_the_rows_is_refused(held):
    with pytest.raises(JobError, match=r"too-few-rows: .* rows of 'h' .* one batch of 100000"):
        StoreFeed(held, "h", 100_000)
    with pytest.raises(JobError, match="too-few-rows: 0 rows"):
        StoreFeed(held, "h", 1, where=(("pos", "<", 0),))


@pytest.mark.parametrize("batch_rows", [0, -1])
def test_a_batch_takes_a_row(held, batch_rows):
    with pytest.raises(JobError, match="bad-number"):
        StoreFeed(held, "h", batch_rows)


@pytest.mark.parametrize(
    "where", [(("nope", ">", 1),), (("pos", "like", 1),), (("s", ">", 1),), (("pos", ">"),)]
)
def test_filters_that_make_no_sense_are_refused(held, where):
    for read in (
        lambda: StoreFeed(held, "h", 8, where=where),
        lambda: list(blocks(held, "h", where=where)),
    ):
        with pytest.raises((InvalidInputError, KeyError)):
            read()


def test_usual_rows_know_the_splits():
    assert usual_rows("test") == (("split", "==", 2), ("flags", "lacks", FLAG_SPECIAL))
    assert usual_rows(None) == (("flags", "lacks", FLAG_SPECIAL),)
    with pytest.raises(JobError, match=r"unknown-split.*train, val, test"):
        usual_rows("dev")
