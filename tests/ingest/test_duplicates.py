"""Documents of equal text are counted whatever is done with them, and dropped where that was asked for."""

from __future__ import annotations

import hashlib
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ingest.duplicates
import store
from ingest.config import TokensConfig
from ingest.contract import SourceDocument
from ingest.duplicates import Seen, repeats, seen_in
from ingest.models.toy import TEXT, build_tokenizer
from ingest.tokens import Tokenizing

NUMBER = count()
TEXTS = [TEXT[:90], TEXT[90:200], TEXT[:90], "", TEXT[:90], TEXT[200:420], TEXT[90:200], ""] * 3


class Documents:
    kind = "documents"

    def __init__(self, texts):
        self.texts = texts

    def documents(self):
        for number, text in enumerate(self.texts):
            yield SourceDocument(name=f"d{number}", text=text)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer("gpt2")


def written(tokenizer, *, into=None, at=None, **options):
    into = into or store.create(f"memory://duplicates-{next(NUMBER)}", part_rows=256)
    source = Documents(TEXTS)
    config = TokensConfig(source=source, context=32, **options)
    cut = Tokenizing(config=config, source=source, tokenizer=tokenizer, context=32)
    writer = into.writer("tokens", recipe={"of": "tests"})
    cut.seen = seen_in(into.refresh())
    calls = count(1)

    def progress(*_):
        if next(calls) == at:
            raise KeyboardInterrupt

    cut.write(writer, progress)
    return into.refresh()


@pytest.mark.parametrize("packing", ["none", "fill"])
def test_repeats_are_counted_by_document_and_row(tokenizer, packing):
    held = written(tokenizer, packing=packing)
    rows = held.arrow("tokens").to_pydict()["doc_id"]
    again = [n for n, text in enumerate(TEXTS) if text and text in TEXTS[:n]]
    found = repeats(held)
    assert found.documents == sum(map(bool, TEXTS))
    assert found.repeated == len(again)
    assert found.repeated_rows == sum(doc in again for doc in rows)


@pytest.mark.parametrize("packing", ["none", "fill"])
def test_dropping_leaves_the_first_of_each_and_survives_any_death(tokenizer, packing):
    held = written(tokenizer, duplicates="drop", packing=packing)
    assert sorted(set(held.arrow("documents").to_pydict()["doc_id"])) == [0, 1, 5]
    assert repeats(held).repeated == 0
    for at in range(1, len(held.arrow("sequences"))):
        into = store.create(f"memory://duplicates-{next(NUMBER)}", part_rows=256)
        with pytest.raises(KeyboardInterrupt):
            written(tokenizer, into=into, at=at, duplicates="drop", packing=packing)
        again = written(tokenizer, into=into.refresh(), duplicates="drop", packing=packing)
        assert again.digest() == held.digest()


@given(texts=st.lists(st.integers(0, 30), max_size=200), waiting=st.integers(1, 9))
def test_the_first_of_every_text_is_remembered_through_merges(texts, waiting):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest.duplicates, "_WAITING", waiting)
        seen, firsts = Seen(), {}
        for number, text in enumerate(texts):
            digest = hashlib.sha256(str(text).encode()).hexdigest()
            assert seen.first(digest, number) == firsts.setdefault(text, number)
