"""Drawings: inline, without addresses or fixed colours, the same bytes for the same numbers."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from jobs.report import plots

DENSITIES = np.array([0.0, 0.0, 1e-4, 2e-4, 0.01, 0.5, 1.0])

EMPTY = np.array([], dtype=np.float64)
LINES = {
    "falls": (np.arange(5.0), np.array([1, 0.5, 0.3, 0.2, 0.2])),
    "one point": (np.array([4096.0]), np.array([0.5])),
    "all zero": (np.arange(3.0), np.zeros(3)),
    "not finite": (np.arange(3.0), np.array([np.nan, np.inf, 0.5])),
    "nothing finite": (np.arange(2.0), np.array([np.nan, np.nan])),
    "empty": (EMPTY, EMPTY),
    "huge": (np.arange(3.0) * 1e9, np.array([1e12, 2e12, 3e12])),
}


def draw(case="falls", name="a"):
    x, y = LINES[case]
    return plots.line(plots.Line(name=name, alt="A & B", x=x, y=y, x_label="rows"))


@pytest.mark.parametrize("case", LINES)
def test_any_curve_is_drawn(case):
    ET.fromstring(draw(case))


@pytest.mark.parametrize(
    "densities",
    [DENSITIES, np.zeros(4), np.ones(3), np.array([1e-9, 1.0]), np.full(3, 0.1)],
    ids=["mixed", "all dead", "all dense", "wide", "equal"],
)
def test_any_histogram_is_drawn(densities):
    ET.fromstring(plots.density_histogram("h", "alt", densities))


@pytest.mark.parametrize("drawing", [draw(), plots.density_histogram("h", "alt", DENSITIES)])
def test_a_drawing_has_no_address_no_fixed_colour_and_no_font(drawing):
    assert "://" not in drawing
    assert "font-family" not in drawing
    assert not re.findall(r"#[0-9a-fA-F]{6}\b", drawing)
    assert "var(--accent)" in drawing
    assert 'role="img"' in drawing


def test_the_alternative_text_is_escaped_and_bound():
    root = ET.fromstring(draw())
    title = root.find("title")
    assert title.text == "A & B"
    assert root.get("aria-labelledby") == title.get("id")


def test_two_drawings_share_no_id():
    first, second = (set(re.findall(r' id="([^"]+)"', draw(name=name))) for name in "ab")
    assert first
    assert not first & second


def test_every_reference_inside_a_drawing_is_met():
    drawing = draw()
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', drawing))
    assert used <= set(re.findall(r' id="([^"]+)"', drawing))


def test_equal_numbers_give_equal_bytes():
    assert draw() == draw()
    assert draw() != draw("huge")


def test_bars_count_every_latent_that_fires():
    drawing = plots.density_histogram("h", "alt", np.full(5, 0.02))
    labels = re.findall(r"<text[^>]*>([^<]+)</text>", drawing)
    assert "rows a latent fires on, %" in labels
    assert {"1", "10", "100"} <= set(labels)


def _chart(name="c", **changes):
    curves = [
        plots.Curve(label="oracle", x=[0.1, 0.5], y=[0.9, 1.0], bound=True),
        plots.Curve(label="moba", x=[0.5, 0.1], y=[0.8, 0.4], low=[0.7, 0.3], high=[0.9, 0.5]),
        plots.Curve(label="a < b", x=[0.2, np.nan], y=[0.3, 0.2], joined=False),
    ]
    return plots.chart(
        plots.Chart(name=name, alt="alt", curves=curves, x_label="density", **changes)
    )


@pytest.mark.parametrize(
    "changes", [{}, {"log_x": True, "log_y": True}, {"zero": 0.0}], ids=["plain", "log", "zero"]
)
def test_a_chart_names_its_series_and_fixes_no_colour(changes):
    drawing = _chart(**changes)
    ET.fromstring(drawing)
    assert {"oracle", "moba", "a &lt; b", "density"} <= set(
        re.findall(r"<text[^>]*>([^<]+)</text>", drawing)
    )
    assert not re.findall(r"#[0-9a-fA-F]{6}\b", drawing)
    assert all(f"var(--series-{number})" in drawing for number in range(3))


def test_equal_charts_give_equal_bytes_and_share_no_id_with_others():
    assert _chart() == _chart()
    first, second = (set(re.findall(r' id="([^"]+)"', _chart(name))) for name in "cd")
    assert not first & second
