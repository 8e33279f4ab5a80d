"""Laws of every statistic in the registry, over toy blocks made from what it requires; nothing to edit here."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.circuits import STATISTICS
from store.partials import MAX_PARTIAL_BYTES, decode_partial, encode_partial

NAMES = STATISTICS.names()
each_statistic = pytest.mark.parametrize("name", NAMES)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])


def built(name):
    """Return a statistic with its defaults, which every one must have."""
    return STATISTICS.get(name)()


@pytest.fixture(scope="module")
def inputs(toy_facts, toy_blocks):
    """A function: name, dtype → (statistic, part → blocks)."""

    @functools.cache
    def make(name, dtype=torch.float32):
        statistic = built(name)
        return statistic, toy_blocks(toy_facts, statistic.requires(toy_facts), dtype=dtype)

    return make


def of(statistic, facts, blocks):
    partial = statistic.empty(facts)
    for block in blocks:
        partial.update(block)
    return partial


def assert_same(one, other, *, rtol):
    """Tables agree: names, columns, counts and text exactly, floats to ``rtol``; 0 asks for equal bits."""
    assert list(one) == list(other)
    for table, columns in one.items():
        assert list(columns) == list(other[table]), table
        for name, values in columns.items():
            ours, theirs = np.asarray(values), np.asarray(other[table][name])
            where = f"{table}.{name}"
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), where
            if ours.dtype.kind == "f" and rtol:
                np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=1e-12, err_msg=where)
            else:
                np.testing.assert_array_equal(ours, theirs, err_msg=where)


@each_statistic
@each_dtype
def test_any_order_of_parts_and_any_tree_merges_to_the_whole(toy_facts, inputs, name, dtype):
    statistic, blocks = inputs(name, dtype)
    whole = of(statistic, toy_facts, itertools.chain(*blocks.values())).finalize()
    shares = [of(statistic, toy_facts, mine) for mine in blocks.values()]
    for order in itertools.permutations(shares):
        left = order[0].merge(order[1]).merge(order[2])
        right = order[0].merge(order[1].merge(order[2]))
        assert_same(left.finalize(), whole, rtol=1e-6)
        assert_same(right.finalize(), left.finalize(), rtol=1e-6)


@each_statistic
def test_any_split_of_the_sequences_merges_to_the_whole(toy_facts, inputs, cut, name):
    statistic, blocks = inputs(name)
    block = blocks[0][0]
    whole = of(statistic, toy_facts, [block]).finalize()
    for at in range(1, len(block.bounds) - 1):
        first, rest = cut(block, at)
        in_turn = of(statistic, toy_facts, [first, rest])
        apart = of(statistic, toy_facts, [first]).merge(of(statistic, toy_facts, [rest]))
        assert_same(in_turn.finalize(), whole, rtol=1e-6)
        assert_same(apart.finalize(), whole, rtol=1e-6)


@each_statistic
@settings(max_examples=10)
@given(seed=st.integers(0, 1000), parts=st.integers(1, 5))
def test_random_blocks_in_random_order(toy_facts, toy_blocks, name, seed, parts):
    statistic = built(name)
    blocks = toy_blocks(toy_facts, statistic.requires(toy_facts), parts=parts, seed=seed)
    whole = of(statistic, toy_facts, itertools.chain(*blocks.values())).finalize()
    shares = [of(statistic, toy_facts, [block]) for mine in blocks.values() for block in mine]
    random.Random(seed).shuffle(shares)
    assert_same(functools.reduce(lambda a, b: a.merge(b), shares).finalize(), whole, rtol=1e-6)


@each_statistic
def test_merge_commutes(toy_facts, inputs, name):
    statistic, blocks = inputs(name)
    one, other = (of(statistic, toy_facts, blocks[part]) for part in (0, 1))
    assert_same(one.merge(other).finalize(), other.merge(one).finalize(), rtol=1e-9)


@each_statistic
def test_empty_is_the_identity_to_the_bit(toy_facts, inputs, name):
    statistic, blocks = inputs(name)
    full, empty = of(statistic, toy_facts, blocks[0]), statistic.empty(toy_facts)
    wanted = full.finalize()
    assert_same(full.merge(empty).finalize(), wanted, rtol=0)
    assert_same(statistic.empty(toy_facts).merge(full).finalize(), wanted, rtol=0)
    assert_same(empty.merge(statistic.empty(toy_facts)).finalize(), empty.finalize(), rtol=0)


@each_statistic
def test_merging_changes_neither(toy_facts, inputs, name):
    statistic, blocks = inputs(name)
    one, other = (of(statistic, toy_facts, blocks[part]) for part in (0, 1))
    before = encode_partial(one.state(), "state"), encode_partial(other.state(), "state")
    merged = one.merge(other)
    merged.update(blocks[2][0])
    assert (encode_partial(one.state(), "state"), encode_partial(other.state(), "state")) == before


@each_statistic
@each_dtype
def test_a_state_survives_its_bytes_and_goes_on_from_them(toy_facts, inputs, name, dtype):
    statistic, blocks = inputs(name, dtype)
    first = of(statistic, toy_facts, blocks[0])
    data = encode_partial(first.state(), "state")
    again = statistic.from_state(toy_facts, decode_partial(data, "here"))  # read-only arrays
    assert encode_partial(again.state(), "state") == data
    for block in blocks[1]:
        first.update(block)
        again.update(block)
    assert_same(again.finalize(), first.finalize(), rtol=0)
    empty = statistic.empty(toy_facts)
    data = encode_partial(empty.state(), "state")
    same = statistic.from_state(toy_facts, decode_partial(data, "here"))
    assert_same(same.finalize(), empty.finalize(), rtol=0)


@each_statistic
def test_a_state_does_not_grow_with_the_rows(toy_facts, toy_blocks, name):
    statistic = built(name)
    blocks = toy_blocks(toy_facts, statistic.requires(toy_facts), parts=24)
    partial, sizes = statistic.empty(toy_facts), []
    for mine in blocks.values():
        for block in mine:
            partial.update(block)
        sizes.append(sum(array.nbytes for array in partial.state().values()))
    assert sizes[-1] < MAX_PARTIAL_BYTES
    assert sizes[-1] <= 1.5 * sizes[len(sizes) // 2], sizes


@each_statistic
def test_equal_blocks_make_equal_bits(toy_facts, inputs, name):
    statistic, blocks = inputs(name)
    twice = [encode_partial(of(statistic, toy_facts, blocks[0]).state(), "state") for _ in range(2)]
    assert twice[0] == twice[1]


@each_statistic
def test_it_looks_at_nothing_but_what_it_requires(toy_facts, inputs, name):
    statistic, blocks = inputs(name)
    sites = statistic.requires(toy_facts)
    assert sites
    assert len(set(sites)) == len(sites)
    assert set(sites) <= set(toy_facts.shapes)
    block = blocks[0][0]
    narrow = dataclasses.replace(block, sites={site: block.sites[site] for site in sites})
    seen = of(statistic, toy_facts, [narrow]).finalize()
    assert_same(of(statistic, toy_facts, [block]).finalize(), seen, rtol=0)


@each_statistic
def test_blocks_are_not_written_to(toy_facts, inputs, name):
    statistic, blocks = inputs(name)
    block = blocks[0][0]
    before = {site: values.clone() for site, values in block.sites.items()}
    of(statistic, toy_facts, [block])
    assert all(torch.equal(block.sites[site], values) for site, values in before.items())


@each_statistic
def test_tables_are_made_of_columns_of_one_length(toy_facts, inputs, name):
    statistic, blocks = inputs(name)
    for partial in (of(statistic, toy_facts, blocks[0]), statistic.empty(toy_facts)):
        tables = partial.finalize()
        assert tables
        for columns in tables.values():
            assert len({len(values) for values in columns.values()}) == 1


@each_statistic
def test_it_has_a_version_and_says_its_source(name):
    cls = STATISTICS.get(name)
    assert isinstance(cls.version, int)
    assert cls.version >= 1
    assert "version" not in {field.name for field in dataclasses.fields(cls)}
    assert "Source:" in cls.__doc__
