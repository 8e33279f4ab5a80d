"""``repeats``: what a document is made of, that it is a function of seed and number, and how ids become rows."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import store
from ingest.config import HarvestConfig, TokensConfig
from ingest.contract import TextSource, TokenDocument, TokenSource, Vocabulary
from ingest.errors import IngestError, ModelError, SourceError
from ingest.models import attend, attention_sites, load, toy
from ingest.plan import split_of
from ingest.readers import vocabulary
from ingest.run import ingest
from ingest.sources import SOURCES
from ingest.sources.repeats import Repeats
from ingest.tokens import Tokenizing, resolve_context
from jobs.runtimes.in_process import InProcess
from store.tokens import FLAG_FIRST_OF_DOCUMENT, FLAG_FIRST_OF_SEQUENCE, FLAG_SPECIAL

NUMBER = count()
WORDS = Vocabulary(tokens=200, special=(0, 1, 7), bos=0)


def said(source, words=WORDS):
    return list(source.token_documents(words))


@given(
    low=st.integers(1, 40),
    more=st.integers(0, 40),
    copies=st.integers(1, 4),
    seed=st.integers(0, 2**40),
)
def test_a_document_is_a_beginning_and_one_block_repeated(low, more, copies, seed):
    source = Repeats(sequences=4, low=low, high=low + more, copies=copies, seed=seed)
    for number, document in enumerate(said(source)):
        ids = document.token_ids
        root, own, at, period = re.fullmatch(
            r"(repeats)/(\d+)/(\d{4})/p(\d+)", document.name
        ).groups()
        assert (root, int(own), int(at)) == ("repeats", seed, number)
        assert low <= int(period) <= low + more
        assert ids.dtype == np.int32
        assert len(ids) == 1 + copies * int(period) <= source.longest
        assert ids[0] == WORDS.bos
        blocks = ids[1:].reshape(copies, int(period))
        assert (blocks == blocks[0]).all()
        assert len(set(blocks[0].tolist())) == int(period)  # a match is the only one
        assert not set(blocks[0].tolist()) & set(WORDS.special)
        assert blocks.max() < WORDS.tokens


def test_documents_depend_on_seed_and_number_alone():
    few, many = said(Repeats(sequences=3)), said(Repeats(sequences=9))
    for one, two in zip(few, many, strict=False):
        assert one.name == two.name
        np.testing.assert_array_equal(one.token_ids, two.token_ids)
    other = said(Repeats(sequences=9, seed=1))
    firsts = {tuple(document.token_ids[:8].tolist()) for document in (*many, *other)}
    assert len(firsts) == 18


def test_the_draws_are_those_of_the_first_release():
    ids = np.concatenate([document.token_ids for document in said(Repeats(sequences=8))])
    digest = hashlib.sha256(ids.astype("<i4").tobytes()).hexdigest()
    assert digest == "d2f50ec6edb65b6558276e484032e654a80e9b6276c786c8ae1b1917fdb3b603"


def test_periods_and_tokens_are_drawn_evenly():
    documents = said(Repeats(sequences=400, low=5, high=9))
    periods = np.bincount([(len(d.token_ids) - 1) // 2 for d in documents], minlength=10)[5:]
    assert periods.sum() == 400
    assert periods.min() > 50
    tokens = np.bincount(np.concatenate([d.token_ids[1:6] for d in documents]), minlength=200)
    assert (tokens[[0, 1, 7]] == 0).all()
    assert (np.delete(tokens, [0, 1, 7]) > 0).mean() > 0.99


def test_an_alphabet_is_each_documents_own():
    documents = said(Repeats(sequences=6, low=40, high=40, alphabet=5))
    alphabets = [frozenset(document.token_ids[1:].tolist()) for document in documents]
    assert all(2 <= len(letters) <= 5 for letters in alphabets)
    assert len(set(alphabets)) == 6
    for document in documents:
        np.testing.assert_array_equal(document.token_ids[1:41], document.token_ids[41:])


@pytest.mark.parametrize(
    "settings",
    [{"sequences": 0}, {"low": 0}, {"low": 9, "high": 8}, {"copies": 0}, {"alphabet": 0}],
    ids=str,
)
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(SourceError, match=r"bad-source.*Nothing was written"):
        Repeats(**settings)


@pytest.mark.parametrize(
    ("words", "settings", "kind"),
    [
        (replace(WORDS, bos=None), {}, "no-bos"),
        (WORDS, {"high": 198}, "vocabulary-too-small"),
        (WORDS, {"high": 500, "alphabet": 198}, "vocabulary-too-small"),
    ],
    ids=["no beginning", "period", "alphabet"],
)
def test_a_vocabulary_that_cannot_say_it_is_refused(words, settings, kind):
    with pytest.raises(SourceError) as caught:
        said(Repeats(**settings), words)
    assert caught.value.kind == kind
    assert "Nothing was written" in str(caught.value)
    assert len(said(Repeats(sequences=1, low=197, high=197), WORDS)) == 1


def test_which_sources_give_texts_and_which_tokens():
    for name in SOURCES.names():
        methods = dir(SOURCES.get(name))
        kinds = {"documents", "token_documents", "pairs", "dialogues", "pictures", "block"} & set(
            methods
        )
        assert len(kinds) == 1, name
    assert isinstance(Repeats(), TokenSource)
    assert not isinstance(SOURCES.get("stdlib")(), TokenSource)
    assert TextSource is not TokenSource


# -- ids become rows ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ready:
    """A source of ids."""

    ids: tuple[tuple[int, ...], ...]
    longest: int | None = None
    kind = "ready"

    def inputs(self):
        return {}

    def token_documents(self, vocabulary):
        for number, ids in enumerate(self.ids):
            yield TokenDocument(name=f"r{number}", token_ids=np.array(ids or np.zeros(0, int)))


@pytest.fixture(scope="module")
def tokenizer():
    return toy.build_tokenizer("llama")


def written(tokenizer, source, context, **options):
    into = store.create(f"memory://repeats-{next(NUMBER)}", part_rows=256)
    config = TokensConfig(source=source, **options)
    making = Tokenizing(config=config, source=source, tokenizer=tokenizer, context=context)
    making.write(into.writer("tokens", recipe={"of": "tests"}), lambda *_: None)
    return into.refresh()


def columns(of, name):
    table = of.arrow(name)
    return {column: np.array(table.column(column).to_pylist()) for column in table.column_names}


def test_ready_ids_are_taken_as_they_are(tokenizer):
    source = Ready(((0, 5, 6, 7, 0), (9, 10)))
    held = written(tokenizer, source, 3)
    rows, documents = columns(held, "tokens"), columns(held, "documents")
    np.testing.assert_array_equal(rows["token_id"], [0, 5, 6, 7, 0, 9, 10])
    np.testing.assert_array_equal(rows["pos"], [0, 1, 2, 0, 1, 0, 1])
    assert set(rows["char_start"]) == set(rows["char_end"]) == {-1}
    special = [bool(flag & FLAG_SPECIAL) for flag in rows["flags"]]
    assert special == [True, False, False, False, True, False, False]
    first = [bool(flag & FLAG_FIRST_OF_DOCUMENT) for flag in rows["flags"]]
    assert first == [True, False, False, False, False, True, False]
    begins = [bool(flag & FLAG_FIRST_OF_SEQUENCE) for flag in rows["flags"]]
    assert begins == [True, False, False, True, False, True, False]
    for number, ids in enumerate(source.ids):
        digest = hashlib.sha256(np.array(ids, "<i4").tobytes()).hexdigest()
        assert documents["sha256"][number] == digest
        assert documents["split"][number] == split_of(digest)
    assert "text" not in documents or not any(documents["text"])


def test_documents_that_stay_whole_are_left_out_rather_than_cut(tokenizer):
    source = Ready(((0, 1, 2), (0, 3, 4), (0, 5, 6)), longest=3)
    held = written(tokenizer, source, 3, rows=8)
    np.testing.assert_array_equal(columns(held, "tokens")["token_id"], [0, 1, 2, 0, 3, 4])
    cut = written(tokenizer, replace(source, longest=None), 3, rows=8)
    assert len(columns(cut, "tokens")["token_id"]) == 8


@pytest.mark.parametrize(
    "ids",
    [(0, 9999), (0, -1), (0.5, 1.5), ((0, 1), (2, 3))],
    ids=["large", "negative", "floats", "2-d"],
)
def test_ids_the_tokenizer_does_not_have_are_refused(tokenizer, ids):
    with pytest.raises(SourceError, match=r"bad-token-ids.*'r1'"):
        written(tokenizer, Ready(((0, 1), ids)), 4)


def test_no_document_no_store(tokenizer):
    for ids in ((), ((), ())):
        with pytest.raises(SourceError, match="corpus-empty"):
            written(tokenizer, Ready(ids), 4)


def test_the_vocabulary_is_the_tokenizers(tokenizer):
    words = vocabulary(tokenizer)
    assert words.tokens == len(tokenizer)
    assert words.special == (0,)
    assert words.bos == 0
    assert vocabulary(toy.build_tokenizer("bert")).bos is None


# -- with a model ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request, tmp_path_factory):
    return toy.save(request.param, tmp_path_factory.mktemp(request.param))


def test_the_context_is_what_the_documents_need(folder):
    loaded = load(folder, dtype="float32")
    source = Repeats(low=3, high=20)
    assert resolve_context(TokensConfig(source=source), loaded) == 41
    assert resolve_context(TokensConfig(source=source, context=50), loaded) == 50
    with pytest.raises(IngestError, match=r"context-too-short.*--context 41"):
        resolve_context(TokensConfig(source=source, context=40), loaded)
    with pytest.raises(IngestError, match="context-too-long"):
        resolve_context(TokensConfig(source=Repeats(high=40)), loaded)


def ingested(folder, out, source, sites, **harvest):
    return ingest(
        out,
        TokensConfig(source=source, part_rows=256),
        HarvestConfig(model=str(folder), sites=sites, dtype="float32", batch=8, **harvest),
        runtime=InProcess(),
    )


def test_attention_from_the_store_is_the_z_in_the_store(folder, tmp_path):
    loaded = load(folder, dtype="float32")
    names = attention_sites(loaded.adapter, 1)
    source = Repeats(sequences=24, low=4, high=20, seed=3)
    summary = ingested(folder, tmp_path / "s", source, names)
    assert summary.parts > 1
    held = store.open(tmp_path / "s")
    sequences = columns(held, "sequences")
    assert len(sequences["rows"]) == 24
    import torch

    for at, rows in zip(sequences["first_row"], sequences["rows"], strict=True):
        read = [
            torch.from_numpy(held.gather(name, np.arange(at, at + rows)))[None] for name in names
        ]
        again, _ = attend(*read[:3], loaded.adapter.attention(1))
        torch.testing.assert_close(again, read[3], atol=1e-5, rtol=1e-5)
    found = [document.name for document in said(source, vocabulary(loaded.tokenizer))]
    assert columns(held, "documents")["name"].tolist() == found
    before = held.digest()
    again = ingested(folder, tmp_path / "s", source, names)
    assert again.new_rows == 0
    assert store.open(tmp_path / "s").digest() == before


def test_another_seed_is_another_recipe(folder, tmp_path):
    ingested(folder, tmp_path / "s", Repeats(sequences=2, low=4, high=8), ("embed",))
    with pytest.raises(store.ConflictError):
        ingested(folder, tmp_path / "s", Repeats(sequences=2, low=4, high=8, seed=1), ("embed",))


def test_a_model_without_a_beginning_is_refused_before_a_store_is_made(tmp_path):
    folder = toy.save("bert", tmp_path / "bert")
    with pytest.raises(SourceError, match="no-bos"):
        ingested(folder, tmp_path / "s", Repeats(low=4, high=8), ("embed",))
    assert not (tmp_path / "s").exists()


def test_a_tokenizer_larger_than_the_model_is_refused_before_a_store_is_made(tmp_path):
    folder = toy.save("llama", tmp_path / "llama")
    toy.build_tokenizer("llama", vocab=340).save_pretrained(str(folder))
    with pytest.raises(ModelError, match=r"vocabulary-mismatch.*340 tokens.*320"):
        ingested(folder, tmp_path / "s", Repeats(low=4, high=8), ("embed",))
    assert not (tmp_path / "s").exists()
