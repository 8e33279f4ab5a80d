"""Telling latents and their passages, against the slow and obvious way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import store
from jobs.errors import JobError
from jobs.features import ContextsConfig, passage, telling, top_passages
from jobs.features.contexts import telling_scores
from store.tokens import FLAG_SPECIAL

LOOSE = {"min_rows": 2, "min_documents": 2, "max_density": 1.0}


def rows_of(held):
    table = held.arrow("tokens")
    return {name: table.column(name).to_numpy() for name in table.column_names}


def dense_of(held, group):
    """Return every code as a matrix, ``float64[R, L]``, zero where there is none."""
    rows, codes = rows_of(held), held.arrow(group)
    latent = codes.column("latent").to_numpy()
    out = np.zeros((len(rows["row"]), int(latent.max(initial=0)) + 1))
    at = np.searchsorted(rows["row"], codes.column("row").to_numpy())
    out[at, latent] = codes.column("value").to_numpy()
    return out


def oracle(held, config):
    """Return {latent: (score, density, max, documents)} in float64, one latent at a time."""
    rows, dense = rows_of(held), dense_of(held, config.group)
    covered = np.isin(rows["row"], held.row_ids(group=config.group))
    usual = (rows["flags"] & FLAG_SPECIAL == 0) & covered
    dense, token, doc = dense[usual], rows["token_id"][usual], rows["doc_id"][usual]
    q = np.bincount(token) / usual.sum()
    found = {}
    for latent in range(dense.shape[1]):
        on = dense[:, latent] > 0
        documents = len(set(doc[on]))
        if not (on.sum() >= config.min_rows and documents >= config.min_documents):
            continue
        if on.sum() > config.max_density * usual.sum():
            continue
        mass = np.bincount(token, weights=np.maximum(dense[:, latent], 0), minlength=len(q))
        p = mass[mass > 0] / mass.sum()
        bits = (p * np.log2(p / q[mass > 0])).sum()
        effective = np.exp(-(p * np.log(p)).sum())
        score = bits * (1 - 1 / effective)
        found[latent] = (score, on.mean(), dense[:, latent].max(), documents)
    return found


# -- telling -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"min_rows": 100},
        {"min_documents": 22},
        {"max_density": 0.18},
        {"latents": 3},
        {"latents": 1000},
    ],
    ids=str,
)
def test_telling_latents_are_the_oracles(held, options):
    config = ContextsConfig(**{**LOOSE, "latents": 1000, **options})
    expected = oracle(held, config)
    order = sorted(expected, key=lambda latent: (-expected[latent][0], latent))[: config.latents]
    found = telling(held, config)
    assert list(found) == ["latent", "score", "density", "max", "documents"]
    assert found["latent"].tolist() == order
    for number, name in enumerate(("score", "density", "max", "documents")):
        values = [expected[latent][number] for latent in order]
        np.testing.assert_allclose(found[name], values, rtol=1e-12)
    assert len(order) > 0
    assert [found[name].dtype for name in found] == [
        np.int64,
        np.float64,
        np.float64,
        np.float64,
        np.int64,
    ]


def test_telling_twice_gives_the_same_bits(held):
    one, two = (telling(held.refresh(), ContextsConfig(**LOOSE)) for _ in range(2))
    for name in one:
        assert one[name].tobytes() == two[name].tobytes()


def put_codes(held, group, row, latent, value, ids=None):
    ids = held.row_ids() if ids is None else ids
    order = np.lexsort((latent, row))
    row, latent, value = (np.asarray(array)[order] for array in (row, latent, value))
    masked = len(ids) < held.coverage["tokens"].rows
    with held.writer(
        group, columns={"codes": "codes"}, recipe={"of": group}, masked=masked
    ) as writer:
        for part in np.unique(ids // held.part_stride):
            mine = row // held.part_stride == part
            codes = store.Codes(
                row=row[mine],
                latent=latent[mine].astype(np.uint32),
                value=value[mine].astype(np.float32),
            )
            writer.put(ids[ids // held.part_stride == part], {"codes": codes})
    return held.refresh()


@pytest.fixture
def made(make_tokens):
    return make_tokens([f"{'the old mill ' * 20} {n} stones and the boat" for n in range(8)])


def test_equal_scores_go_by_latent(made):
    ids = made.row_ids()[made.gather("flags", made.row_ids()) & FLAG_SPECIAL == 0]
    latents = np.random.default_rng(0).permutation(60)[:40]
    row = np.concatenate([ids[::3]] * 40)
    latent = np.repeat(latents, len(ids[::3]))
    made = put_codes(made, "codes", row, latent, np.ones(len(row)))
    found = telling(made, ContextsConfig(**LOOSE, latents=30))
    assert len(set(found["score"])) == 1
    assert found["latent"].tolist() == sorted(latents)[:30]


def test_special_rows_and_values_below_zero_do_not_count(made):
    rows = rows_of(made)
    usual = rows["row"][rows["flags"] & FLAG_SPECIAL == 0][:120:2]
    special = rows["row"][rows["flags"] & FLAG_SPECIAL != 0]
    row = np.concatenate([usual, special, usual])
    latent = np.concatenate([np.ones(len(usual)), np.ones(len(special)), np.full(len(usual), 2)])
    value = np.concatenate(
        [np.full(len(usual), 2.0), np.full(len(special), 50.0), np.full(len(usual), -1.0)]
    )
    made = put_codes(made, "codes", row, latent.astype(int), value)
    config = ContextsConfig(min_rows=1, min_documents=1, max_density=1.0)
    found = telling(made, config)
    assert found["latent"].tolist() == [1]
    assert found["max"].tolist() == [2.0]
    assert found["density"][0] == pytest.approx(len(usual) / (len(rows["row"]) - len(special)))
    top = top_passages(made, config, [1])["contexts"]
    assert set(top["value"]) == {2.0}


def test_a_sample_is_measured_against_its_own_rows(made):
    ids = made.row_ids()[::4]
    rng = np.random.default_rng(0)
    keep = rng.random((len(ids), 5)) < 0.4
    at, latent = np.nonzero(keep)
    made = put_codes(made, "codes", ids[at], latent, rng.random(len(at)) + 0.1, ids=ids)
    config = ContextsConfig(**LOOSE)
    found, expected = telling(made, config), oracle(made, config)
    assert set(found["latent"]) == set(expected)
    for latent, density in zip(found["latent"], found["density"], strict=True):
        assert density == pytest.approx(expected[latent][1])


@given(
    rows=st.lists(
        st.lists(st.tuples(st.floats(1e-3, 1e3), st.floats(1e-4, 1)), min_size=1, max_size=6),
        min_size=1, max_size=5,
    )
)  # fmt: skip
def test_scores_are_divergence_times_spread(rows):
    flat = [(latent * 3, mass, share) for latent, row in enumerate(rows) for mass, share in row]
    latent, mass, share = (np.array(values) for values in zip(*flat, strict=True))
    found = telling_scores(latent, mass, share)
    for row, score in zip(rows, found, strict=True):
        m, q = np.array(row).T
        p = m / m.sum()
        expected = (p * np.log2(p / q)).sum() * (1 - np.exp((p * np.log(p)).sum()))
        assert score == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert len(row) > 1 or score == pytest.approx(0, abs=1e-12)


def test_no_telling_latent_is_an_error(held):
    with pytest.raises(
        JobError, match=r"no-latents: no latent of group 'codes' fires on 10000000 rows"
    ):
        telling(held, ContextsConfig(min_rows=10_000_000))


# -- passages ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("passages", [1, 5, 100])
def test_top_passages_are_those_of_the_dense_codes(held, passages):
    rows, dense = rows_of(held), dense_of(held, "codes")
    usual = rows["flags"] & FLAG_SPECIAL == 0
    latents = [3, 0, 17]
    found = top_passages(held, ContextsConfig(passages=passages), latents)["contexts"]
    for latent in latents:
        best = {}
        for at in np.flatnonzero(usual & (dense[:, latent] > 0)):
            key = (-dense[at, latent], rows["row"][at])
            best[rows["doc_id"][at]] = min(best.get(rows["doc_id"][at], (np.inf, 0)), key)
        expected = sorted(best.values())[:passages]
        mine = found["latent"] == latent
        assert found["row"][mine].tolist() == [row for _, row in expected]
        assert found["value"][mine].tolist() == [-value for value, _ in expected]
        assert found["rank"][mine].tolist() == list(range(len(expected)))
        assert len(set(found["doc_id"][mine])) == mine.sum()
    at = np.searchsorted(rows["row"], found["row"])
    assert found["position"].tolist() == rows["pos"][at].tolist()
    assert found["doc_id"].tolist() == rows["doc_id"][at].tolist()
    assert found["document"] == [f"d{doc_id}" for doc_id in found["doc_id"]]


def test_ties_go_to_the_first_row(made):
    ids = made.row_ids()[made.gather("flags", made.row_ids()) & FLAG_SPECIAL == 0]
    made = put_codes(made, "codes", ids, np.full(len(ids), 4), np.ones(len(ids)))
    found = top_passages(made, ContextsConfig(passages=3), [4])["contexts"]
    doc = made.gather("doc_id", ids)
    assert found["row"].tolist() == [ids[doc == d][0] for d in range(3)]


def test_the_words_around_a_passage_carry_their_values(held):
    dense, rows = dense_of(held, "codes"), rows_of(held)
    tables = top_passages(held, ContextsConfig(passages=4, radius=5), [1, 8])
    contexts, words = tables["contexts"], tables["context_tokens"]
    assert {len(column) for column in words.values()} == {len(words["text"])}
    for latent, rank, row in zip(
        contexts["latent"], contexts["rank"], contexts["row"], strict=True
    ):
        mine = (words["latent"] == latent) & (words["rank"] == rank)
        expected = passage(held, int(row), 5)
        assert words["offset"][mine].tolist() == [offset for offset, _, _ in expected]
        assert [t for t, m in zip(words["text"], mine, strict=True) if m] == [
            t for _, t, _ in expected
        ]
        at = np.searchsorted(rows["row"], [r for _, _, r in expected])
        np.testing.assert_array_equal(words["value"][mine], dense[at, latent])
        assert words["is_top"][mine].tolist() == [offset == 0 for offset, _, _ in expected]


def test_no_latent_has_no_passage(held):
    for latents in ([], [10_000]):
        tables = top_passages(held, ContextsConfig(), latents)
        assert {len(column) for table in tables.values() for column in table.values()} == {0}


# -- one passage -------------------------------------------------------------------------------------------

SPACED = (
    "a",
    "mill",
    "日本",
    "👩‍👩‍👧",
    "é",
    "\x00",
    "\r\n",
    "\n\n",
    "  ",
    "[SEP]",
    "<|endoftext|>",
    "\ufeff",
    "ǅ",
)
texts = st.lists(
    st.sampled_from(SPACED) | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
).map("".join)


@settings(max_examples=20)
@given(
    text=texts,
    other=texts,
    radius=st.integers(0, 30),
    family=st.sampled_from(["bert", "gpt2"]),
    data=st.data(),
)
def test_passages_join_to_the_documents_text(make_tokens, text, other, radius, family, data):
    bodies = [other + " x", text + " the end"]
    held = make_tokens(bodies, tokenizer=family, context=10)
    rows = rows_of(held)
    at = data.draw(st.integers(0, len(rows["row"]) - 1))
    found = passage(held, int(rows["row"][at]), radius)
    mine = [
        n for n in range(len(rows["row"]))
        if abs(n - at) <= radius and rows["seq_id"][n] == rows["seq_id"][at] and not rows["flags"][n] & FLAG_SPECIAL
    ]  # fmt: skip
    assert [(offset, row) for offset, _, row in found] == [(n - at, rows["row"][n]) for n in mine]
    if mine:
        low, high = rows["char_start"][mine[0]], max(rows["char_end"][n] for n in mine)
        assert "".join(word for _, word, _ in found) == bodies[rows["doc_id"][at]][low:high]


def test_a_character_of_several_tokens_is_shown_once(make_tokens):
    held = make_tokens(["x 👩 y"], tokenizer="gpt2")
    words = [word for _, word, _ in passage(held, 0, 20)]
    assert "".join(words) == "x 👩 y"
    assert words.count("") >= 3


def test_passages_in_a_later_part_of_a_document(make_tokens):
    text = "".join(f"{n} stones 日本 on the road\n" for n in range(150))
    held = make_tokens([text], tokenizer="gpt2")
    assert held.coverage["tokens"].parts > 2
    rows = rows_of(held)
    for at in (0, 255, 256, len(rows["row"]) - 1):
        found = passage(held, int(rows["row"][at]), 4)
        low = rows["char_start"][np.searchsorted(rows["row"], found[0][2])]
        assert text[low:].startswith("".join(word for _, word, _ in found))
        assert {held.gather("seq_id", [row])[0] for _, _, row in found} == {rows["seq_id"][at]}


def test_without_text_token_ids_stand_in(make_tokens):
    held = make_tokens(["the mill"], text=False)
    ids = [
        token
        for token, flag in zip(
            *(held.gather(n, held.row_ids()) for n in ("token_id", "flags")), strict=True
        )
        if not flag & FLAG_SPECIAL
    ]
    assert [word for _, word, _ in passage(held, 1, 5)] == [f" {token}" for token in ids]


def test_a_passage_stays_in_its_document_where_sequences_are_packed():
    made = store.create("memory://contexts-packed", part_rows=256)
    one, two = (
        store.Document(doc_id=n, name=f"d{n}", text=text) for n, text in enumerate(("abc", "xyz"))
    )
    at = np.array([0, 1, 2, 0, 1, 2])
    with made.writer("tokens", recipe={"of": "tests"}) as writer:
        packed = store.TokenSequence(
            token_ids=at, spans=[(one, 0, 3), (two, 3, 6)], char_start=at, char_end=at + 1
        )
        writer.put([packed])
        writer.seal()
    assert passage(made.refresh(), 2, 9) == [(-2, "a", 0), (-1, "b", 1), (0, "c", 2)]
    assert passage(made.refresh(), 3, 9) == [(0, "x", 3), (1, "y", 4), (2, "z", 5)]


def test_without_spans_token_ids_stand_in():
    made = store.create("memory://contexts-own-tokens", part_rows=256)
    document = store.Document(doc_id=0, name="d", text="some text")
    with made.writer("tokens", recipe={"of": "tests"}) as writer:
        writer.put([store.TokenSequence(token_ids=np.arange(3), spans=[(document, 0, 3)])])
        writer.seal()
    assert [word for _, word, _ in passage(made.refresh(), 1, 5)] == [" 0", " 1", " 2"]


@pytest.mark.parametrize("row", [-1, 10**9, 250])
def test_a_row_that_is_not_there_is_named(make_tokens, row):
    with pytest.raises(JobError, match=f"row-missing: row {row} "):
        passage(make_tokens(["the mill"]), row, 3)
