"""Packed documents: nothing lost, nothing twice, splits apart, boundaries known, and the same rows after any death."""

from __future__ import annotations

import hashlib
import itertools
import json
from itertools import count

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import store
from ingest.config import TokensConfig
from ingest.contract import SourceDocument
from ingest.errors import IngestError, ModelError
from ingest.framing import Framing, Specials, special_ids
from ingest.models.toy import TEXT, build_tokenizer
from ingest.plan import split_of
from ingest.sources.stdlib import StandardLibrary
from ingest.tokens import Tokenizing, tokens_recipe
from store.records import canonical
from store.tokens import FLAG_FIRST_OF_DOCUMENT, FLAG_SPECIAL

NUMBER = count()


class Documents:
    kind = "documents"

    def __init__(self, texts):
        self.texts = texts

    def inputs(self):
        return {}

    def documents(self):
        for number, text in enumerate(self.texts):
            yield SourceDocument(name=f"d{number}", text=text)


@pytest.fixture(scope="module", params=["bert", "gpt2"])
def tokenizer(request):
    return build_tokenizer(request.param)


def tokenizing(tokenizer, texts, context=16, **options):
    source = Documents(texts)
    options = {"packing": "fill", **options}
    config = TokensConfig(source=source, context=context, **options)
    return Tokenizing(config=config, source=source, tokenizer=tokenizer, context=context)


def found_in(*arguments, **options):
    return [one for one, _ in tokenizing(*arguments, **options).sequences(None)]


def framed(tokenizer, text, around):
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return [*around.prefix, *ids, *around.suffix] if ids else []


def usual(tokenizer):
    own = Specials.of(tokenizer)
    return own if len(own) else Specials(prefix=(tokenizer.bos_token_id,))


VARIED = [TEXT[a : a + 11 * (a % 17)] for a in range(0, 400, 7)]
texts = st.lists(st.sampled_from(VARIED), max_size=25)


@given(texts=texts, context=st.integers(4, 40))
def test_documents_follow_one_another_in_full_sequences(tokenizer, texts, context):
    around = usual(tokenizer)
    by_split = [[], [], []]
    for text in texts:
        sha = hashlib.sha256(text.encode()).hexdigest()
        by_split[split_of(sha)] += framed(tokenizer, text, around)
    got = [[], [], []]
    for sequence in found_in(tokenizer, texts, context):
        got[sequence.split].append(sequence)
    for want, sequences in zip(by_split, got, strict=True):
        assert list(itertools.chain(*(s.token_ids.tolist() for s in sequences))) == want
        assert all(len(s) == context for s in sequences[:-1])


@given(texts=texts, context=st.integers(4, 40))
def test_every_token_says_its_document_and_its_characters(tokenizer, texts, context):
    special = set(special_ids(tokenizer).tolist())
    began = []
    for sequence in found_in(tokenizer, texts, context):
        sequence.check()
        assert sum(high - low for _, low, high in sequence.spans) == len(sequence)
        for document, low, high in sequence.spans:
            assert document.split == sequence.split
            for at in range(low, high):
                token = int(sequence.token_ids[at])
                flagged = bool(sequence.flags[at] & FLAG_SPECIAL)
                assert flagged == (token in special)
                if sequence.flags[at] & FLAG_FIRST_OF_DOCUMENT:
                    began.append(document.doc_id)
                a, b = sequence.char_start[at], sequence.char_end[at]
                assert (a == -1) == flagged
                if b > a:
                    spelled = tokenizer.decode([token]).strip().removeprefix("##")
                    text = texts[document.doc_id][a:b].strip()
                    assert spelled.lower() == text.lower()
    assert sorted(began) == [
        number for number, text in enumerate(texts) if framed(tokenizer, text, Specials())
    ]


