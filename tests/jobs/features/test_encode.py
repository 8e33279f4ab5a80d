"""Codes of a column as a group: those of the dictionary, written once, for every row or a sample."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch

from jobs.blocks import blocks
from jobs.codebook import Codebook
from jobs.errors import JobError
from jobs.features import encode
from store.errors import ConflictError, InvalidInputError

module = importlib.import_module("jobs.features.encode")  # the name is also a function's


def codes_of(held, group):
    table = held.refresh().arrow(group)
    return tuple(table.column(name).to_numpy() for name in ("row", "latent", "value"))


def fresh(make_tokens, masked=False):
    made = make_tokens([f"the river {n} and the mill " * 30 for n in range(12)])
    ids = made.row_ids()
    if masked:
        ids = ids[ids % 3 == 0]
    rng = np.random.default_rng(3)
    with made.writer(
        "acts", columns={"h.1": "bfloat16[4,4]"}, recipe={"of": "acts"}, masked=masked
    ) as writer:
        for part in np.unique(ids // made.part_stride):
            mine = ids[ids // made.part_stride == part]
            writer.put(mine, {"h.1": rng.standard_normal((len(mine), 4, 4)).astype(np.float32)})
    return made.refresh()


@pytest.mark.parametrize("masked", [False, True], ids=["all rows", "a sample"])
def test_codes_are_those_of_the_dictionary(make_tokens, codebook, masked):
    held = fresh(make_tokens, masked)
    found = encode(held, "acts:h.1", codebook, "codes")
    row, latent, value = codes_of(held, "codes")
    expected = [(block.row_ids, codebook.encode(block.x)) for block in blocks(held, "acts:h.1")]
    np.testing.assert_array_equal(row, np.concatenate([ids[c.row_index] for ids, c in expected]))
    np.testing.assert_array_equal(latent, np.concatenate([c.latent for _, c in expected]))
    np.testing.assert_array_equal(value, np.concatenate([c.value for _, c in expected]))
    ids = held.row_ids(group="acts")
    dense = codebook.encode_dense(held.gather("acts:h.1", ids).reshape(len(ids), -1)).numpy()
    own = np.zeros_like(dense)
    own[np.searchsorted(ids, row), latent] = value
    np.testing.assert_allclose(own, dense, atol=1e-5)
    now = held.refresh()
    assert now.groups["codes"].masked == masked
    np.testing.assert_array_equal(now.row_ids(group="codes"), ids)
    assert now.coverage["codes"].sealed or masked
    assert (found.rows, found.codes, found.group) == (len(ids), len(row), "codes")


def test_the_dictionary_lies_in_the_store(make_tokens, codebook):
    held = fresh(make_tokens)
    found = encode(held, "acts:h.1", codebook, "codes")
    assert Codebook.from_bytes(held.asset(found.dictionary)).sha == codebook.sha
    assert held.refresh().groups["codes"].recipe["dictionary"] == found.dictionary


def test_parts_that_are_there_are_passed_over(make_tokens, codebook, monkeypatch):
    whole, died = fresh(make_tokens), fresh(make_tokens)
    encode(whole, "acts:h.1", codebook, "codes")
    parts = len(whole.view.parts("acts"))
    assert parts > 3
    encoded = []

    def spying(store, site, **options):
        for block in blocks(store, site, **options):
            encoded.append(int(block.row_ids[0]) // store.part_stride)
            yield block

    def dying(store, site, *, parts):
        if parts != [done]:
            raise KeyboardInterrupt
        yield from blocks(store, site, parts=parts)

    for done in range(parts - 1):
        monkeypatch.setattr(module, "blocks", dying)
        with pytest.raises(KeyboardInterrupt):
            encode(died, "acts:h.1", codebook, "codes")
        assert list(died.refresh().view.parts("codes")) == list(range(done + 1))
    monkeypatch.setattr(module, "blocks", spying)
    last = encode(died, "acts:h.1", codebook, "codes")
    assert encoded == [parts - 1]
    assert died.refresh().digest(["codes"]) == whole.refresh().digest(["codes"])
    again = encode(died, "acts:h.1", codebook, "codes")
    assert encoded == [parts - 1]
    assert (again.rows, again.codes, again.dictionary) == (0, 0, last.dictionary)
    assert died.refresh().coverage["codes"].sealed


def test_progress_counts_up_to_all_rows(make_tokens, codebook):
    held, said = fresh(make_tokens), []
    encode(held, "acts:h.1", codebook, "codes", progress=lambda *call: said.append(call))
    rows = held.coverage["acts"].rows
    assert said[-1] == (rows, rows)
    assert said == sorted(said)


def book_of(width, latents=8):
    w = torch.nn.functional.normalize(torch.eye(latents, width) + 0.1, dim=1)
    return Codebook(w.T, torch.zeros(latents), w, torch.zeros(width), 0.1)


def test_another_width_is_refused(make_tokens):
    held = fresh(make_tokens)
    with pytest.raises(JobError, match=r"width-mismatch.*width 12 .*holds width 16"):
        encode(held, "acts:h.1", book_of(12), "codes")
    assert set(held.refresh().groups) == {"tokens", "acts"}


def test_another_dictionary_under_the_same_name_is_refused(make_tokens, codebook):
    held = fresh(make_tokens)
    encode(held, "acts:h.1", codebook, "codes")
    before = held.refresh().digest()
    with pytest.raises(ConflictError):
        encode(held, "acts:h.1", book_of(16), "codes")
    assert held.refresh().digest() == before
    encode(held.refresh(), "acts:h.1", book_of(16), "codes.2")
    assert {"codes", "codes.2"} < set(held.refresh().groups)


def test_a_dictionary_that_never_fires_writes_no_codes(make_tokens, codebook):
    held = fresh(make_tokens)
    silent = Codebook(codebook.W_enc_DL, codebook.b_enc_L, codebook.W_dec_LD, codebook.b_dec_D, 1e6)
    assert encode(held, "acts:h.1", silent, "codes").codes == 0
    now = held.refresh()
    assert len(now.arrow("codes")) == 0
    assert now.coverage["codes"].rows == now.coverage["tokens"].rows


@pytest.mark.parametrize("column", ["codes", "pos"])
def test_only_dense_columns_are_encoded(make_tokens, codebook, column):
    held = fresh(make_tokens)
    encode(held, "acts:h.1", codebook, "codes")
    with pytest.raises(JobError, match="column-kind"):
        encode(held.refresh(), column, codebook, "more")


def test_a_reserved_name_is_refused(make_tokens, codebook):
    with pytest.raises(InvalidInputError, match="bad-name"):
        encode(fresh(make_tokens), "acts:h.1", codebook, "x_by_latent")
