import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import store
from store import ConflictError, Document, InvalidInputError, TokenSequence
from store.commits import create_retired
from store.testing.small import LENGTHS, sequences_of, tokens_store
from store.testing.strategies import sequence_groups

RECIPE = {"source": "test"}


def tables_of(made):
    return [made.arrow(name).to_pydict() for name in ("tokens", "sequences", "documents")]


@given(st.data())
@settings(max_examples=20)
def test_sequences_lie_wholly_in_one_part_and_what_is_put_together_stays_together(memory_url, data):
    groups = data.draw(sequence_groups(longest=256))
    made = store.create(memory_url(), part_rows=512, part_stride=1024)
    with made.writer("tokens", recipe=RECIPE) as writer:
        for number, lengths in enumerate(groups):
            writer.put(
                [
                    TokenSequence(token_ids=np.arange(n), pair_id=number, role=role)
                    for n, role in zip(lengths, ["clean", "corrupt"], strict=False)
                ]
            )
        writer.seal()
    made = made.refresh()
    tokens, sequences, _ = tables_of(made)
    stride, row = made.part_stride, np.array(tokens["row"])
    first, rows = np.array(sequences["first_row"]), np.array(sequences["rows"])
    assert np.array_equal(first // stride, (first + rows - 1) // stride)
    part_of = {}
    for at, pair in zip(first // stride, sequences["pair_id"], strict=True):
        assert part_of.setdefault(pair, at) == at
    assert rows.tolist() == [n for lengths in groups for n in lengths]
    assert sequences["seq_id"] == first.tolist()
    spans = [np.arange(a, a + n) for a, n in zip(first, rows, strict=True)]
    assert np.array_equal(np.concatenate(spans), row)
    assert np.array_equal(np.array(tokens["seq_id"]), np.repeat(first, rows))
    assert all(c.rows <= 512 for c in writer.committed)
    assert store.verify(made).ok


@given(st.data())
@settings(max_examples=15)
def test_a_writer_that_stopped_anywhere_cuts_the_same_parts(memory_url, data):
    stops = sorted(data.draw(st.lists(st.integers(0, len(LENGTHS)), max_size=3)))
    url = memory_url()
    whole = tokens_store(memory_url())
    recipe = {"source": "small", "lengths": list(LENGTHS)}
    for stop in [*stops, None]:
        writer = store.create(url, part_rows=512, part_stride=1024).writer("tokens", recipe=recipe)
        done = writer.position or 0
        for number, sequence in enumerate(sequences_of(LENGTHS[done:], first=done), start=done + 1):
            if stop is not None and number > stop:
                break
            writer.put([sequence], position=number)
        if stop is None:
            writer.seal()
    made = store.open(url)
    assert made.digest() == whole.digest()
    assert tables_of(made) == tables_of(whole)


def test_documents_are_recoverable_from_their_spans(memory_url):
    made = tokens_store(memory_url())
    documents = made.arrow("documents").to_pydict()
    for number, (doc, name, text, rows, split) in enumerate(
        zip(*(documents[c] for c in ("doc_id", "name", "text", "rows", "split")), strict=True)
    ):
        assert (doc, name, rows, split) == (
            number,
            f"doc-{number}",
            LENGTHS[number],
            number % 5 == 4,
        )
        assert text == "".join(chr(97 + (number + at) % 26) for at in range(rows))


def test_a_document_over_two_parts_has_its_slice_in_each(memory_url):
    text = "abcdefghij" * 60
    document = Document(doc_id=7, name="long", sha256="x", text=text)
    made = store.create(memory_url(), part_rows=256, part_stride=256)
    with made.writer("tokens", recipe=RECIPE) as writer:
        for low in range(0, 600, 200):
            at = np.arange(low, low + 200)
            spans = [(document, 0, 200)]
            writer.put([TokenSequence(token_ids=at, spans=spans, char_start=at, char_end=at + 1)])
        writer.seal()
    found = made.refresh().arrow("documents").to_pydict()
    assert found["text"] == [text[low : low + 200] for low in range(0, 600, 200)]
    assert found["first_row"] == [0, 256, 512]
    assert found["rows"] == [200] * 3


def test_rows_of_special_tokens_alone_say_nothing_of_a_documents_place_in_its_text(memory_url):
    document = Document(doc_id=7, name="long", sha256="x", text="abcdefghij" * 60)
    made = store.create(memory_url(), part_rows=256, part_stride=256)
    nowhere = np.full(3, -1)
    with made.writer("tokens", recipe=RECIPE) as writer:
        for starts in (nowhere, np.arange(300, 500), nowhere):
            ends = np.where(starts < 0, -1, starts + 1)
            spans = [(document, 0, len(starts))]
            writer.put(
                [TokenSequence(token_ids=starts, spans=spans, char_start=starts, char_end=ends)]
            )
        writer.seal()
    found = made.refresh().arrow("documents").to_pydict()
    assert found["text"] == [document.text[300:500]]
    assert (found["char_start"], found["char_end"], found["rows"]) == ([300], [500], [206])


def test_packed_sequences_have_no_document_of_their_own(memory_url):
    one, two = (Document(doc_id=n, name=f"d{n}") for n in (3, 4))
    made = store.create(memory_url(), part_rows=256, part_stride=256)
    with made.writer("tokens", recipe=RECIPE) as writer:
        writer.put([TokenSequence(token_ids=np.arange(10), spans=[(one, 0, 4), (two, 4, 9)])])
        writer.seal()
    tokens, sequences, documents = tables_of(made.refresh())
    assert tokens["doc_id"] == [3] * 4 + [4] * 5 + [-1]
    assert sequences["doc_id"] == [None]
    assert documents["rows"] == [4, 5]
    assert documents["first_row"] == [0, 4]


BAD = {
    "empty": {"token_ids": []},
    "two-dimensional": {"token_ids": [[1, 2]]},
    "floats": {"token_ids": [1.0, 2.0]},
    "too-large": {"token_ids": np.array([2**31])},
    "positions": {"token_ids": [1, 2, 3], "positions": [0, 1]},
    "flags": {"token_ids": [1, 2, 3], "flags": [0, 1, 2, 3]},
    "span": {"token_ids": [1, 2, 3], "spans": [(Document(doc_id=0, name="d"), 0, 4)]},
    "split": {"token_ids": [1], "split": 3},
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_sequences_that_do_not_fit_together_are_refused_and_cost_nothing(memory_url, bad):
    made = store.create(memory_url(), part_rows=256, part_stride=256)
    with made.writer("tokens", recipe=RECIPE) as writer:
        writer.put([TokenSequence(token_ids=np.arange(5))])
        with pytest.raises(InvalidInputError) as caught:
            writer.put([TokenSequence(token_ids=np.arange(5)), TokenSequence(**bad)])
        assert caught.value.kind == "bad-sequence"
        writer.seal()
    assert len(made.refresh().row_ids()) == 5


def test_a_sequence_longer_than_a_part_is_refused(memory_url):
    made = store.create(memory_url(), part_rows=256, part_stride=256)
    writer = made.writer("tokens", recipe=RECIPE)
    with pytest.raises(InvalidInputError, match="257 rows") as caught:
        writer.put([TokenSequence(token_ids=np.arange(257))])
    assert caught.value.kind == "sequence-too-long"


def test_leaving_with_rows_that_wait_says_how_many(memory_url):
    made = store.create(memory_url(), part_rows=256, part_stride=256)
    with (
        pytest.raises(InvalidInputError, match="5 rows wait") as caught,
        made.writer("tokens", recipe=RECIPE) as writer,
    ):
        writer.put([TokenSequence(token_ids=np.arange(5))])
    assert caught.value.kind == "part-incomplete"
    assert made.refresh().view.parts("tokens") == {}


def test_a_sealed_store_takes_no_more_rows_and_no_other_recipe(url):
    made = tokens_store(url)
    recipe = {"source": "small", "lengths": list(LENGTHS)}
    writer = made.writer("tokens", recipe=recipe)
    assert writer.sealed
    with pytest.raises(ConflictError, match="sealed with") as caught:
        writer.put([TokenSequence(token_ids=[1])])
    assert caught.value.kind == "sealed"
    with pytest.raises(ConflictError, match="source") as caught:
        made.writer("tokens", recipe={"source": "other"})
    assert caught.value.kind == "group-recipe"


def test_two_writers_of_the_same_rows_agree_and_of_others_conflict(memory_url):
    made = store.create(memory_url(), part_rows=256, part_stride=256)
    one, two, three = (made.writer("tokens", recipe=RECIPE) for _ in range(3))
    for writer, length in ((one, 100), (two, 100), (three, 90)):
        writer.put([TokenSequence(token_ids=np.arange(length))], position=1)
    one.flush()
    two.flush()
    assert two.committed[0].attempt == one.committed[0].attempt
    with pytest.raises(ConflictError, match="another writer") as caught:
        three.flush()
    assert caught.value.kind == "tokens-raced"
    made = made.refresh()
    assert len(made.row_ids()) == 100
    assert store.verify(made).orphans == []


def test_sequences_from_a_generator_are_all_written(memory_url):
    made = store.create(memory_url(), part_rows=512, part_stride=1024)
    with made.writer("tokens", recipe=RECIPE) as writer:
        writer.put(sequence for sequence in sequences_of([200, 256]))
        writer.seal()
    assert len(made.refresh().row_ids()) == 456


def test_rows_of_a_writer_are_those_committed_and_those_that_wait(memory_url):
    made = store.create(memory_url(), part_rows=512, part_stride=1024)
    with made.writer("tokens", recipe=RECIPE) as writer:
        writer.put([TokenSequence(token_ids=np.arange(500))])
        writer.put([TokenSequence(token_ids=np.arange(100))])
        assert writer.rows == 600
        assert [commit.slots for commit in writer.committed] == [500]
        writer.seal()


def test_tokens_are_not_gone_on_with_behind_a_gap(memory_url):
    made = tokens_store(memory_url(), [500, 500, 500], seal=False)
    storage = made.view.storage
    create_retired(storage, made.id, "tokens", 4, "one too far")
    with pytest.raises(store.StoreError) as caught:
        made.refresh().writer("tokens", recipe={"source": "small", "lengths": [500, 500, 500]})
    assert caught.value.kind == "part-missing"