@given(
    texts=texts, context=st.integers(4, 24), rows=st.none() | st.integers(5, 300), data=st.data()
)
def test_going_on_from_any_sequence_gives_the_rest(tokenizer, texts, context, rows, data):
    cut = tokenizing(tokenizer, texts, context, rows=rows)
    whole = list(cut.sequences(None))
    if not whole:
        return
    at = data.draw(st.integers(0, len(whole) - 1))
    position = json.loads(canonical(whole[at][1]))
    rest = list(cut.sequences(position))
    assert [p for _, p in rest] == [p for _, p in whole[at + 1 :]]
    for (one, _), (two, _) in zip(rest, whole[at + 1 :], strict=True):
        for name in ("token_ids", "char_start", "char_end", "flags"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
        assert one.split == two.split
        assert [(d.doc_id, a, b) for d, a, b in one.spans] == [
            (d.doc_id, a, b) for d, a, b in two.spans
        ]
    if rows is not None:
        total = sum(len(one) for one, _ in whole)
        every = sum(len(one) for one in found_in(tokenizer, texts, context))
        assert total <= rows
        assert total == min(rows, every)


def test_a_packed_writer_that_dies_leaves_the_store_of_one_that_did_not(tokenizer):
    texts = VARIED * 3

    class DiedError(Exception):
        pass

    def made():
        return store.create(f"memory://packing-{next(NUMBER)}", part_rows=256)

    def write(into, at=None):
        calls = count(1)

        def progress(*_):
            if next(calls) == at:
                raise DiedError

        cut = tokenizing(tokenizer, texts)
        cut.write(into.writer("tokens", recipe={"of": "tests"}), progress)
        return into.refresh()

    undisturbed = write(made())
    parts = undisturbed.coverage["tokens"].parts
    assert parts >= 4
    sequences = len(undisturbed.arrow("sequences"))
    for at in range(2, sequences, sequences // 4):
        into = made()
        with pytest.raises(DiedError):
            write(into, at)
        assert write(into).digest() == undisturbed.digest()


def test_the_table_of_sequences_names_a_document_only_where_there_is_one(tokenizer):
    into = store.create(f"memory://packing-{next(NUMBER)}", part_rows=256)
    cut = tokenizing(tokenizer, VARIED)
    cut.write(into.writer("tokens", recipe={"of": "tests"}), lambda *_: None)
    held = into.refresh()
    rows = held.arrow("tokens").to_pydict()
    for doc, first, length in zip(
        *(held.arrow("sequences").to_pydict()[n] for n in ("doc_id", "first_row", "rows")),
        strict=True,
    ):
        at = rows["row"].index(first)
        inside = set(rows["doc_id"][at : at + length])
        assert doc == (inside.pop() if len(inside) == 1 else None)
    documents = held.arrow("documents").to_pydict()
    assert sum(documents["rows"]) == len(rows["row"])
    assert (
        "".join(t for d, t in zip(documents["doc_id"], documents["text"], strict=True) if d == 9)
        == VARIED[9]
    )


# -- where special tokens stand --------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", ["none", "fill"])
@pytest.mark.parametrize("bos", ["sequence", "document", "none"])
def test_begin_of_text_stands_where_it_was_asked_for(tokenizer, bos, packing):
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else 2
    found = found_in(tokenizer, [TEXT, TEXT], bos=bos, packing=packing)
    ids = tokenizer(TEXT, add_special_tokens=False, verbose=False)["input_ids"]
    starts = [int(one.token_ids[0]) == begin for one in found]
    total = sum(one.token_ids.tolist().count(begin) for one in found)
    if bos == "none":
        assert not any(starts)
        assert total == 0
    elif bos == "document":
        assert total == 2
        assert sum(starts) == (2 if packing == "none" else 1)
    else:
        assert all(starts)
        inner = packing == "fill" and any(begin in one.token_ids[1:].tolist() for one in found)
        assert total == len(found) + inner
    assert sum(map(len, found)) == 2 * len(ids) + total
    assert all(len(one) <= 16 for one in found)


def test_a_document_that_begins_a_sequence_gets_one_begin_of_text(tokenizer):
    begin = Framing.of(
        tokenizer, TokensConfig(source=None, bos="sequence", packing="fill")
    ).sequence.prefix[0]
    first = found_in(tokenizer, [TEXT], bos="sequence")[0].token_ids.tolist()
    assert first.count(begin) == 1
    assert len(first) == 16


def test_a_tokenizer_without_begin_of_text_is_refused():
    bare = build_tokenizer("gpt2")
    bare.bos_token = bare.eos_token = None
    with pytest.raises(ModelError, match=r"no-bos.*--bos none"):
        tokenizing(bare, [TEXT], bos="sequence")
    assert found_in(bare, [TEXT], bos="none")


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(IngestError, match=r"unknown-setting.*none, fill"):
        TokensConfig(source=None, packing="tight")
    with pytest.raises(IngestError, match=r"unknown-setting.*sequence"):
        TokensConfig(source=None, bos="always")
    with pytest.raises(IngestError, match="setting-unused"):
        TokensConfig(source=None, bos="document", special_tokens=False)


def test_recipes_of_unpacked_rows_are_what_they_were(tokenizer):
    plain = tokens_recipe(TokensConfig(source=StandardLibrary()), {}, 16, "asset")
    assert plain["packing"] is None
    assert "bos" not in plain
    packed = tokens_recipe(
        TokensConfig(source=StandardLibrary(), packing="fill", bos="document"), {}, 16, "asset"
    )
    assert packed["packing"] == "fill"
    assert packed["bos"] == "document"


@pytest.mark.parametrize("rows", [60, 63, 64, 65, 66, 70])
def test_no_more_of_a_source_is_read_than_its_rows_take(tokenizer, rows):
    read = []

    class Long(Documents):
        def documents(self):
            for one in super().documents():
                read.append(one.name)
                yield one

    source = Long([TEXT[:40]] * 500)
    config = TokensConfig(source=source, context=32, packing="fill", bos="sequence", rows=rows)
    cut = Tokenizing(config=config, source=source, tokenizer=tokenizer, context=32)
    assert sum(len(one) for one, _ in cut.sequences(None)) <= rows
    assert len(read) < 30
