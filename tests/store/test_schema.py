import hashlib
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from store import CorruptError, InvalidInputError, UnsupportedVersionError
from store.records import MAX_RECORD_BYTES, canonical, make_record, read_record, sha256
from store.schema import Column, Group, subseed
from store.testing.strategies import columns, json_values, names

SEALED = {"group": "g", "parts": 3, "rows": 700}

COMMIT = canonical(
    {
        "v": 1,
        "kind": "commit",
        "store": "id",
        "group": "g",
        "part": 3,
        "n": 0,
        "rows": 7,
        "attempt": "0" * 16,
        "recipe": "r",
        "tokens": None,
        "objects": [],
        "summary": {},
        "provenance": {"a": 1},
        "position": 1,
    }
).decode()


def record(**changes):
    """A record of store ``id`` with its hash made right again after the changes."""
    body = {**SEALED, "v": 1, "kind": "sealed", "store": "id", **changes}
    return canonical({**body, "self": sha256(canonical(body))})


def floats_of(value):
    """What canonical JSON makes of a value when read back: floats are their texts."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, dict):
        return {key: floats_of(item) for key, item in value.items()}
    if isinstance(value, list):
        return [floats_of(item) for item in value]
    return value


@given(json_values())
def test_canonical_json_reads_back_and_is_a_fixed_point(value):
    text = canonical(value)
    back = json.loads(text)
    assert back == floats_of(value)
    assert canonical(back) == text
    assert b"\n" not in text


@given(
    st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=4), st.integers(), max_size=6)
)
def test_canonical_json_does_not_know_the_order_of_keys(value):
    backwards = dict(reversed(list(value.items())))
    assert canonical(backwards) == canonical(value)


@given(st.floats())
def test_floats_are_their_shortest_text(value):
    back = float(json.loads(canonical(value)))
    assert back == value or (math.isnan(back) and math.isnan(value))


def test_numbers_of_numpy_are_numbers():
    value = {"a": np.int16(3), "b": np.float32(0.5), "c": np.bool_(1), "d": np.arange(2)}
    assert canonical(value) == b'{"a":3,"b":"0.5","c":1,"d":[0,1]}'


def test_sets_have_one_order():
    assert (
        canonical({"x": {"b", "a", "c"}})
        == canonical({"x": {"c", "b", "a"}})
        == b'{"x":["a","b","c"]}'
    )


@pytest.mark.parametrize(
    "value",
    [object(), b"bytes", "\ud800", {"a": [1j]}],
    ids=["object", "bytes", "surrogate", "complex"],
)
def test_what_json_cannot_say_is_refused(value):
    with pytest.raises(InvalidInputError) as caught:
        canonical({"x": value})
    assert caught.value.kind == "not-json"


def test_records_name_themselves():
    data, digest = make_record("sealed", "id", SEALED)
    found = read_record(data, "sealed", "id", "here")
    assert found["self"] == digest
    assert {name: found[name] for name in SEALED} == SEALED
    assert data == record()


@given(st.data())
def test_any_changed_byte_of_a_record_is_an_error(data):
    good, _ = make_record("sealed", "id", SEALED)
    at = data.draw(st.integers(0, len(good) - 1))
    bit = data.draw(st.integers(0, 7))
    bad = bytearray(good)
    bad[at] ^= 1 << bit
    with pytest.raises(CorruptError) as caught:
        read_record(bytes(bad), "sealed", "id", "the-place")
    assert caught.value.kind == "record-damaged"
    assert "the-place" in caught.value.message


@given(st.integers(0, 120))
def test_any_truncated_record_is_an_error(length):
    good, _ = make_record("sealed", "id", SEALED)
    with pytest.raises(CorruptError):
        read_record(good[:length], "sealed", "id", "here")


def hashed(text):
    """A record of any JSON text, canonical or not, with the hash its text has."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    return text.replace(',"store"', f',"self":"{digest}","store"').encode()


@pytest.mark.parametrize(
    ("position", "good"),
    [
        ("1", True),
        ('"0.5"', True),
        ('"true"', True),
        ('{"self":"x"}', True),
        ("true", False),
        ("[false]", False),
        ("0.5", False),
        ("1e3", False),
        ("NaN", False),
        ("-Infinity", False),
        ("[1, 2]", False),
        ('"\\u00e9"', False),
        ('{"a":1,"a":1}', False),
        ('{"b":1,"a":1}', False),
        ("-0", False),
    ],
)
def test_of_all_texts_of_a_value_one_is_a_record(position, good):
    text = COMMIT.replace('"position":1', f'"position":{position}')
    if good:
        assert read_record(hashed(text), "commit", "id", "here")["part"] == 3
        return
    with pytest.raises(CorruptError) as caught:
        read_record(hashed(text), "commit", "id", "here")
    assert caught.value.kind == "record-damaged"


