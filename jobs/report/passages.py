"""The section of telling latents: passages of text, tokens shaded by the latent's activation."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from jobs.report import numbers
from jobs.report.markup import Html, code, definitions, details, element, join, section

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobs.report.tables import Latent, Passage, Token

_OPEN_PASSAGES = 5

# Shade of a token that fires weakest and strongest; below the first a tint cannot be seen, above
# the second ink on it falls under a contrast of 4.5.
_WEAKEST, _STRONGEST = 0.10, 0.72


def telling(key: str, latents: Sequence[Latent], label: Any) -> Html:
    """Return the latents, best first, each with the passages it fires on."""
    said = element(
        "p",
        "The latents whose strongest contexts tell most, with the passages on which each fires, "
        "strongest first. The shade of a token is the latent's activation on it; the token at the "
        "peak is underlined. Density is the share of rows on which the latent fires at all.",
    )
    articles = [_latent(latent) for latent in latents]
    return section(key, join(["Telling latents", label]), said, *articles)


def _latent(latent: Latent) -> Html:
    facts = definitions(
        [
            ("density", numbers.share(latent.density)),
            ("maximum", numbers.decimal(latent.max)),
            ("documents", numbers.count(latent.documents)),
            ("score", numbers.decimal(latent.score)),
        ]
    )
    head = element("header", element("h3", f"Latent {latent.latent}"), facts)
    top = max((passage.value for passage in latent.passages), default=0.0)
    items = [_passage(passage, top) for passage in latent.passages]
    shown = [element("ol", *items[:_OPEN_PASSAGES])] if items else [element("p", "No passages.")]
    if rest := items[_OPEN_PASSAGES:]:
        more = element("ol", *rest, start=_OPEN_PASSAGES + 1)
        shown.append(
            details(f"{len(rest)} more {'passage' if len(rest) == 1 else 'passages'}", more)
        )
    return element("article", head, element("div", *shown), class_="latent")


def _passage(passage: Passage, top: float) -> Html:
    text = Html(join(_token(token, top) for token in passage.tokens).lstrip(" ↵"))
    words = element("p", text, class_="passage")
    where = element(
        "p",
        element("b", numbers.decimal(passage.value, trim=False)),
        code(passage.document),
        f"position {numbers.count(passage.position)}",
        class_="where",
    )
    return element("li", words, where)


def _token(token: Token, top: float) -> Html:
    # White space in front of a token is not what the latent fires on: it stays unshaded.
    body = token.text.lstrip()
    lead = flat(token.text[: len(token.text) - len(body)])
    name, kind = ("mark", "top") if token.is_top else ("span", "on")
    if token.value <= 0 or top <= 0 or not body:
        plain = element(name, flat(body), class_=kind) if token.is_top and body else flat(body)
        return join([lead, plain])
    strength = min(token.value / top, 1.0)
    shade = f"--a:{_WEAKEST + (_STRONGEST - _WEAKEST) * strength:.2f}"
    told = numbers.decimal(token.value)
    return join([lead, element(name, flat(body), class_=kind, style=shade, title=told)])


def flat(text: str) -> str:
    """Return a text on one line: line breaks become a sign, runs of spaces one space."""
    return re.sub(r"[ \t]+", " ", re.sub(r"[ \t]*\r?\n\s*", " ↵ ", text))
