"""Problems from a store: the right columns, checked against what attention gave, or refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import store
from ingest.models import adapt, attention_sites, toy
from ingest.models.facts import ModelFacts
from jobs import cli
from jobs.errors import JobError
from jobs.kernels.inputs import (
    check_drift,
    columns_of,
    joined,
    qkv_of,
    samples_of,
)
from jobs.sequences import model_facts
from store.tokens import Document, TokenSequence

FAMILIES = ("bert", "gpt2", "llama")


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A store per family with all that attention has, written by ``ingest``."""
    folder = tmp_path_factory.mktemp("attention")
    corpus = folder / "corpus"
    corpus.mkdir()
    for number in range(5):
        (corpus / f"{number}.txt").write_text(toy.TEXT * (1 + number % 2))
    found = {}
    for family in FAMILIES:
        model = toy.save(family, folder / family, heads=4, width=32, positions=64)
        url = folder / f"{family}-store"
        words = ["ingest", "--model", model, "--corpus", corpus, "--out", url, "--dtype", "float32"]
        words += ["--sites", "blocks.*.attn.*", "--context", "48", "--json"]
        assert cli.main([str(word) for word in words]) == 0
        found[family] = store.open(url)
    return found


@pytest.fixture(params=FAMILIES)
def held(request, stores):
    return stores[request.param]


def first(held, layer=1):
    facts = model_facts(held)
    columns = columns_of(held, facts, layer)
    sample = samples_of(held, columns.parts, 1)[0]
    return facts, columns, sample, qkv_of(held, columns, facts.attention(layer), sample)


def test_stored_attention_is_reproduced_from_the_columns_it_saw(held):
    facts, columns, sample, qkv = first(held)
    assert columns.q.partition(":")[2] == attention_sites(facts, 1)[0]
    assert qkv.q.shape == (1, 4, sample.rows, 8)
    assert qkv.groups == facts.attention(1).kv_heads
    assert qkv.causal is facts.causal
    assert check_drift(held, columns, qkv) < 1e-4


def test_another_scale_rotation_or_head_order_is_refused_by_layer_and_head(stores):
    held = stores["llama"]
    _, columns, _, qkv = first(held)
    wrong = [
        dataclasses.replace(qkv, scale=qkv.scale * 1.5),
        dataclasses.replace(qkv, causal=False),
        dataclasses.replace(qkv, softcap=1.0),
        dataclasses.replace(qkv, q=qkv.q.roll(1, 1)),
        dataclasses.replace(qkv, k=qkv.k.roll(1, 2)),
        dataclasses.replace(qkv, v=qkv.v * torch.nan),
    ]
    for each in wrong:
        with pytest.raises(
            JobError, match=r"drift: attention of layer 1.*head \d.*Nothing was measured"
        ):
            check_drift(held, columns, each)


def copied(held, url, sites, spec="float32"):
    """Return a store of the same rows with some columns of another's alone, and no facts."""
    made = store.create(url, part_rows=held.part_rows)
    with made.writer("tokens", recipe={"copy": 1}) as writer:
        table = held.arrow("sequences")
        for seq, rows in zip(table["seq_id"].to_pylist(), table["rows"].to_pylist(), strict=True):
            ids = held.gather("tokens:token_id", np.arange(seq, seq + rows))
            writer.put([TokenSequence(token_ids=ids)])
        writer.seal()
    made = made.refresh()
    columns = {s: f"{spec}[{','.join(map(str, held.column('acts:' + s).shape))}]" for s in sites}
    with made.writer("mine", columns=columns, recipe={"copy": 1}) as writer:
        writer.put(made.row_ids(), {s: held.read(f"acts:{s}") for s in sites})
    return made.refresh()


def test_columns_from_before_the_rotation_are_turned_on_the_way_in(stores, tmp_path):
    held = stores["llama"]
    names = [f"blocks.1.attn.{n}" for n in ("q", "k", "v", "z")]
    plain = copied(held, tmp_path / "plain", names)
    facts = model_facts(held)
    columns = columns_of(plain, facts, 1)
    assert not columns.turned
    sample = samples_of(plain, columns.parts, 1)[0]
    qkv = qkv_of(plain, columns, facts.attention(1), sample)
    assert check_drift(plain, columns, qkv) < 1e-4
    unturned = dataclasses.replace(columns, turned=True)
    with pytest.raises(JobError, match="drift"):
        check_drift(plain, columns, qkv_of(plain, unturned, facts.attention(1), sample))


def test_missing_columns_are_answered_with_the_command_that_adds_them(stores, tmp_path):
    held = stores["llama"]
    lacking = copied(held, tmp_path / "lacking", ["blocks.1.attn.v"])
    with pytest.raises(
        JobError, match=r"columns-missing.*actlake ingest --into .* --sites .*rot_q"
    ):
        columns_of(lacking, model_facts(held), 1)


def test_columns_of_other_head_counts_are_refused(stores):
    held = stores["llama"]
    facts, columns, sample, _ = first(held)
    spec = dataclasses.replace(facts.attention(1), heads=8)
    with pytest.raises(JobError, match=r"heads-differ: layer 1 has 8 query and 2 key heads"):
        qkv_of(held, columns, spec, sample)


def test_samples_are_one_a_document_while_documents_last_and_the_longest_first(tmp_path):
    held = store.create(tmp_path / "s", part_rows=1024)
    lengths = [(0, 30), (0, 50), (0, 40), (1, 20), (2, 50), (2, 10)]
    with held.writer("tokens", recipe={"of": "tests"}) as writer:
        for doc, rows in lengths:
            document = Document(doc_id=doc, name=str(doc), split=int(doc == 1))
            spans = [(document, 0, rows)]
            writer.put([TokenSequence(token_ids=np.arange(rows), spans=spans, split=int(doc == 1))])
        writer.seal()
    held = held.refresh()
    chosen = [(s.document, s.rows) for s in samples_of(held, [0], 5)]
    assert chosen == [(0, 50), (2, 50), (1, 20), (0, 40), (2, 10)]
    assert [s.document for s in samples_of(held, [0], 5, "val")] == [1]
    with pytest.raises(JobError, match="no-sequences"):
        samples_of(held, [0], 5, "test")
    with pytest.raises(JobError, match="no-sequences"):
        samples_of(held, [3], 5)
    with pytest.raises(JobError, match="unknown-split"):
        samples_of(held, [0], 5, "dev")


def test_facts_of_an_adapter_and_of_a_store_agree():
    model = toy.build("llama", heads=4, width=32)
    adapter = adapt(model)
    assert ModelFacts.of(adapter).attention(1) == adapter.attention(1)


def test_joined_problems_are_as_long_as_asked(problems):
    one, _ = problems.make(T=30)
    other, _ = problems.make(T=30, seed=1)
    long = joined([one, other], 100)
    assert long.q.shape[2] == long.v.shape[2] == 100
    assert torch.equal(long.k[:, :, 30:60], other.k)
    assert torch.equal(long.k[:, :, 60:90], one.k)
