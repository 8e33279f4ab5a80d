"""The frozen form of a dictionary: what it computes, what it refuses, what its files hold."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jobs import codebook as module
from jobs.codebook import Codebook
from jobs.codes import Codes, Pattern, PlainCodeOps
from jobs.errors import JobError
from store.errors import InvalidInputError


def book_of(width=12, latents=40, *, seed=0, per_latent=False, **meta):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    rows = torch.nn.functional.normalize(draw(latents, width), dim=1)
    threshold = draw(latents).abs() if per_latent else 0.4
    return Codebook(draw(width, latents), draw(latents), rows, draw(width), threshold, meta)


def rows_of(rows, width=12, seed=1):
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


@pytest.mark.parametrize("per_latent", [False, True], ids=["one threshold", "one per latent"])
def test_codes_are_the_preactivations_above_the_threshold_sorted_by_row_and_latent(per_latent):
    book, x = book_of(per_latent=per_latent), rows_of(33)
    codes = book.encode(x)
    pre = x.astype(np.float64) @ book.W_enc_DL.double().numpy() + book.b_enc_L.double().numpy()
    rows, latents = np.nonzero(pre > book.theta.double().numpy())
    assert np.array_equal(codes.row_index, rows)
    assert np.array_equal(codes.latent, latents)
    assert np.allclose(codes.value, pre[rows, latents], atol=1e-5)
    types = (codes.row_index.dtype, codes.latent.dtype, codes.value.dtype)
    assert types == (np.int64, np.uint32, np.float32)


@pytest.mark.parametrize("kind", ["array", "tensor", "bfloat16"])
def test_rows_may_be_arrays_or_tensors(kind):
    book, x = book_of(), torch.from_numpy(rows_of(5)).bfloat16().float()
    given_as = {"array": x.numpy(), "tensor": x, "bfloat16": x.bfloat16()}[kind]
    assert np.array_equal(book.encode(given_as).value, book.encode(x.double()).value)


def test_sparse_and_dense_forms_agree():
    book, x = book_of(), rows_of(50)
    dense = book.encode_dense(x)
    codes = book.encode(x)
    assert np.array_equal(dense.numpy()[codes.row_index, codes.latent], codes.value)
    assert int((dense != 0).sum()) == len(codes)
    expected = dense.double() @ book.W_dec_LD.double() + book.b_dec_D.double()
    assert torch.allclose(book.reconstruct(x).double(), expected, atol=1e-5)


@pytest.mark.parametrize("block_rows", [1, 7, 50, 1000])
def test_blocks_change_nothing_but_memory(monkeypatch, block_rows):
    book, x = book_of(), rows_of(50)
    whole = book.encode(x)
    monkeypatch.setattr(module, "BLOCK_BYTES", block_rows * 4 * book.latents)
    blocked = book.encode(x)
    assert np.array_equal(whole.row_index, blocked.row_index)
    assert np.array_equal(whole.latent, blocked.latent)
    assert np.allclose(whole.value, blocked.value, atol=1e-6)


def test_a_row_without_codes_decodes_to_the_bias_and_no_rows_to_nothing():
    book = book_of()
    nothing = Codes(np.zeros(0, np.int64), np.zeros(0, np.uint32), np.zeros(0, np.float32))
    assert torch.equal(book.decode(nothing, 3), book.b_dec_D.expand(3, -1))
    assert len(book.encode(rows_of(0))) == 0
    assert book.reconstruct(rows_of(0)).shape == (0, book.width)


def test_codes_are_read_only():
    codes = book_of().encode(rows_of(4))
    with pytest.raises(ValueError, match="read-only"):
        codes.value[0] = 1.0


@pytest.mark.parametrize("shape", [(3, 11), (3, 13), (12,), (2, 3, 12)])
def test_rows_of_another_width_are_refused_by_name(shape):
    book = book_of(site="blocks.3.resid_post")
    with pytest.raises(InvalidInputError) as caught:
        book.encode(np.zeros(shape, np.float32))
    assert caught.value.kind == "width-mismatch"
    for word in ("width 12", "blocks.3.resid_post", "Nothing was encoded"):
        assert word in str(caught.value)


@pytest.mark.parametrize("per_latent", [False, True], ids=["one threshold", "one per latent"])
def test_files_round_trip_to_the_bit(tmp_path, per_latent):
    book = book_of(per_latent=per_latent, site="s", k=3, recipe={"deep": [1, 2.5, None]})
    book.save(tmp_path / "d")
    found = Codebook.load(tmp_path / "d")
    assert found.to_bytes() == book.to_bytes()
    assert found.sha == book.sha
    assert dict(found.meta) == {"site": "s", "k": 3, "recipe": {"deep": [1, 2.5, None]}}
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == [
        "dictionary.json",
        "dictionary.safetensors",
    ]
    x = rows_of(9)
    assert np.array_equal(found.encode(x).value, book.encode(x).value)


def test_the_sha_tells_weights_thresholds_and_makings_apart():
    base = book_of(site="a")
    others = [book_of(site="b"), book_of(seed=1, site="a"), book_of(per_latent=True, site="a")]
    assert len({base.sha, *(other.sha for other in others)}) == 4
    assert base.sha == book_of(site="a").sha


def _without(files, name):
    return {key: value for key, value in files.items() if key != name}


def _card(files, **changes):
    card = {**json.loads(files["dictionary.json"]), **changes}
    return {**files, "dictionary.json": json.dumps(card).encode()}


def _flipped(files):
    data = bytearray(files["dictionary.safetensors"])
    data[-5] ^= 1
    return {**files, "dictionary.safetensors": bytes(data)}


def _cut(files):
    return {**files, "dictionary.safetensors": files["dictionary.safetensors"][:-9]}


def _swapped(files):
    return {**files, "dictionary.safetensors": book_of(seed=5).to_bytes()["dictionary.safetensors"]}


def _lacking(files):
    from safetensors.torch import load, save

    tensors = load(files["dictionary.safetensors"])
    del tensors["b_dec_D"]
    data = save(tensors)
    card = _card(files, weights_sha256=hashlib.sha256(data).hexdigest())
    return {**card, "dictionary.safetensors": data}


BROKEN = {
    "weights missing": lambda files: _without(files, "dictionary.safetensors"),
    "card missing": lambda files: _without(files, "dictionary.json"),
    "card not json": lambda files: {**files, "dictionary.json": b"{"},
    "card of another kind": lambda files: {**files, "dictionary.json": b"[]"},
    "card without keys": lambda files: {**files, "dictionary.json": b"{}"},
    "newer format": lambda files: _card(files, format="actlake-dictionary/3"),
    "one bit flipped": _flipped,
    "weights cut short": _cut,
    "weights of another": _swapped,
    "tensor missing": _lacking,
    "weights empty": lambda files: {**files, "dictionary.safetensors": b""},
}


@pytest.mark.parametrize("damage", BROKEN.values(), ids=list(BROKEN))
def test_damaged_files_are_refused(damage):
    with pytest.raises(JobError) as caught:
        Codebook.from_bytes(damage(book_of().to_bytes()))
    assert caught.value.kind == "dictionary-broken"
    assert "Nothing was loaded" in str(caught.value)


def test_a_folder_without_a_dictionary_is_refused(tmp_path):
    with pytest.raises(JobError, match=r"dictionary-broken.*is missing"):
        Codebook.load(tmp_path)


def _weights(**changes):
    book = book_of()
    weights = {name: getattr(book, name) for name in Codebook._tensors}
    return {**weights, **{name: change(weights[name]) for name, change in changes.items()}}


FAULTY = {
    "row not of norm 1": {"W_dec_LD": lambda w: w * 1.01},
    "value not finite": {"W_enc_DL": lambda w: w / 0.0},
    "negative threshold": {"threshold": lambda w: w - 10},
    "encoder transposed": {"W_enc_DL": lambda w: w.t()},
    "bias short": {"b_enc_L": lambda w: w[:-1]},
    "threshold short": {"threshold": lambda w: w.expand(7)},
    "decoder flat": {"W_dec_LD": lambda w: w.flatten()},
    "no latents": {
        "W_dec_LD": lambda w: w[:0],
        "W_enc_DL": lambda w: w[:, :0],
        "b_enc_L": lambda w: w[:0],
    },
}


@pytest.mark.parametrize("changes", FAULTY.values(), ids=list(FAULTY))
def test_weights_that_make_no_dictionary_are_refused(changes):
    with pytest.raises(JobError, match="dictionary-broken"):
        Codebook(**_weights(**changes))


def test_a_saved_file_is_replaced_whole(tmp_path, monkeypatch):
    """A crash between writing and renaming leaves the old dictionary readable."""
    old, new = book_of(seed=1), book_of(seed=2)
    old.save(tmp_path)

    def crash(*_):
        raise OSError("power cut")

    monkeypatch.setattr("pathlib.Path.replace", crash)
    with pytest.raises(OSError, match="power cut"):
        new.save(tmp_path)
    monkeypatch.undo()
    assert Codebook.load(tmp_path).sha == old.sha


@st.composite
def patterns(draw):
    rows, latents, width = draw(st.integers(1, 6)), draw(st.integers(1, 9)), draw(st.integers(1, 5))
    dense = np.random.default_rng(draw(st.integers(0, 99))).standard_normal((rows, latents))
    mask = np.random.default_rng(draw(st.integers(0, 99))).random(dense.shape) < draw(
        st.floats(0, 1)
    )
    row, latent = (torch.from_numpy(index) for index in np.nonzero(mask))
    return Pattern(row, latent, rows, latents), torch.from_numpy(dense * mask), width


@given(patterns())
def test_plain_ops_are_the_dense_products(case):
    pattern, dense_RL, width = case
    generator = torch.Generator().manual_seed(0)
    w_LD = torch.randn(pattern.latents, width, generator=generator, dtype=torch.float64)
    x_RD = torch.randn(pattern.rows, width, generator=generator, dtype=torch.float64)
    value, ops = dense_RL[pattern.row, pattern.latent], PlainCodeOps()
    assert torch.allclose(ops.gather_sum(pattern, value, w_LD), dense_RL @ w_LD)
    assert torch.allclose(ops.scatter_sum(pattern, value, x_RD), dense_RL.t() @ x_RD)
    dots = (x_RD @ w_LD.t())[pattern.row, pattern.latent]
    assert torch.allclose(ops.dots(pattern, x_RD, w_LD), dots)


def test_plain_ops_err_no_more_than_the_dense_float32_product():
    """Float64 is the truth; both forms sum in float32."""
    generator = torch.Generator().manual_seed(3)
    dense = torch.randn(64, 500, generator=generator) * (
        torch.rand(64, 500, generator=generator) < 0.06
    )
    row, latent = dense.nonzero(as_tuple=True)
    pattern, w = Pattern(row, latent, 64, 500), torch.randn(500, 96, generator=generator)
    truth = dense.double() @ w.double()
    sparse = PlainCodeOps().gather_sum(pattern, dense[row, latent], w)
    bound = (dense @ w - truth).abs().max() + 32 * torch.finfo(
        torch.float32
    ).eps * truth.abs().max()
    assert (sparse - truth).abs().max() <= bound
