"""Elements: whatever is not markup is escaped."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.report.markup import Html, definitions, element, join, meter, table, text


class Reader(HTMLParser):
    """Collects tags and text as a browser would see them."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.tags, self.seen, self.attributes = [], "", []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.seen += data


def parse(markup):
    reader = Reader()
    reader.feed(str(markup))
    reader.close()
    return reader


printable = st.text(st.characters(min_codepoint=32, exclude_categories=["Cs", "Cc", "Cf"]))


@given(value=printable)
def test_text_comes_back_as_text_and_never_as_markup(value):
    seen = parse(element("p", value, title=value))
    assert seen.tags == ["p"]
    assert seen.seen == value
    assert seen.attributes == [("title", value)]


@given(value=st.text())
def test_any_text_at_all_stays_inside_its_element(value):
    seen = parse(join([element("i", value), element("b", value)]))
    assert seen.tags == ["i", "b"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [("\x00", "␀"), ("\x1b[31m", "␛[31m"), ("\u202eabc", "\ufffdabc"), ("\ud800", "\ufffd")],
    ids=["nul", "escape", "right-to-left", "lone surrogate"],
)
def test_characters_that_would_mislead_are_shown(value, shown):
    assert text(value) == shown
    text(value).encode("utf-8")


def test_markup_is_not_escaped_twice():
    assert element("p", element("b", "<")) == "<p><b>&lt;</b></p>"
    assert isinstance(join([Html("<br>")]), Html)


def test_attributes_none_and_true():
    assert element("p", class_="x", id=None, hidden=True) == '<p class="x" hidden></p>'


def test_a_table_has_caption_and_scopes():
    made = table("Counts <3>", ("name", "n"), [("a", 1), ("b", 2)])
    seen = parse(made)
    assert seen.tags.count("tr") == 3
    assert seen.tags.count("caption") == 1
    assert [v for k, v in seen.attributes if k == "scope"] == ["col", "col", "row", "row"]
    assert ("aria-label", "Counts <3>") in seen.attributes


def test_pairs_without_a_value_are_left_out():
    assert parse(definitions([("a", 1), ("b", None)])).seen == "a1"


@pytest.mark.parametrize(("share", "width"), [(-1, "0.0%"), (0.5, "50.0%"), (7, "100.0%")])
def test_a_meter_stays_within_its_frame(share, width):
    assert f"width:{width}" in meter(share)
