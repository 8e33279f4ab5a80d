"""Documents become rows: the tokenizer's tokens with their spans, and what cannot become rows is refused."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import store
from ingest.config import TokensConfig
from ingest.contract import SourceDocument
from ingest.errors import ModelError, SourceError
from ingest.framing import Specials, special_ids
from ingest.models.toy import TEXT, build_tokenizer
from ingest.plan import split_of
from ingest.tokens import Tokenizing
from store.tokens import FLAG_FIRST_OF_DOCUMENT, FLAG_FIRST_OF_SEQUENCE, FLAG_SPECIAL

MIXED = (
    "The river carried the boat\r\npast the mill.",
    "naïve café — 日本語のテキスト 👩‍👩‍👧 end",
    "nul \x00 here\n\n\ttab",
    "The river carried the boat\r\npast the mill.",
    "   \n ",
    TEXT,
)
SPACED = (
    "a",
    "mill",
    "forty-two",
    "日本",
    "👩‍👧",
    "é",
    "\x00",
    "\n\n",
    "  ",
    "[SEP]",
    "<|endoftext|>",
    "\ufeff",
)
texts = st.lists(st.sampled_from(SPACED) | st.text(st.characters(exclude_categories=["Cs"]))).map(
    "".join
)
NUMBER = count()


@dataclass(frozen=True)
class Documents:
    """A source made of texts."""

    texts: tuple[str, ...]
    names: tuple[str, ...] = ()
    kind = "documents"

    def inputs(self):
        return {}

    def documents(self):
        for number, text in enumerate(self.texts):
            if text:
                name = self.names[number] if self.names else f"d{number}"
                yield SourceDocument(name=name, text=text)


@pytest.fixture(scope="module", params=["bert", "gpt2"])
def tokenizer(request):
    return build_tokenizer(request.param)


@pytest.fixture(scope="module")
def bert():
    return build_tokenizer("bert")


@pytest.fixture(scope="module")
def gpt2():
    return build_tokenizer("gpt2")


def silent(*_):
    pass


def new_store():
    return store.create(f"memory://tokens-{next(NUMBER)}", part_rows=256)


def tokenizing(tokenizer, source, context=16, **options):
    config = TokensConfig(source=source, **options)
    return Tokenizing(config=config, source=source, tokenizer=tokenizer, context=context)


def written(tokenizer, source, context=16, *, into=None, progress=silent, **options):
    into = into or new_store()
    writer = into.writer("tokens", recipe={"of": "tests"})
    tokenizing(tokenizer, source, context, **options).write(writer, progress)
    return into.refresh()


def columns(of, name="tokens"):
    table = of.arrow(name)
    return {column: np.array(table.column(column).to_pylist()) for column in table.column_names}


# -- one document ------------------------------------------------------------------------------------------


def plain(tokenizer, text):
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return found["input_ids"], found["offset_mapping"]


@given(text=texts, context=st.integers(3, 20), framed=st.booleans())
def test_sequences_are_the_tokenizers_tokens_in_frames(tokenizer, text, context, framed):
    cut = tokenizing(tokenizer, Documents((text,)), context, special_tokens=framed)
    found = [sequence for sequence, _ in cut.sequences(None)]
    ids, spans = plain(tokenizer, text)
    special = Specials.of(tokenizer) if framed else Specials(prefix=(), suffix=())
    before, after = len(special.prefix), len(special.suffix)
    content = context - before - after
    assert len(found) == -(-len(ids) // content)
    marked = set(special_ids(tokenizer).tolist())
    for number, sequence in enumerate(found):
        mine = slice(number * content, (number + 1) * content)
        expected = [*special.prefix, *ids[mine], *special.suffix]
        assert sequence.token_ids.tolist() == expected
        assert len(sequence) <= context
        flagged = [token in marked for token in expected]
        assert ((sequence.flags & FLAG_SPECIAL) != 0).tolist() == flagged
        real = [(-1, -1)] * before + spans[mine] + [(-1, -1)] * after
        real = [(-1, -1) if f else span for f, span in zip(flagged, real, strict=True)]
        assert (
            list(zip(sequence.char_start.tolist(), sequence.char_end.tolist(), strict=True)) == real
        )
        first = (sequence.flags & FLAG_FIRST_OF_DOCUMENT).nonzero()[0].tolist()
        assert first == ([before] if number == 0 else [])


@given(text=texts)
def test_spans_are_characters_of_the_text(gpt2, text):
    for sequence, _ in tokenizing(gpt2, Documents((text,)), 8).sequences(None):
        spelled = gpt2.backend_tokenizer.decode
        for token, low, high in zip(
            sequence.token_ids.tolist(), sequence.char_start, sequence.char_end, strict=True
        ):
            if high > low + 1 or (high == low + 1 and ord(text[low]) < 128):
                assert spelled([token]).strip() == text[low:high].strip()


def test_a_special_token_spelled_in_a_text_is_flagged(bert):
    text = "the mill [SEP] the boat [UNK] xyz日"
    cut = columns(written(bert, Documents((text,))))
    sep, unknown = bert.sep_token_id, bert.unk_token_id
    special = (cut["flags"] & FLAG_SPECIAL) != 0
    assert (cut["token_id"] == sep).sum() == 2
    assert special[cut["token_id"] == sep].all()
    assert (cut["char_start"][special] == -1).all()
    assert (cut["token_id"] == unknown).sum() >= 1
    assert not special[cut["token_id"] == unknown].any()


# -- special tokens of tokenizers --------------------------------------------------------------------------


def llama_like():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", "▁a", "a", "▁mill", "▁"]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def test_specials_are_found_around_a_word(bert, gpt2):
    assert Specials.of(bert) == Specials(prefix=(2,), suffix=(3,))
    assert Specials.of(gpt2) == Specials(prefix=(), suffix=())
    assert Specials.of(llama_like()) == Specials(prefix=(1,), suffix=(2,))


def test_a_tokenizer_that_puts_a_space_first_is_aligned():
    text = "mill a  mill"
    cut = columns(written(llama_like(), Documents((text,))))
    ids, spans = plain(llama_like(), text)
    assert cut["token_id"].tolist() == [1, *ids, 2]
    assert list(zip(cut["char_start"], cut["char_end"], strict=True)) == [
        (-1, -1),
        *spans,
        (-1, -1),
    ]


@pytest.mark.parametrize(
    "encoded",
    [{True: [7, 8, 9], False: [5, 6]}, {True: [1, 2], False: []}],
    ids=["changes the word", "drops the word"],
)
def test_a_tokenizer_that_cannot_be_aligned_is_refused(encoded):
    def tokenizer(text, *, add_special_tokens=True):
        return {"input_ids": encoded[add_special_tokens]}

    with pytest.raises(ModelError, match=r"tokenizer-unusual.*--no-special-tokens"):
        Specials.of(tokenizer)


def test_a_tokenizer_without_spans_is_refused():
    slow = SimpleNamespace(is_fast=False)
    with pytest.raises(ModelError, match="tokenizer-unusual"):
        tokenizing(slow, Documents(("a",)))


def test_the_unknown_token_is_special_only_where_it_is_another_too(bert, gpt2):
    assert bert.unk_token_id not in special_ids(bert)
    assert {bert.pad_token_id, bert.cls_token_id, bert.mask_token_id} <= set(
        special_ids(bert).tolist()
    )
    assert gpt2.unk_token_id == gpt2.eos_token_id
    assert gpt2.eos_token_id in special_ids(gpt2)


# -- whole corpora -----------------------------------------------------------------------------------------


def test_rows_sequences_and_documents_agree(tokenizer):
    source = Documents((*MIXED, *(TEXT[n:] for n in range(0, 300, 37))))
    found = written(tokenizer, source)
    rows, sequences, documents = (columns(found, n) for n in ("tokens", "sequences", "documents"))
    assert found.coverage["tokens"].parts > 2
    assert (np.diff(rows["row"]) > 0).all()
    for name in ("doc_id", "split"):
        of_sequence = dict(zip(sequences["seq_id"], sequences[name], strict=True))
        assert [of_sequence[s] for s in rows["seq_id"]] == rows[name].tolist()
    first = (rows["flags"] & FLAG_FIRST_OF_SEQUENCE) != 0
    assert (
        rows["row"][first].tolist()
        == sequences["seq_id"].tolist()
        == sequences["first_row"].tolist()
    )
    assert (rows["pos"][first] == 0).all()
    assert (rows["pos"] == rows["row"] - rows["seq_id"]).all()
    texts = [text for text in source.texts if text]
    for doc_id, text in enumerate(texts):
        mine = rows["doc_id"] == doc_id
        spelled = mine & (rows["char_start"] >= 0)
        assert rows["token_id"][spelled].tolist() == plain(tokenizer, text)[0]
        assert ((rows["flags"][mine] & FLAG_FIRST_OF_DOCUMENT) != 0).sum() == mine.any()
    for n, doc_id in enumerate(documents["doc_id"]):
        low, high = documents["char_start"][n], documents["char_end"][n]
        assert documents["text"][n] == texts[doc_id][low:high]
        assert documents["split"][n] == split_of(documents["sha256"][n])
    assert documents["rows"].sum() == len(rows["row"])


def test_equal_texts_are_two_documents_of_one_split(bert):
    same = "the boat on the river"
    found = columns(
        written(bert, Documents((same, "other", same), names=("x", "x", "x"))), "documents"
    )
    assert found["doc_id"].tolist() == [0, 1, 2]
    assert found["name"].tolist() == ["x"] * 3
    assert found["sha256"][0] == found["sha256"][2] != found["sha256"][1]
    assert found["split"][0] == found["split"][2]


def test_a_document_over_several_parts_keeps_its_text_in_slices(gpt2):
    text = "".join(f"{n} stones on the old road; " for n in range(200))
    found = written(gpt2, Documents((text,)))
    pieces = columns(found, "documents")
    assert found.coverage["tokens"].parts == len(pieces["text"]) > 2
    assert "".join(pieces["text"]) == text
    assert pieces["char_start"].tolist() == [0, *pieces["char_end"][:-1]]
    assert len(set(pieces["sha256"])) == len(set(pieces["doc_id"])) == 1


def test_a_text_may_stay_out_of_the_store(bert):
    found = columns(written(bert, Documents((TEXT,)), text=False), "documents")
    assert found["text"].tolist() == [None] * len(found["text"])
    assert (
        found["sha256"][0] == columns(written(bert, Documents((TEXT,))), "documents")["sha256"][0]
    )


@pytest.mark.parametrize("rows", [3, 4, 15, 16, 17, 18, 19, 255, 256, 257, 300, 10**6])
def test_the_cut_takes_as_many_rows_as_were_asked_for(bert, rows):
    source = Documents(MIXED * 3)
    whole, cut = columns(written(bert, source)), columns(written(bert, source, rows=rows))
    wanted = min(rows, len(whole["row"]))
    assert wanted - 2 <= len(cut["row"]) <= wanted
    inner = len(cut["row"]) - 1
    assert cut["token_id"][:inner].tolist() == whole["token_id"][:inner].tolist()
    assert cut["token_id"][-1] == bert.sep_token_id


def test_the_cut_without_special_tokens_is_exact(gpt2):
    source = Documents(MIXED)
    whole = columns(written(gpt2, source))
    for rows in (1, 2, 16, 17, 100):
        cut = columns(written(gpt2, source, rows=rows))
        assert cut["token_id"].tolist() == whole["token_id"][:rows].tolist()


@pytest.mark.parametrize(
    ("source", "options"),
    [(Documents((" \n ", "\t")), {}), (Documents(("a mill",)), {"rows": 2}), (Documents(()), {})],
    ids=["white space", "too few rows", "no document"],
)
def test_a_corpus_without_rows_is_refused_and_not_sealed(bert, source, options):
    held = new_store()
    with pytest.raises(SourceError, match="corpus-empty"):
        written(bert, source, into=held, **options)
    assert held.refresh().view.sealed("tokens") is None


# -- size --------------------------------------------------------------------------------------------------


class Counting:
    """A tokenizer that counts its calls."""

    def __init__(self, inner):
        self.inner, self.calls = inner, 0

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, *arguments, **options):
        self.calls += 1
        return self.inner(*arguments, **options)


def test_a_long_document_is_tokenized_once(gpt2):
    counting = Counting(gpt2)
    text = TEXT * 600
    cut = tokenizing(counting, Documents((text,)), 64)
    counting.calls = 0
    total = sum(len(sequence) for sequence, _ in cut.sequences(None))
    assert counting.calls == 1
    assert total == len(plain(gpt2, text)[0]) > 60_000


def test_memory_does_not_grow_with_the_corpus(gpt2):
    class Endless(Documents):
        def documents(self):
            for number in range(self.texts):
                yield SourceDocument(name=str(number), text=f"{number} " + TEXT * 4)

    def peak(documents):
        tracemalloc.start()
        for _ in tokenizing(gpt2, Endless(documents), 64).sequences(None):
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(2)
    assert peak(60) < 1.5 * peak(6)
