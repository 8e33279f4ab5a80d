"""Partial columns: one state a part, whole or absent, the same bytes for the same arrays, refused where damaged."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load

import store
from store import ConflictError, CorruptError, InvalidInputError, NotFoundError
from store.attempts import Attempt
from store.checksum import crc32c
from store.partials import (
    DTYPES,
    MAX_PARTIAL_BYTES,
    decode_partial,
    encode_partial,
    partial_hash,
)
from store.testing.faults import flip
from store.testing.small import LENGTHS, state_of, tokens_store

STATE = {"state": "partial"}
names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.@=:/-]{0,20}", fullmatch=True)
arrays = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda dtype: hnp.arrays(
        dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
    )
)
states = st.dictionaries(names, arrays, max_size=4)


def same(one, other):
    assert list(one) == sorted(other)
    for name, array in one.items():
        wanted = np.asarray(other[name])
        assert (array.dtype, array.shape) == (wanted.dtype, wanted.shape)
        assert array.tobytes() == wanted.tobytes()


@given(states)
def test_any_state_survives_its_bytes(state):
    data = encode_partial(state, "state")
    found = decode_partial(data, "here")
    same(found, state)
    assert encode_partial(dict(reversed(state.items())), "state") == data
    assert partial_hash(found) == partial_hash(state)
    same(dict(sorted(load(data).items())), state)  # another reader's view of it
    assert not any(array.flags.writeable for array in found.values())


@given(states)
@settings(max_examples=20)
def test_a_put_state_is_read_back(memory_url, state):
    made = tokens_store(memory_url())
    with made.writer("g", columns=STATE, recipe={}) as writer:
        for part in made.view.parts("tokens"):
            writer.put_partial(part, {"state": state})
    made = made.refresh()
    same(made.partial("g:state", 1), state)
    same(made.partial("state", 0), state)
    assert made.coverage["g"].sealed
    assert made.coverage["g"].rows == sum(LENGTHS)
    assert store.verify(made).ok


def test_arrays_of_any_layout_are_stored_as_they_read(memory_url):
    made = tokens_store(memory_url(), [30])
    values = np.arange(12.0).reshape(3, 4)
    state = {"t": values.T, "step": values[:, ::2], "big": values.astype(">f8"), "n": 7}
    with made.writer("g", columns=STATE, recipe={}) as writer:
        writer.put_partial(0, {"state": state})
    found = made.refresh().partial("g:state", 0)
    assert all(np.array_equal(found[name], np.asarray(state[name])) for name in state)
    assert found["big"].dtype == np.float64


def test_parts_come_in_any_order_and_are_put_once(memory_url):
    made = tokens_store(memory_url())
    parts = list(made.view.parts("tokens"))
    writer = made.writer("g", columns=STATE, recipe={})
    for part in reversed(parts):
        writer.put_partial(part, {"state": state_of(part)})
    assert all(writer.done(part) for part in parts)
    writer.put_partial(0, {"state": {"other": np.zeros(3)}})
    assert writer.passed_rows == made.view.commit("tokens", 0).rows
    writer.close()
    again = made.refresh()
    for part in parts:
        same(again.partial("g:state", part), state_of(part))
    assert len(writer.committed) == len(parts)


def test_several_columns_commit_together(memory_url):
    made = tokens_store(memory_url(), [30])
    with made.writer("g", columns={"a": "partial", "b": "partial"}, recipe={}) as writer:
        with pytest.raises(InvalidInputError, match="missing-column"):
            writer.put_partial(0, {"a": {}})
        with pytest.raises(InvalidInputError, match="unknown-column"):
            writer.put_partial(0, {"a": {}, "b": {}, "c": {}})
        assert not writer.done(0)
        writer.put_partial(0, {"a": {"x": np.ones(2)}, "b": {}})
    found = made.refresh()
    assert found.partial("g:b", 0) == {}
    paths = set(found.view.commit("g", 0).objects)
    assert paths == {"a.partial.safetensors", "b.partial.safetensors"}


BAD = {
    "dtype": ({"x": np.array(["a"])}, "dtype-mismatch"),
    "half": ({"x": np.zeros(2, np.float16)}, "dtype-mismatch"),
    "bool": ({"x": np.zeros(2, bool)}, "dtype-mismatch"),
    "object": ({"x": np.array([None])}, "dtype-mismatch"),
    "name": ({"../x": np.zeros(2)}, "bad-name"),
    "empty-name": ({"": np.zeros(2)}, "bad-name"),
    "metadata": ({"__metadata__ ": np.zeros(2)}, "bad-name"),
    "size": ({"x": np.zeros(MAX_PARTIAL_BYTES // 8 + 1)}, "partial-too-large"),
}


@pytest.mark.parametrize(("state", "kind"), BAD.values(), ids=BAD)
def test_bad_states_are_refused_and_leave_nothing(memory_url, state, kind):
    made = tokens_store(memory_url(), [30])
    writer = made.writer("g", columns=STATE, recipe={})
    with pytest.raises(InvalidInputError, match="Nothing of the part was written") as caught:
        writer.put_partial(0, {"state": state})
    assert caught.value.kind == kind
    assert not [key for key in made.view.storage.keys("groups/g") if "/parts/" in key]
    writer.put_partial(0, {"state": {}})


def test_a_state_that_fits_but_for_its_head_is_refused():
    state = {"x": np.zeros(MAX_PARTIAL_BYTES // 8)}
    with pytest.raises(InvalidInputError, match="partial-too-large"):
        encode_partial(state, "state")


def test_rows_and_states_do_not_mix(memory_url):
    made = tokens_store(memory_url(), [30])
    partial = made.writer("g", columns=STATE, recipe={})
    with pytest.raises(InvalidInputError, match="put_partial") as caught:
        partial.put(made.row_ids(), {"state": np.zeros(30)})
    assert caught.value.kind == "column-kind"
    dense = made.writer("h", columns={"x": "float32"}, recipe={})
    with pytest.raises(InvalidInputError, match="all others put") as caught:
        dense.put_partial(0, {"x": {}})
    assert caught.value.kind == "column-kind"
    with pytest.raises(InvalidInputError, match="partial columns alone and of all rows"):
        made.writer("m", columns=STATE, recipe={}, masked=True)


def test_a_part_the_tokens_do_not_have_is_refused(memory_url):
    made = tokens_store(memory_url(), [30])
    with pytest.raises(NotFoundError, match="part-missing"):
        made.writer("g", columns=STATE, recipe={}).put_partial(5, {"state": {}})


def test_another_recipe_of_the_name_is_refused(memory_url):
    made = tokens_store(memory_url(), [30])
    made.writer("g", columns=STATE, recipe={"version": 1})
    with pytest.raises(ConflictError, match=r"recipe\.version"):
        made.writer("g", columns=STATE, recipe={"version": 2})


def test_of_two_writers_the_first_wins(memory_url):
    made = tokens_store(memory_url(), [30])
    one, other = (made.writer("g", columns=STATE, recipe={}) for _ in range(2))
    one.put_partial(0, {"state": {"x": np.ones(1)}})
    other.put_partial(0, {"state": {"x": np.zeros(1)}})
    found = made.refresh()
    assert found.partial("g:state", 0)["x"] == 1
    assert store.verify(found).orphans == []


def test_a_writer_that_dies_before_its_commit_leaves_nothing_visible(memory_url, monkeypatch):
    made = tokens_store(memory_url(), [30])
    writer = made.writer("g", columns=STATE, recipe={})
    with monkeypatch.context() as patch:
        patch.setattr(Attempt, "commit", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            writer.put_partial(0, {"state": {}})
    assert made.refresh().coverage["g"].parts == 0
    assert store.verify(made).orphans == []
    writer.put_partial(0, {"state": {}})
    assert made.refresh().coverage["g"].parts == 1


def test_the_digest_knows_values_dtypes_shapes_and_names(memory_url):
    def of(state):
        made = tokens_store(memory_url(), [30])
        with made.writer("g", columns=STATE, recipe={}) as writer:
            writer.put_partial(0, {"state": state})
        return made.refresh().digest(["g"])

    zeros = np.zeros((2, 3))
    found = [
        of({"x": zeros}),
        of({"x": zeros.astype(np.int64)}),
        of({"x": zeros.reshape(3, 2)}),
        of({"y": zeros}),
        of({"x": zeros, "y": np.zeros(0)}),
        of({"x": zeros + 1}),
        of({}),
    ]
    assert len(set(found)) == len(found)
    assert of({"x": zeros}) == found[0]


def _file(head, body=b"", length=None):
    text = json.dumps(head).encode() if isinstance(head, dict) else head
    return struct.pack("<Q", len(text) if length is None else length) + text + body


_F64 = {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}
HOSTILE = {
    "nothing": b"",
    "short": b"\x00" * 7,
    "no-json": _file(b"{nonsense"),
    "length-beyond": _file({}, length=1 << 60),
    "offsets-beyond": _file({"x": {**_F64, "data_offsets": [0, 1 << 40]}}, b"\0" * 8),
    "shape-differs": _file({"x": {**_F64, "shape": [9]}}, b"\0" * 8),
    "overlap": _file({"x": _F64, "y": _F64}, b"\0" * 8),
    "half": _file({"x": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}}, b"\0" * 2),
    "brain": _file({"x": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}, b"\0" * 2),
    "unknown": _file({"x": {**_F64, "dtype": "Q7"}}, b"\0" * 8),
    "name": _file({"a b": _F64}, b"\0" * 8),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_a_file_that_is_no_state_is_refused_though_its_checksum_fits(memory_url, data):
    made = tokens_store(memory_url(), [30])
    writer = made.writer("g", columns=STATE, recipe={})
    at = writer._begin(0)
    at.attempt.put("state.partial.safetensors", data, 30)
    writer._make_visible(at, 30)
    opened = made.refresh()
    with pytest.raises(CorruptError, match="object-damaged"):
        opened.partial("g:state", 0)
    report = store.verify(opened)
    assert not report.ok
    assert report.digest is None


def test_a_file_over_the_limit_is_refused_before_it_is_read(memory_url, monkeypatch):
    made = tokens_store(memory_url(), [30])
    with made.writer("g", columns=STATE, recipe={}) as writer:
        writer.put_partial(0, {"state": {"x": np.zeros(100)}})
    monkeypatch.setattr("store.partials.MAX_PARTIAL_BYTES", 64)
    opened, read = made.refresh(), []
    get = type(opened.view.storage).get
    monkeypatch.setattr(
        type(opened.view.storage),
        "get",
        lambda self, key, most=None: read.append(key) or get(self, key),
    )
    with pytest.raises(CorruptError, match=r"it takes [0-9]+ bytes"):
        opened.partial("g:state", 0)
    assert read
    assert not [key for key in read if key.endswith(".safetensors")]


@given(st.data())
@settings(max_examples=40)
def test_no_flipped_byte_of_a_state_goes_unseen(data):
    state = state_of(3)
    whole = encode_partial(state, "state")
    bad = flip(whole, data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7)))
    assert crc32c(bad) != crc32c(whole)  # what readers check before they decode
    try:
        found = decode_partial(bad, "here")
    except CorruptError:
        return
    assert partial_hash(found) != partial_hash(state)
