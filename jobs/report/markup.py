"""HTML elements that cannot be injected into: text is escaped unless it is already markup.

``Html`` marks finished markup. Every function here takes any value, escapes what is not ``Html``
and returns ``Html``, so a page built with them holds no text of a corpus as markup.
"""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def text(value: Any) -> Html:
    """Return a value as markup: escaped, with control characters made visible."""
    if isinstance(value, Html):
        return value
    shown = "".join(_visible(character) for character in str(value))
    return Html(html.escape(shown, quote=True))


def _visible(character: str) -> str:
    code = ord(character)
    if code < 32 and character not in "\t\n":
        return chr(0x2400 + code)  # the pictures of control characters
    if 0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000 or code in _BIDI:
        return "\ufffd"
    return character


_BIDI = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}  # would turn the text that follows around


def join(parts: Iterable[Any], between: str = "") -> Html:
    """Return values one after the other."""
    return Html(text(between).join(text(part) for part in parts))


def element(name: str, *children: Any, **attributes: Any) -> Html:
    """Return ``<name attributes>children</name>``.

    ``class_`` gives ``class`` and ``aria_label`` ``aria-label``. An attribute of value None is left
    out, one of value True stands alone.
    """
    head = [name]
    for key, value in attributes.items():
        label = key.rstrip("_").replace("_", "-")
        if value is True:
            head.append(label)
        elif value is not None:
            head.append(f'{label}="{text(value)}"')
    return Html(f"<{' '.join(head)}>{join(children)}</{name}>")


def table(
    caption: Any,
    head: Sequence[Any],
    rows: Iterable[Sequence[Any]],
    *,
    text_columns: int = 1,
) -> Html:
    """Return a table with a caption; the first ``text_columns`` columns are text, others numbers.

    It scrolls sideways by itself where the page is narrower, and the keyboard can reach it.
    """
    kinds = ["text" if i < text_columns else "number" for i in range(len(head))]
    cells = [
        element("th", cell, scope="col", class_=kind)
        for cell, kind in zip(head, kinds, strict=True)
    ]
    body = [
        element(
            "tr",
            element("th", row[0], scope="row", class_=kinds[0]),
            *(
                element("td", cell, class_=kind)
                for cell, kind in zip(row[1:], kinds[1:], strict=True)
            ),
        )
        for row in rows
    ]
    content = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *cells)),
        element("tbody", *body),
    )
    return element("div", content, class_="scroll", tabindex="0", role="region", aria_label=caption)


def heat(
    title: Any,
    remark: Any,
    corner: Any,
    columns: Sequence[Any],
    rows: Iterable[tuple[Any, Sequence[float]]],
    *,
    full: float = 1.0,
    say: Callable[[float], str] = "{:.2f}".format,
) -> Html:
    """Return a table of numbers, each shaded by its size; it reads the same without the shades.

    Parameters
    ----------
    corner
        What rows and columns are.
    rows
        (name, values) each.
    full
        Value of the strongest shade; shades start at zero.
    """
    head = [element("th", name, scope="col") for name in (corner, *columns)]
    body = [
        element("tr", element("th", name, scope="row"), *(_warm(v, full, say) for v in values))
        for name, values in rows
    ]
    content = element(
        "table",
        element("caption", element("b", title), f": {remark}"),
        element("thead", element("tr", *head)),
        element("tbody", *body),
        class_="heat",
    )
    return element("div", content, class_="scroll", tabindex="0", role="region", aria_label=title)


def _warm(value: float, full: float, say: Callable[[float], str]) -> Html:
    if value != value:  # not measured
        return element("td", "–")
    strength = min(max(value / full, 0.0), 1.0) if full > 0 else 0.0
    return element("td", say(value), style=f"--a:{0.72 * strength:.2f}")


def definitions(pairs: Iterable[tuple[Any, Any]]) -> Html:
    """Return a list of terms and values; pairs whose value is None are left out."""
    items = [
        element("div", element("dt", term), element("dd", value))
        for term, value in pairs
        if value is not None
    ]
    return element("dl", *items, class_="facts")


def headline(items: Iterable[tuple[Any, Any, Any]]) -> Html:
    """Return numbers to be seen first: (label, number, remark)."""
    cells = [
        element(
            "div",
            element("dt", label),
            element("dd", element("b", number), element("small", remark)),
        )
        for label, number, remark in items
    ]
    return element("dl", *cells, class_="headline")


def figure(drawing: Html, caption: Any) -> Html:
    """Return a drawing with its caption above it."""
    return element("figure", element("figcaption", caption), drawing)


def details(summary: Any, *children: Any) -> Html:
    """Return a block that opens on demand."""
    return element("details", element("summary", summary), *children)


def code(value: Any) -> Html:
    """Return a name or id in the type of code."""
    return element("code", value)


def meter(share: float) -> Html:
    """Return a small bar; the number it shows must stand beside it."""
    width = f"{100 * min(max(share, 0.0), 1.0):.1f}%"
    return element("span", element("i", style=f"width:{width}"), class_="meter", aria_hidden="true")


def section(key: str, title: Any, *children: Any) -> Html:
    """Return a section of the page with its heading."""
    head = element("h2", title, id=key)
    body = element("div", *children, class_="body")
    return element("section", head, body, aria_labelledby=key)
