"""Splits, sequences and batches: pure arithmetic, checked against the obvious way."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.plan import PAD_MULTIPLE, SHARES, Batch, Batching, batches, padded, slices, split_of

RECORDED = "000000010020200002000000000000002000000000001020000000002000"
lengths_of_part = st.lists(st.integers(1, 200), min_size=1, max_size=40)


def text_hash(number):
    return hashlib.sha256(f"document {number}".encode()).hexdigest()


def test_splits_are_ninety_five_five():
    found = np.bincount([split_of(text_hash(n)) for n in range(20_000)], minlength=3) / 20_000
    np.testing.assert_allclose(found, SHARES, atol=0.006)


def test_a_documents_split_is_a_function_of_text_and_seed():
    assert [split_of(text_hash(n)) for n in range(40)] == [
        split_of(text_hash(n)) for n in range(40)
    ]
    assert [split_of(text_hash(n), 1) for n in range(400)] != [
        split_of(text_hash(n)) for n in range(400)
    ]


def test_splits_are_the_recorded_ones():
    found = "".join(str(split_of(text_hash(n))) for n in range(60))
    assert found == RECORDED


@given(number=st.integers(0, 10**6), cut=st.floats(0, 1))
def test_shares_are_cut_where_they_say(number, cut):
    digest = hashlib.sha256(f"0/{text_hash(number)}".encode()).digest()
    point = int.from_bytes(digest[:8], "big") / 2**64
    for share in (cut, point):
        assert split_of(text_hash(number), shares=(share, 1 - share)) == int(point >= share)


@given(tokens=st.integers(0, 500), content=st.integers(1, 60))
def test_slices_cover_a_document_once_in_order(tokens, content):
    found = slices(tokens, content)
    covered = [index for piece in found for index in range(piece.start, piece.stop)]
    assert covered == list(range(tokens))
    assert all(piece.stop - piece.start == content for piece in found[:-1])
    assert all(0 < piece.stop - piece.start <= content for piece in found)


@given(lengths=lengths_of_part, size=st.integers(1, 12))
def test_batches_take_every_sequence_once_padded_to_the_longest(lengths, size):
    found = list(batches(lengths, size))
    taken = [index for batch in found for index in range(batch.first, batch.first + batch.count)]
    assert taken == list(range(len(lengths)))
    for batch in found:
        longest = max(lengths[batch.first : batch.first + batch.count])
        assert batch.size == size
        assert batch.length % PAD_MULTIPLE == 0
        assert longest <= batch.length < longest + PAD_MULTIPLE
    assert all(batch.count == size for batch in found[:-1])


@pytest.mark.parametrize(("positions", "length"), [(None, 64), (64, 64), (60, 60), (40, 40)])
def test_padding_stops_at_the_models_positions(positions, length):
    assert [b.length for b in batches([40, 3], 2, positions)] == [length]


def test_no_sequence_makes_no_batch():
    assert list(batches([], 4)) == []


@given(lengths=lengths_of_part, size=st.integers(1, 12), pad=st.integers(0, 3))
def test_padded_batches_hold_each_sequence_and_nothing_else(lengths, size, pad):
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    token_ids = np.arange(100, 100 + sum(lengths), dtype=np.int32)
    seen = []
    for batch in batches(lengths, size):
        laid = padded(token_ids, starts, np.array(lengths), batch, pad)
        ids_BT, mask_BT = laid.ids, laid.mask
        assert laid.positions is None
        rows = slice(starts[batch.first], starts[batch.first] + laid.real.sum())
        assert ids_BT[laid.real].tolist() == token_ids[rows].tolist()
        assert ids_BT.shape == mask_BT.shape == (size, batch.length)
        assert ids_BT.dtype == mask_BT.dtype == np.int64
        for slot in range(batch.count):
            count = lengths[batch.first + slot]
            assert (mask_BT[slot] == (np.arange(batch.length) < count)).all()
            assert (ids_BT[slot, count:] == pad).all()
            seen += ids_BT[slot, :count].tolist()
        assert (ids_BT[batch.count :] == pad).all()
        assert (mask_BT[batch.count :].sum(axis=1) == 1).all()
    assert seen == token_ids.tolist()


@given(lengths=lengths_of_part, size=st.integers(1, 6), spare=st.integers(0, 90))
def test_lanes_hold_every_sequence_once_in_the_order_of_rows(lengths, size, spare):
    batching = Batching.of(size, max(lengths, default=1) + spare, lanes=True)
    assert Batching.of_recipe({"batch": batching.to_json()}) == batching
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(int)
    token_ids = np.arange(100, 100 + sum(lengths), dtype=np.int32)
    seen = []
    found = list(batching.batches(lengths))
    for batch in found:
        laid = padded(token_ids, starts, np.array(lengths), batch, 3)
        assert laid.ids.shape == (size, batching.lanes)
        seen += laid.ids[laid.real].tolist()
        assert (laid.ids[~laid.real] == 3).all()
        for slot in range(batch.count):
            lane, at = batch.place(slot)
            mine = laid.positions[lane, at : at + lengths[batch.first + slot]]
            assert mine.tolist() == list(range(lengths[batch.first + slot]))
        assert (laid.positions == 0).sum() == batch.count + (~laid.real).sum()
        assert (laid.mask.sum(1) >= 1).all()
    assert seen == token_ids.tolist()
    for batch, after in itertools.pairwise(found):  # the next sequence would not have fitted
        lane, at = batch.place(batch.count - 1)
        assert lane == size - 1
        assert at + lengths[after.first - 1] + lengths[after.first] > batching.lanes


def test_a_batch_depends_on_its_own_sequences_alone():
    few, many = list(batches([5, 70, 9, 9], 2)), list(batches([5, 70, 9, 9, 40, 40], 2))
    assert many[:2] == few == [
        Batch(first=0, count=2, size=2, length=96),
        Batch(first=2, count=2, size=2, length=32),
    ]  # fmt: skip
