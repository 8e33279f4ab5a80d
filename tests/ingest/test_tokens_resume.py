"""The tokens writer dies anywhere, is run again, and leaves the store of one that never died."""

from __future__ import annotations

import json
from itertools import count

import pytest

import store
from ingest.config import TokensConfig
from ingest.models.toy import TEXT, build_tokenizer
from ingest.plan import split_of
from ingest.sources.jsonl import JsonLines
from ingest.sources.synthetic import Synthetic
from ingest.tokens import Tokenizing
from ingest.vectors import vector_recipe, write_vector_tokens

NUMBER = count()
TEXTS = (
    "The river carried the boat\r\npast the mill.",
    "",
    "naïve café — 日本語のテキスト 👩‍👩‍👧 end",
    " \n ",
    *(TEXT[n:] for n in range(0, 400, 23)),
    TEXT * 3,
)


@pytest.fixture(scope="module", params=["bert", "gpt2"])
def tokenizer(request):
    return build_tokenizer(request.param)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    file = tmp_path_factory.mktemp("corpus") / "c.jsonl"
    file.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    return JsonLines(paths=(str(file),))


def silent(*_):
    pass


def new_store():
    return store.create(f"memory://resume-{next(NUMBER)}", part_rows=256)


def written(tokenizer, source, *, into=None, progress=silent, rows=None):
    into = into or new_store()
    config = TokensConfig(source=source, rows=rows)
    cut = Tokenizing(config=config, source=source, tokenizer=tokenizer, context=16)
    cut.write(into.writer("tokens", recipe={"of": "tests"}), progress)
    return into.refresh()


class DiedError(Exception):
    pass


def dying(at_call):
    calls = count(1)

    def progress(*_):
        if next(calls) == at_call:
            raise DiedError

    return progress


@pytest.mark.parametrize("rows", [None, 1000], ids=["whole", "cut"])
def test_a_writer_that_dies_anywhere_leaves_the_same_store(tokenizer, source, rows):
    undisturbed = written(tokenizer, source, rows=rows)
    calls = len(undisturbed.arrow("sequences"))
    assert undisturbed.coverage["tokens"].parts >= 4
    digest = undisturbed.digest()
    for at in range(1, calls + 1, max(1, calls // 12)):
        held = new_store()
        with pytest.raises(DiedError):
            written(tokenizer, source, into=held, progress=dying(at), rows=rows)
        done = held.refresh().coverage["tokens"]
        assert not done.sealed
        finished = written(tokenizer, source, into=held, rows=rows)
        assert finished.digest() == digest
        assert finished.coverage["tokens"] == undisturbed.coverage["tokens"]


def test_a_writer_that_dies_after_every_part_leaves_the_same_store(tokenizer, source):
    digest, held = written(tokenizer, source).digest(), new_store()
    for deaths in range(100):
        before = held.refresh().coverage["tokens"].parts if deaths else 0

        def progress(*_, before=before):
            if held.refresh().coverage["tokens"].parts > before:
                raise DiedError

        try:
            finished = written(tokenizer, source, into=held, progress=progress)
        except DiedError:
            assert held.refresh().coverage["tokens"].parts == before + 1
            continue
        break
    assert deaths >= 4
    assert finished.digest() == digest


def test_a_finished_group_is_left_alone(tokenizer, source):
    held = written(tokenizer, source)
    before = held.digest()
    assert written(tokenizer, None, into=held, progress=dying(1)).digest() == before


def test_progress_counts_rows(tokenizer, source):
    said = []
    written(tokenizer, source, rows=500, progress=lambda *call: said.append(call))
    assert {(phase, total) for phase, _, total in said} == {("tokens", 500)}
    done = [done for _, done, _ in said]
    assert done == sorted(done)
    assert 498 <= done[-1] <= 500
    resumed, held = [], new_store()
    with pytest.raises(DiedError):
        written(tokenizer, source, into=held, rows=500, progress=dying(len(said)))
    written(tokenizer, source, into=held, rows=500, progress=lambda *call: resumed.append(call))
    assert resumed == said[-len(resumed) :]


def vectors(held, rows, progress=silent):
    config = TokensConfig(source=Synthetic(width=16), rows=rows, context=100)
    writer = held.writer("tokens", recipe=vector_recipe(config, config.source))
    write_vector_tokens(writer, config, rows, progress)
    return held.refresh()


@pytest.mark.parametrize("rows", [1, 99, 100, 101, 1000])
def test_vector_rows_come_in_sequences_of_the_context(rows):
    found = vectors(new_store(), rows)
    lengths = found.arrow("sequences").column("rows").to_numpy()
    assert lengths.sum() == rows == found.coverage["tokens"].rows
    assert (lengths[:-1] == 100).all()
    documents = found.arrow("documents").to_pydict()
    assert documents["split"] == [split_of(sha) for sha in documents["sha256"]]
    assert len(set(documents["sha256"])) == len(documents["sha256"])


def test_vector_rows_resume_to_the_same_store():
    digest = vectors(new_store(), 1030).digest()
    for at in range(1, 12):
        held = new_store()
        with pytest.raises(DiedError):
            vectors(held, 1030, dying(at))
        assert vectors(held, 1030).digest() == digest
