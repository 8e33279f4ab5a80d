"""JSON Lines as documents: one a line, and every line that is none is named."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.errors import SourceError
from ingest.sources.jsonl import JsonLines

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


def source(tmp_path, data, **options):
    (tmp_path / "c.jsonl").write_bytes(data)
    return JsonLines(paths=(str(tmp_path / "c.jsonl"),), **options)


def read(tmp_path, data, **options):
    return [(d.name, d.text) for d in source(tmp_path, data, **options).documents()]


@given(
    values=st.lists(texts, min_size=1, max_size=5),
    ascii_only=st.booleans(),
    ending=st.sampled_from(["\n", "\r\n"]),
)
def test_documents_are_the_lines(tmp_path_factory, values, ascii_only, ending):
    lines = [json.dumps({"text": value}, ensure_ascii=ascii_only) for value in values]
    data = ending.join(lines).encode()
    found = read(tmp_path_factory.mktemp("jsonl"), data)
    assert found == [(f"c.jsonl:{n}", value) for n, value in enumerate(values, start=1)]


def test_blank_lines_count_and_are_passed_over(tmp_path):
    found = read(tmp_path, b'\n{"text": "a"}\n  \r\n{"text": "b"}')
    assert found == [("c.jsonl:2", "a"), ("c.jsonl:4", "b")]


def test_empty_and_null_texts_are_no_documents(tmp_path):
    assert read(tmp_path, b'{"text": ""}\n{"text": null}\n{"text": "x"}\n') == [("c.jsonl:3", "x")]


def test_a_byte_order_mark_is_no_text(tmp_path):
    assert read(tmp_path, b'\xef\xbb\xbf{"text": "a"}\n') == [("c.jsonl:1", "a")]


def test_escaped_nul_and_line_separators_stay_in_the_text(tmp_path):
    text = "nul \x00 sep \u2028 nel \x85 vt \x0b"
    data = json.dumps({"text": text}, ensure_ascii=False).encode()
    assert read(tmp_path, data) == [("c.jsonl:1", text)]


def test_fields_may_have_other_names(tmp_path):
    data = b'{"body": "a", "title": "T"}\n{"body": "b", "title": 7}\n{"body": "c", "title": null}\n'
    found = read(tmp_path, data, text_field="body", name_field="title")
    assert found == [("T", "a"), ("7", "b"), ("c.jsonl:3", "c")]


def test_a_huge_line_is_one_document(tmp_path):
    text = "word " * 400_000
    assert read(tmp_path, json.dumps({"text": text}).encode()) == [("c.jsonl:1", text)]


def test_files_come_in_order_of_their_names(tmp_path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}))
    (tmp_path / "other.json").write_text("{}")
    both = JsonLines(paths=(str(tmp_path),))
    assert [d.name for d in both.documents()] == ["a.jsonl:1", "b.jsonl:1"]
    assert sorted(both.inputs()) == ["a.jsonl", "b.jsonl"]


@pytest.mark.parametrize(
    ("line", "kind", "says"),
    [
        (b"no json", "corpus-unreadable", "it is no JSON"),
        (b'{"text": "a"', "corpus-unreadable", "it is no JSON"),
        (b"[1]", "corpus-unreadable", "no JSON object but list"),
        (b'"text"', "corpus-unreadable", "no JSON object but str"),
        (b"null", "corpus-unreadable", "no JSON object but NoneType"),
        (b'{"body": "a"}', "corpus-unreadable", "it has no text; its fields are body"),
        (b'{"text": 3}', "corpus-unreadable", "its text is int, not text"),
        (b'{"text": ["a"]}', "corpus-unreadable", "its text is list, not text"),
        (b'{"text": "half \\ud83d"}', "corpus-unreadable", "half a surrogate pair"),
        (b'{"text": ' + b"[" * 100_000, "corpus-unreadable", "it is no JSON"),
        (b"1" * 10_000, "corpus-unreadable", "it is no JSON"),
        (b'{"text": "caf\xe9"}', "corpus-undecodable", "byte 13 is 0xe9"),
    ],
    ids=[
        "garbage", "torn", "list", "string", "null", "other field", "number", "list of texts",
        "half a surrogate pair", "deep", "huge number", "latin-1",
    ],
)  # fmt: skip
def test_a_bad_line_is_named(tmp_path, line, kind, says):
    documents = source(tmp_path, b'{"text": "fine"}\n' + line + b"\n").documents()
    assert next(documents).text == "fine"
    with pytest.raises(SourceError) as caught:
        next(documents)
    assert caught.value.kind == kind
    assert "c.jsonl:2" in str(caught.value)
    assert says in str(caught.value)


def test_a_missing_name_is_named(tmp_path):
    with pytest.raises(SourceError, match=r"it has no title; its fields are text"):
        read(tmp_path, b'{"text": "a"}', name_field="title")


def test_a_file_without_text_is_refused(tmp_path):
    with pytest.raises(SourceError, match="corpus-empty"):
        read(tmp_path, b'\n\n{"text": ""}\n')


def test_a_file_that_goes_away_is_a_source_error(tmp_path):
    documents = source(tmp_path, b'{"text": "a"}')
    (tmp_path / "c.jsonl").unlink()
    with pytest.raises(SourceError, match="corpus-missing"):
        list(documents.documents())
