"""Text files as documents: what a file says, under which name, in which order, and what is refused."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.errors import SourceError
from ingest.sources import SOURCES
from ingest.sources.registry import decoded, find_files, seeded_order
from ingest.sources.text import Text

FILES = {
    "b.txt": "bee\n",
    "a.md": "a",
    "sub/c.py": "print('三')\n",
    "sub/a.md": "another a",
    "LOUD.TXT": "loud",
}


@pytest.fixture
def folder(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (tmp_path / "corpus" / "image.png").write_bytes(b"\x89PNG\xff")
    return tmp_path / "corpus"


def read(*paths, **options):
    return {d.name: d.text for d in Text(paths=tuple(map(str, paths)), **options).documents()}


def names(source):
    return [document.name for document in source.documents()]


def test_a_folder_gives_its_text_files_by_path_sorted(folder):
    source = Text(paths=(str(folder),))
    assert {d.name: d.text for d in source.documents()} == FILES
    assert names(source) == sorted(FILES) == list(source.inputs())


def test_a_file_stands_for_itself_whatever_its_ending(tmp_path):
    (tmp_path / "notes.unknown").write_text("x")
    assert read(tmp_path / "notes.unknown") == {"notes.unknown": "x"}


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"one\r\ntwo\r\n", "one\r\ntwo\r\n"),
        (b"nul \x00 inside", "nul \x00 inside"),
        ("👩‍👩‍👧 日本\n".encode(), "👩‍👩‍👧 日本\n"),
        (b"\xef\xbb\xbfmarked", "marked"),
        (b"x" * (2 << 20), "x" * (2 << 20)),
    ],
    ids=["crlf", "nul", "emoji", "byte order mark", "one huge line"],
)
def test_text_is_the_files_bytes(tmp_path, data, text):
    (tmp_path / "f.txt").write_bytes(data)
    assert read(tmp_path) == {"f.txt": text}


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_decoding_undoes_encoding(text):
    assert decoded("d", text.encode()) == text.removeprefix("\ufeff")


def test_seeded_order_is_the_same_each_time_and_for_a_subset(folder):
    source = Text(paths=(str(folder),), order_seed=3)
    order = names(source)
    assert order == names(source)
    assert sorted(order) == sorted(FILES)
    assert len({tuple(names(Text(paths=(str(folder),), order_seed=s))) for s in range(8)}) > 4
    (folder / order[2]).unlink()
    assert names(source) == order[:2] + order[3:]


@given(keys=st.lists(st.text("abc", max_size=3)), seed=st.integers())
def test_seeded_order_is_a_permutation(keys, seed):
    assert sorted(seeded_order(keys, seed)) == list(range(len(keys)))


def test_files_of_one_name_stay_apart(tmp_path):
    for folder in ("z", "y", "x"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.txt").write_text(folder)
    (tmp_path / "x" / "same.txt (2)").write_text("not a text file")
    paths = [tmp_path / folder for folder in ("z", "y", "x")]
    found = {"same.txt": "z", "same.txt (2)": "y", "same.txt (3)": "x"}
    assert read(*paths) == found
    source = Text(paths=tuple(map(str, paths)))
    before = source.inputs()
    assert list(before) == list(found)
    (tmp_path / "y" / "same.txt").write_text("changed")
    after = source.inputs()
    assert [name for name in before if before[name] != after[name]] == ["same.txt (2)"]


def test_where_a_folder_lies_does_not_change_names_or_order(tmp_path):
    for place in ("one", "two/deeper"):
        for folder in ("p", "q"):
            (tmp_path / place / folder).mkdir(parents=True)
            (tmp_path / place / folder / "f.txt").write_text(folder)
    here = [
        Text(paths=tuple(str(tmp_path / place / f) for f in "qp"))
        for place in ("one", "two/deeper")
    ]
    assert here[0].inputs() == here[1].inputs()
    assert list(here[0].documents()) == list(here[1].documents())


def test_a_file_given_twice_is_one_document(folder):
    assert read(folder, folder / "b.txt", str(folder) + "/.") == FILES


def test_a_name_that_is_not_utf8_is_spelled_out(tmp_path):
    with open(os.fsencode(tmp_path) + b"/caf\xe9.txt", "wb") as file:
        file.write(b"coffee")
    assert read(tmp_path) == {"caf\\xe9.txt": "coffee"}
    assert list(Text(paths=(str(tmp_path),)).inputs()) == ["caf\\xe9.txt"]


def test_empty_files_are_no_documents(folder):
    (folder / "empty.txt").write_bytes(b"")
    (folder / "mark.txt").write_bytes(b"\xef\xbb\xbf")
    assert read(folder) == FILES


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ({}, "corpus-empty"),
        ({"only.png": b"x"}, "corpus-empty"),
        ({"a.txt": b"", "b.txt": b""}, "corpus-empty"),
        ({"a.txt": b"fine", "b.txt": b"caf\xe9"}, "corpus-undecodable"),
        ({"wide.txt": "wide".encode("utf-16")}, "corpus-undecodable"),
        (None, "corpus-missing"),
    ],
    ids=["no file", "no text file", "empty files", "latin-1", "utf-16", "no folder"],
)
def test_what_cannot_be_used_is_refused(tmp_path, content, kind):
    folder = tmp_path / "corpus"
    for name, data in (content or {}).items():
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    if content == {}:
        folder.mkdir()
    with pytest.raises(SourceError) as caught:
        read(folder)
    assert caught.value.kind == kind
    assert "corpus" in str(caught.value)


def test_no_path_is_refused():
    with pytest.raises(SourceError, match=r"corpus-empty: the corpus \(no path given"):
        read()


def test_an_undecodable_file_is_named_with_its_byte(tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"\xef\xbb\xbfab\xff")
    with pytest.raises(SourceError, match=r"'bad.txt' is not UTF-8: byte 5 is 0xff"):
        read(tmp_path)


def test_a_file_that_goes_away_is_a_source_error(folder):
    documents = Text(paths=(str(folder),)).documents()
    next(documents)
    (folder / "a.md").unlink()
    with pytest.raises(
        SourceError, match=r"corpus-unreadable: the corpus file 'a.md'.*No such file"
    ):
        list(documents)


def test_listed_files_exist(folder):
    assert all(path.is_file() for _, path in find_files([str(folder)], (".txt", ".md")))


def test_it_is_found_by_name_and_survives_json():
    assert SOURCES.parse({"kind": "text", "paths": ("x",)}) == Text(paths=("x",))