def test_a_record_that_holds_its_own_hash_twice_is_hashed_as_any_other():
    body = {**json.loads(COMMIT), "v": 1}
    digest = make_record("commit", "id", body)[1]
    body["provenance"] = {"a": 1, "self": digest}
    data, mine = make_record("commit", "id", body)
    assert read_record(data, "commit", "id", "here")["self"] == mine
    data = data.replace(f'"self":"{digest}"'.encode(), f'"self":"{mine}"'.encode())
    with pytest.raises(
        CorruptError
    ):  # the inner one now equals the outer, and the hash no longer fits
        read_record(data, "commit", "id", "here")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"a":1,"a":1}',
        b"\xff\xfe",
        b"1e999",
        b"9" * 5000,
    ],
    ids=["empty", "null", "list", "object", "deep", "twice", "no-utf8", "float", "long-number"],
)
def test_what_is_no_record_is_damage(data):
    with pytest.raises(CorruptError) as caught:
        read_record(data, "sealed", "id", "here")
    assert caught.value.kind == "record-damaged"


@pytest.mark.parametrize(
    "changes", [{"v": 2}, {"kind": "surprise"}, {"new_key": 1}], ids=["version", "kind", "key"]
)
def test_newer_records_are_refused_as_newer(changes):
    with pytest.raises(UnsupportedVersionError, match="Upgrade") as caught:
        read_record(record(**changes), "sealed", "id", "here")
    assert caught.value.kind == "unsupported-version"


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"store": "other"}, "foreign-record"),
        ({"rows": "700"}, "record-invalid"),
        ({"rows": None}, "record-invalid"),
        ({"group": 5}, "record-invalid"),
    ],
)
def test_records_that_do_not_belong_are_refused(changes, kind):
    with pytest.raises(CorruptError) as caught:
        read_record(record(**changes), "sealed", "id", "here")
    assert caught.value.kind == kind


def test_a_record_of_another_kind_is_refused():
    data, _ = make_record("dropped", "id", {"group": "g", "reason": "r"})
    with pytest.raises(CorruptError) as caught:
        read_record(data, "sealed", "id", "here")
    assert caught.value.kind == "foreign-record"


def test_records_too_large_are_neither_read_nor_written():
    with pytest.raises(CorruptError, match=str(MAX_RECORD_BYTES)):
        read_record(record(group="g" * MAX_RECORD_BYTES), "sealed", "id", "here")
    with pytest.raises(InvalidInputError) as caught:
        make_record("sealed", "id", {**SEALED, "group": "g" * MAX_RECORD_BYTES})
    assert caught.value.kind == "record-too-large"


@given(columns(), names())
def test_declarations_read_back(column, group):
    declared = Group(name=group, columns={"x": column}, recipe={"a": 1}, aligned_to="tokens")
    assert Column.parse("x", column.spec) == column
    assert Group.from_json(declared.to_json()) == declared
    assert (math.prod(column.shape) >= 16) is (column.kind == "dense")


@pytest.mark.parametrize(
    "spec",
    [
        *("", "float", "float32[]", "float32[0]", "bfloat16[16", "Float32", "float32[1,,2]"),
        *("codes[3]", "dense:float32", "float32[99999999999]", f"float64[{2**20 + 1}]"),
        "int8[1,1,1,1,1,1,1,1,1]",
    ],
)
def test_what_is_no_column_is_refused(spec):
    with pytest.raises(InvalidInputError) as caught:
        Column.parse("x", spec)
    assert caught.value.kind == "bad-column"


@pytest.mark.parametrize("name", ["", ".x", "-x", "a/b", "a b", "x" * 129, "é", "row", "a.parquet"])
def test_names_that_may_not_stand_in_keys_are_refused(name):
    with pytest.raises(InvalidInputError) as caught:
        Column.parse(name, "float32")
    assert caught.value.kind == "bad-name"


def test_subseeds_are_what_the_format_says():
    digest = sha256(b"7/chunks/3")
    assert subseed(7, "chunks", 3) == int(digest[:16], 16)


def test_a_record_nested_too_deep_is_not_written_and_brackets_in_its_texts_are_no_levels():
    text = "[{" * 5000 + '\\"' + "]" * 7
    data, _ = make_record("dropped", "id", {"group": "g", "reason": text})
    assert read_record(data, "dropped", "id", "here")["reason"] == text
    deep: object = 1
    for _ in range(127):
        deep = [deep]
    body = {"group": "g", "columns": {}, "recipe": {"a": deep}, "aligned_to": None}
    with pytest.raises(InvalidInputError, match="record-too-deep"):
        make_record("group", "id", body)
    body["recipe"] = {"a": deep[0]}
    make_record("group", "id", body)
