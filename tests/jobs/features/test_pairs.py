"""Passages for pairs of rows: the text around both ends, told apart, with a gap where they do not meet."""

import numpy as np
import pytest

from jobs.errors import JobError
from jobs.features import pair_passages
from jobs.features.pairs import GAP
from store.testing.small import tokens_store


def _pairs(*pairs):
    query, key = zip(*pairs, strict=True)
    numbers = np.arange(len(pairs))
    return {
        "layer": numbers * 0 + 4, "head": numbers * 0 + 1, "rank": numbers,
        "query_row": np.array(query), "key_row": np.array(key), "weight": 1.0 / (1 + numbers),
    }  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tokens_store(tmp_path_factory.mktemp("pairs") / "s").refresh()


def _tokens(found, rank):
    tokens = found["head_tokens"]
    at = np.flatnonzero(tokens["rank"] == rank)
    return [
        (int(tokens["offset"][i]), tokens["text"][i], bool(tokens["is_query"][i]), bool(tokens["is_key"][i]))
        for i in at
    ]  # fmt: skip


def test_near_rows_share_a_passage_and_far_ones_leave_a_gap(made):
    found = pair_passages(made, _pairs((20, 15), (70, 12)), radius=3)
    near, far = _tokens(found, 0), _tokens(found, 1)
    assert [offset for offset, *_ in near] == list(range(-8, 4))
    assert GAP not in [text for _, text, *_ in near]
    assert [text for _, text, *_ in far].count(GAP) == 1
    for tokens, distance in ((near, -5), (far, -58)):
        assert [offset for offset, _, query, _ in tokens if query] == [0]
        assert [offset for offset, _, _, key in tokens if key] == [distance]


def test_texts_are_the_documents_own(made):
    found = pair_passages(made, _pairs((20, 15)), radius=3)
    # Document 0 spells the alphabet from a on, one letter a token.
    expected = "".join(chr(97 + at % 26) for at in range(12, 24))
    assert "".join(text for _, text, *_ in _tokens(found, 0)) == expected
    passages = found["head_passages"]
    assert passages["document"] == ["doc-0"]
    assert (passages["query_position"].tolist(), passages["key_position"].tolist()) == ([20], [15])


def test_no_pairs_give_empty_tables(made):
    empty = {name: values[:0] for name, values in _pairs((1, 1)).items()}
    assert all(not len(c) for t in pair_passages(made, empty).values() for c in t.values())


def test_a_row_that_is_not_there_is_refused(made):
    with pytest.raises(JobError, match="row-missing"):
        pair_passages(made, _pairs((10**9, 10**9)))
