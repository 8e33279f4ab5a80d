"""Codes sorted piece by piece are the codes sorted at once, whatever the pieces and however little memory there is."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.errors import StoreError
from store.sorting import CodeSorter, joined
from store.values import Codes

VALUES = (0.0, -0.0, 1.0, -1.0, 2.5, np.inf, -np.inf, np.nan)


@st.composite
def pieces_of_codes(draw):
    """Codes of a few latents and values, by ascending row, cut anywhere."""
    rows = draw(st.integers(0, 60))
    row = np.sort(np.array(draw(st.lists(st.integers(0, 99), min_size=rows, max_size=rows)), int))
    latent = draw(st.lists(st.integers(0, 3), min_size=rows, max_size=rows))
    value = draw(st.lists(st.sampled_from(VALUES), min_size=rows, max_size=rows))
    cuts = sorted(draw(st.lists(st.integers(0, rows), max_size=8)))
    whole = Codes(
        row=row.astype(np.int64),
        latent=np.array(latent, np.uint32),
        value=np.array(value, np.float32),
    )
    edges = [0, *cuts, rows]
    return [
        Codes(row=whole.row[a:b], latent=whole.latent[a:b], value=whole.value[a:b])
        for a, b in pairwise(edges)
    ]


def bits(codes):
    return codes.row.tolist(), codes.latent.tolist(), codes.value.view(np.uint32).tolist()


@given(
    pieces=pieces_of_codes(),
    run=st.integers(1, 20),
    block=st.integers(1, 5),
    runs=st.integers(2, 4),
)
def test_any_pieces_and_any_memory_give_what_one_sort_gives(pieces, run, block, runs):
    with CodeSorter(run_rows=run, block_rows=block, most_runs=runs) as sorter:
        for piece in pieces:
            sorter.put(piece)
        found = joined(list(sorter.blocks()))
    whole = joined(pieces)
    order = np.lexsort((whole.row, -whole.value, whole.latent))
    expected = Codes(row=whole.row[order], latent=whole.latent[order], value=whole.value[order])
    assert bits(found) == bits(expected)


def numbered(rows):
    rng = np.random.default_rng(0)
    latent = rng.integers(0, 50, rows).astype(np.uint32)
    return Codes(row=np.arange(rows), latent=latent, value=rng.random(rows).astype(np.float32))


def test_scratch_files_are_gone_afterwards_however_it_ends(tmp_path):
    def sort(*, fail):
        with CodeSorter(scratch=tmp_path, run_rows=100) as sorter:
            sorter.put(numbered(1000))
            assert len(list(tmp_path.glob("*/*"))) == 9
            if fail:
                msg = "on purpose"
                raise ValueError(msg)

    sort(fail=False)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="on purpose"):
        sort(fail=True)
    assert list(tmp_path.iterdir()) == []


def test_little_is_sorted_without_scratch_files(tmp_path):
    with CodeSorter(scratch=tmp_path) as sorter:
        sorter.put(numbered(1000))
        assert sum(len(block.row) for block in sorter.blocks()) == 1000
        assert list(tmp_path.iterdir()) == []


def test_a_scratch_folder_that_cannot_be_written_is_named(tmp_path):
    with (
        pytest.raises(StoreError, match=r"scratch-failed.*--scratch"),
        CodeSorter(scratch=tmp_path / "none", run_rows=10) as sorter,
    ):
        sorter.put(numbered(100))
