"""Needles: once in the haystack, begun again at the end, and nowhere in the corrupt prompt."""

import numpy as np
import pytest

from ingest.contract import Vocabulary
from ingest.errors import SourceError
from ingest.sources import SOURCES


def pairs_of(tokens=400, bos=0, **settings):
    held = Vocabulary(tokens=tokens, special=(0,), bos=bos)
    made = SOURCES.get("needle")(**{"sequences": 30, "length": 40, **settings})
    return list(made.pairs(held, lambda _: np.empty(0, np.int32)))


@pytest.mark.parametrize("said", [1, 2, 5])
def test_the_needle_stands_once_and_its_next_token_is_the_answer(said):
    seen = set()
    for pair in pairs_of(said=said):
        clean, corrupt = pair.clean.tolist(), pair.corrupt.tolist()
        assert len(clean) == len(corrupt) == 40
        at = int(pair.name.rpartition("at")[2])
        seen.add(at)
        needle = clean[at : at + 6]
        assert clean[-said:] == corrupt[-said:] == needle[:said]
        assert pair.answers["correct"] == needle[said]
        assert np.flatnonzero(pair.clean != pair.corrupt).tolist() == list(range(at, at + 6))
        hay = clean[1:at] + clean[at + 6 : -said]
        assert not set(needle) & set(hay)
        assert len(set(needle)) == 6
        assert not set(needle) & set(corrupt[:-said])
        assert pair.answers["wrong"] not in {*clean, *corrupt}
    assert len(seen) > 10


def test_pairs_are_a_function_of_seed_and_number():
    one, longer = pairs_of(), pairs_of(sequences=50)[:30]
    assert [p.clean.tolist() for p in one] == [p.clean.tolist() for p in longer]
    assert [p.clean.tolist() for p in pairs_of(seed=1)] != [p.clean.tolist() for p in one]


BAD = {
    "none": ({"sequences": 0}, "bad-source"),
    "said-whole": ({"said": 6}, "bad-source"),
    "said-none": ({"said": 0}, "bad-source"),
    "short": ({"length": 9}, "bad-source"),
    "vocabulary": ({"tokens": 14}, "vocabulary-too-small"),
    "bos": ({"bos": None}, "no-bos"),
}


@pytest.mark.parametrize(("settings", "kind"), BAD.values(), ids=BAD)
def test_what_makes_no_needle_is_refused(settings, kind):
    with pytest.raises(SourceError, match="Nothing was written") as caught:
        pairs_of(**settings)
    assert caught.value.kind == kind
