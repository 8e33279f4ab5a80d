"""The page as a whole: self-contained, complete, and safe whatever the corpus says."""

from __future__ import annotations

import html
import itertools
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from jobs.errors import JobError
from jobs.report import render
from jobs.report.page import compose
from jobs.results import Result

HOSTILE = '</mark><script>document.title="owned"</script><img src=x onerror=alert(1)>"\'&amp;'
ADDRESS = re.compile(r"""(?:src|href|action|data|poster)\s*=\s*["']?\s*(?:https?:)?//""", re.I)
VOID = {"meta", "br", "img", "link", "input", "hr", "path", "use"}


class Outline(HTMLParser):
    """Collects what a reader of the page's structure would meet."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.ids, self.links, self.seen = [], [], [], [], ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        self.links += [value for name, value in attrs if tag == "a" and name == "href"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open[-1:]:
            self.seen += data

    def names(self):
        return [tag for tag, _ in self.tags]


def test_the_page_needs_nothing_else(page):
    names = set(Outline(page).names())
    assert not ADDRESS.search(page)
    assert not re.search(r"url\((?!#)|@import", page)
    assert not names & {"script", "iframe", "object", "embed", "link", "base", "form", "img"}
    assert "default-src 'none'" in page


def test_every_element_is_closed_and_every_id_is_used_once(page):
    outline = Outline(page)
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids))
    assert outline.links
    assert {link.removeprefix("#") for link in outline.links} <= set(outline.ids)


def test_every_part_of_the_demo_is_there(page):
    outline = Outline(page)
    seen = outline.seen
    for heading in ("Evaluation", "Training", "Telling latents", "Corpus", "Store", "Run card",
                    "Where to go next"):  # fmt: skip
        assert heading in seen
    assert outline.names().count("svg") == 7
    assert outline.names().count("figcaption") == 7
    assert outline.names().count("mark") == 60
    assert outline.names().count("article") == 10
    for caption in ("Runs", "Groups of columns", "Columns", "Evaluation metrics",
                    "680 documents, 400\u2009000 rows", "Training steps, 12 of 120"):  # fmt: skip
        assert caption in seen
    for fact in ("0.173", "82.7\u00a0%", "14 to 57", "37", "0.913", "307\u00a0MB", "92.8\u00a0%",
                 "411\u00a0MB read back", "cd" * 32, "topics/", "actlake verify"):  # fmt: skip
        assert fact in seen


def test_headings_form_an_outline(page):
    levels = [int(tag[1]) for tag in Outline(page).names() if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 2 for before, after in itertools.pairwise(levels))


def test_every_table_and_drawing_says_what_it_is(page):
    outline = Outline(page)
    assert outline.names().count("table") == outline.names().count("caption")
    drawings = [attributes for tag, attributes in outline.tags if tag == "svg"]
    assert all(drawing["aria-labelledby"] in outline.ids for drawing in drawings)


def test_the_strongest_token_is_shaded_most_and_silent_ones_not_at_all(page):
    shades = [float(shade) for shade in re.findall(r"--a:([0-9.]+)", page)]
    assert max(shades) == pytest.approx(0.72)
    assert min(shades) >= 0.10
    marks = re.findall(r'<mark class="top" style="--a:([0-9.]+)"', page)
    assert float(marks[0]) == max(shades)


def _hostile(tmp_path):
    text = [HOSTILE, "\x00\x1b\u202e", "b"]
    config = {"site": HOSTILE, "model": HOSTILE, "latents": 8}
    with Result.create(tmp_path, "contexts", config, pin=HOSTILE) as result:
        one = np.array([1])
        result.write_table(
            "telling",
            {"latent": one, "score": np.ones(1), "density": np.ones(1), "max": np.ones(1),
             "documents": one},
        )  # fmt: skip
        result.write_table(
            "contexts",
            {"latent": one, "rank": one - 1, "value": np.ones(1), "row": one, "doc_id": one,
             "document": [HOSTILE], "position": one},
        )  # fmt: skip
        result.write_table(
            "context_tokens",
            {"latent": np.ones(3, np.int64), "rank": np.zeros(3, np.int64),
             "offset": np.arange(-1, 2), "text": text, "value": np.ones(3),
             "is_top": np.array([False, True, False])},
        )  # fmt: skip
        result.write_table("summary", {"metric": [HOSTILE, "fvu"], "value": np.ones(2)})
    group = {"name": HOSTILE, "rows": 1, "parts": 1, "recipe": {HOSTILE: HOSTILE},
             "columns": [{"name": HOSTILE, "dtype": HOSTILE, "shape": [HOSTILE]}]}  # fmt: skip
    summary = {
        "url": HOSTILE, "store": HOSTILE, "groups": [group, {**group, "name": "tokens"}],
        "splits": [{"split": HOSTILE, "rows": 1}],
        "verify": {"ok": False, "problems": [HOSTILE]},
    }  # fmt: skip
    return [result], summary


def test_hostile_text_is_shown_and_never_run(tmp_path):
    page = compose(*_hostile(tmp_path))
    outline = Outline(page)
    assert outline.open == []
    assert not set(outline.names()) & {"script", "img"}
    assert not [name for _, attributes in outline.tags for name in attributes if name[:2] == "on"]
    assert HOSTILE in outline.seen
    assert outline.seen.count("<script>") >= 8
    assert "\x00" not in page
    page.encode("utf-8")


def test_equal_results_give_an_equal_page(made):
    results, summary = made(latents=2, passages=2)
    again = [Result.open(result.path) for result in results]
    assert compose(results, summary) == compose(again, summary)


@pytest.mark.parametrize("kept", [(), (0,), (1,), (2,), (0, 1)], ids=str)
def test_a_report_shows_what_there_is(made, kept):
    results, summary = made(latents=2, passages=2)
    chosen = [results[i] for i in kept]
    assert Outline(compose(chosen, {})).open == []
    assert Outline(compose(chosen, summary)).open == []


def test_several_trainings_are_told_apart(made, tmp_path):
    results, summary = made(latents=2, passages=2)
    others, _ = made(folder=tmp_path / "other", latents=2, passages=2)
    outline = Outline(compose(results + others, summary))
    assert len(outline.ids) == len(set(outline.ids))
    assert "Training 2" in outline.seen


def test_a_store_that_failed_verification_says_so(made):
    results, summary = made(latents=2, passages=2)
    summary["verify"] = {"ok": False, "checked_bytes": 5, "problems": ["part 3: flipped byte"]}
    seen = Outline(compose(results, summary)).seen
    assert "✗ 1 problem in" in seen
    assert "part 3: flipped byte" in seen


def test_render_replaces_the_page_whole(made, tmp_path):
    out = tmp_path / "deep" / "report.html"
    results, summary = made(latents=2, passages=2)
    assert render(results, summary, out) == out
    first = out.read_text(encoding="utf-8")
    render(results[:1], {}, out)
    assert out.read_text(encoding="utf-8") != first
    assert [file.name for file in out.parent.iterdir()] == ["report.html"]


def test_a_bad_table_leaves_the_older_page(made, tmp_path):
    results, summary = made(latents=2, passages=2)
    out = render(results, summary, tmp_path / "report.html")
    before = out.read_bytes()
    (results[0].path / "curve.parquet").write_bytes(
        (results[1].path / "summary.parquet").read_bytes()
    )
    with pytest.raises(JobError, match="bad-table"):
        render(results, summary, out)
    assert out.read_bytes() == before


def test_an_unwritable_place_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(JobError, match=r"not-permitted: the report cannot be written"):
        render([], {}, tmp_path / "file" / "report.html")


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--hide-scrollbars",
)  # fmt: skip
# The page lies in a frame: a window cannot be made as narrow as a phone, a frame can. Everything that
# opens is opened, then measured.
PROBE = """<!DOCTYPE html><title>waiting</title>
<iframe style="width:{width}px;height:900px;border:0" srcdoc="{page}"></iframe>
<script>addEventListener("load", () => {{
  const page = document.querySelector("iframe").contentDocument;
  page.querySelectorAll("details").forEach(block => {{ block.open = true; }});
  const scrolling = ".scroll, pre, svg";
  const wide = [...page.querySelectorAll("body *")].filter(
    part => part.getBoundingClientRect().right > {width} + 1 && !part.closest(scrolling));
  const small = [...page.querySelectorAll("svg text")].filter(
    part => part.getBoundingClientRect().height < 9);
  const owned = page.title === "owned" || document.title === "owned";
  document.title = ["probed", page.documentElement.clientWidth,
    page.documentElement.scrollWidth, wide.length, small.length, Number(owned)].join(" ");
}});</script>"""


def _probe(page, tmp_path, width):
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no Chromium is installed: the page's layout was not looked at")
    file = tmp_path / "probed.html"
    file.write_text(PROBE.format(width=width, page=html.escape(page)), encoding="utf-8")
    command = [
        browser, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1500,1000",
        "--dump-dom", file.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    title = re.search(r"<title>probed ([^<]*)</title>", done.stdout)
    assert title, done.stderr[-2000:]
    return [int(number) for number in title.group(1).split()]


@pytest.mark.parametrize("width", [320, 390, 768, 1400])
def test_nothing_runs_over_the_edge_in_a_browser(page, tmp_path, width):
    inner, scroll, wide, small, owned = _probe(page, tmp_path, width)
    assert inner == width
    assert scroll <= inner
    assert (wide, small, owned) == (0, 0, 0)


def test_hostile_text_does_nothing_in_a_browser(tmp_path):
    inner, scroll, wide, _, owned = _probe(compose(*_hostile(tmp_path)), tmp_path, 390)
    assert scroll <= inner
    assert (wide, owned) == (0, 0)
