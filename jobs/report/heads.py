"""The sections about attention heads: what each looks at, what it does to the loss, and where it looks in text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.report import numbers
from jobs.report.markup import Html, code, element, heat, join, section, table
from jobs.report.passages import flat

if TYPE_CHECKING:
    from jobs.report.tables import Table

MEASURES = {
    "prefix_matching": (
        "Prefix matching",
        "attention from a token to what followed its earlier occurrences (induction)",
    ),
    "previous_token": ("Previous token", "attention to the token before"),
    "duplicate_token": ("Duplicate token", "attention to earlier occurrences of the same token"),
}
_SHOWN = 3  # passages of a head that stand open


SINKS = {
    "alpha": ("First token", "mean attention to the first position, over the queries that see it"),
    "sink_rate": ("Sink rate", "share of sequences in which that mean is above the threshold"),
}


def heads(key: str, found: Table, label: Any) -> Html:
    """Return one heat map for each measure a table of heads holds, layers down and heads across."""
    said = element(
        "p",
        "One number for each head, layers down and heads across: the mean attention it gives to what the map "
        "is about, over the rows where there is such a thing. A pattern alone shows where a head looks, not "
        "what it does; ablation shows that.",
        class_="note",
    )
    return section(key, join(["Heads", label]), said, _maps(found, MEASURES))


def sinks(key: str, found: Table, label: Any) -> Html:
    """Return how much attention the first position draws, and in how many sequences it is a sink."""
    first = found["position"] == found["position"].min()
    picked = {name: values[first] for name, values in found.items()}
    return section(key, join(["Sinks", label]), _maps(picked, SINKS))


def _maps(found: Table, measures: dict[str, tuple[str, str]]) -> Html:
    """Return heat maps of some columns of a table with one row for each layer and head."""
    if not len(found["layer"]):
        return element("p", "No heads.")
    layers, count = int(found["layer"].max()) + 1, int(found["head"].max()) + 1
    maps = []
    for name, (title, said) in measures.items():
        grid = np.full((layers, count), np.nan)
        grid[found["layer"], found["head"]] = found[name]
        rows = [(str(layer), grid[layer].tolist()) for layer in range(layers)]
        maps.append(heat(title, said, "layer", range(count), rows, say=_share))
    return element("div", *maps, class_="figures two maps")


def _share(value: float) -> str:
    return f"{value:.2f}".removeprefix("0") if value < 0.995 else "1"


def ablation(key: str, found: Table, label: Any) -> Html:
    """Return the loss on repeated random tokens with heads switched off, by seed of the data."""
    lines = [
        (
            what,
            heads_off or "–",
            numbers.decimal(found["base"][i], trim=False),
            numbers.decimal(found["intervened"][i], trim=False),
            numbers.signed(found["intervened"][i] - found["base"][i]),
            str(found["seed"][i]),
        )
        for i, (what, heads_off) in enumerate(zip(found["condition"], found["heads"], strict=True))
    ]
    head = ("switched off", "layer.head", "loss before", "loss after", "change", "seed")
    said = element(
        "p",
        "Loss in nats on the second copy of repeated random tokens, where only a head that finds the earlier "
        "copy can help; each seed draws other tokens.",
        class_="note",
    )
    return section(
        key, join(["Ablation", label]), said, table("Heads off", head, lines, text_columns=2)
    )


def passages(key: str, found: Table, tokens: Table, label: Any) -> Html:
    """Return where the strongest heads look in text: the query underlined, the key it attends to shaded."""
    said = element(
        "p",
        "The strongest matches of each head: it reads the underlined token and attends to the shaded one, which "
        "followed the same token before. The number is the attention weight.",
    )
    return section(key, join(["Where heads look", label]), said, *_articles(found, tokens))


def _articles(found: Table, tokens: Table) -> list[Html]:
    articles = []
    for layer, head in sorted(
        set(zip(found["layer"].tolist(), found["head"].tolist(), strict=True))
    ):
        mine = np.flatnonzero((found["layer"] == layer) & (found["head"] == head))
        items = [_item(found, tokens, int(i)) for i in mine[np.argsort(found["rank"][mine])]]
        title = element("header", element("h3", f"Head {layer}.{head}"))
        articles.append(
            element("article", title, element("div", element("ol", *items)), class_="latent")
        )
    return articles


def _item(found: Table, tokens: Table, at: int) -> Html:
    same = (tokens["layer"] == found["layer"][at]) & (tokens["head"] == found["head"][at])
    mine = np.flatnonzero(same & (tokens["rank"] == found["rank"][at]))
    weight = float(found["weight"][at])
    spelled = [_token(tokens, int(i), weight) for i in mine]
    where = element(
        "p",
        element("b", numbers.decimal(weight, trim=False)),
        code(found["document"][at]),
        f"position {numbers.count(found['query_position'][at])} looks at "
        f"{numbers.count(found['key_position'][at])}",
        class_="where",
    )
    return element("li", element("p", join(spelled), class_="passage"), where)


def _token(tokens: Table, at: int, weight: float) -> Html:
    text, query, key = tokens["text"][at], tokens["is_query"][at], tokens["is_key"][at]
    body = text.lstrip()
    lead = flat(text[: len(text) - len(body)])
    if key:
        return join(
            [lead, element("span", flat(body), class_="on", style=f"--a:{0.72 * weight:.2f}")]
        )
    return join([lead, element("mark", flat(body), class_="top") if query else flat(body)])
