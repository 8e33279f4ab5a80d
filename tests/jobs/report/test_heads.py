"""Sections about heads: heat maps that read without their shades, passages with both ends marked."""

from __future__ import annotations

import re

import pytest

from jobs.report.page import compose

HOSTILE = '</mark><script>alert(1)</script><img src=x onerror=alert(1)>"'


def test_every_head_has_its_number_and_shade(heads):
    page = compose([heads()], {})
    maps = re.findall(r'<table class="heat">.*?</table>', page, re.S)
    titles = [re.search(r"<caption><b>(.*?)</b>", drawn)[1] for drawn in maps]
    assert titles[:5] == [
        "Prefix matching",
        "Previous token",
        "Duplicate token",
        "First token",
        "Sink rate",
    ]
    assert all(drawn.count("<td") == 8 for drawn in maps[:5])
    assert maps[0].count(">.93</td>") == 4
    assert maps[1].count(">–</td>") == 2, "what was not measured is no zero"
    assert maps[3].count(">.50</td>") == 8, "the first position, not the second"
    shades = [float(shade) for shade in re.findall(r"--a:([0-9.]+)", maps[0])]
    assert shades == pytest.approx([0.0] * 4 + [0.72 * 0.93] * 4, abs=0.01)


def test_both_ends_of_a_match_are_marked(heads):
    page = compose([heads()], {})
    article = re.search(r"<h3>Head 1\.1</h3>.*?</article>", page, re.S)[0]
    assert re.findall(r'<mark class="top">(.*?)</mark>', article) == ["the", "y"]
    assert re.findall(r'<span class="on" style="--a:0.65">(.*?)</span>', article) == ["the"]
    assert "position 40 looks at 12" in article


def test_ablation_says_what_each_head_and_set_does(heads):
    page = compose([heads()], {})
    rises = re.search(r"<b>Rise of the loss</b>.*?</table>", page, re.S)[0]
    assert re.findall(r">([^<]+)</td>", rises) == ["\u22120.01", "–", "–", "1.50"]
    for row in (("0", "1.1", "0.930", "+2.00", "1.50 to 2.50", "1", "0.0100", "yes"),
                ("1", "1.1", "0.930", "+1.00", "\u22120.100 to 2.10", "2", "–", "no")):  # fmt: skip
        pattern = ".*?".join(re.escape(f">{cell}<") for cell in row)
        assert re.search(pattern, page, re.S), row
    assert re.search(r">all high-scoring heads<.*?>\+5.00<", page, re.S)


def test_massive_activations_are_told_by_layer(heads):
    page = compose([heads()], {})
    for row in (("0", "0.500", "60.0", "120", "0"), ("1", "1.00", "900", "900", "7")):
        assert re.search(".*?".join(re.escape(f">{cell}<") for cell in row), page, re.S), row


def test_results_of_one_kind_are_told_apart_by_their_text(heads, tmp_path):
    from jobs.results import Result

    first = heads()
    with Result.create(tmp_path, "stats", {"text": "repeats"}) as other:
        other.write_table("heads", first.table("heads"))
    page = compose([first, other], {})
    assert "<small>on repeats</small>" in page


def test_hostile_text_stays_text(heads):
    page = compose([heads(HOSTILE)], {})
    assert "<script" not in page
    assert "<img" not in page
    assert page.count("&lt;script&gt;") >= 3
