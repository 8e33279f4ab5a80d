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


def massive(key: str, found: Table, label: Any) -> Html:
    """Return how far the greatest magnitude of each layer stands out from its median."""
    lines = [
        (
            str(found["layer"][i]),
            _plain(found["median"][i]),
            _plain(found["top1"][i]),
            _plain(found["top1_over_median"][i]),
            numbers.count(found["hits"][i]),
        )
        for i in range(len(found["layer"]))
    ]
    head = ("layer", "median magnitude", "greatest", "greatest / median", "massive")
    said = element(
        "p",
        "Magnitudes of what leaves each layer. An activation counts as massive above 100 and a thousand medians of "
        "its sequence; small models seldom reach the first, so the ratio is what compares across sizes.",
        class_="note",
    )
    return section(key, join(["Massive activations", label]), said, table("By layer", head, lines))


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


def ablation(key: str, found: Table, verdicts: Table, copying: Table, label: Any) -> Html:
    """Return what switching heads off does to the loss on repeated tokens: the top head, each head, sets of them."""
    said = element(
        "p",
        "Loss in nats on the second copy of repeated random tokens, where only a head that finds the earlier copy can "
        "help. A head is switched off by putting its mean in its place; other heads may stand in for it, so all "
        "high-scoring heads together and as many low-scoring ones of the same layers are switched off too. The top "
        "head is confirmed where the interval of its rise lies above zero and above the rise of every low-scoring "
        "head of its layer. Each seed draws other tokens.",
        class_="note",
    )
    return section(
        key,
        join(["Ablation", label]),
        said,
        _verdicts(verdicts),
        element("div", _rises(found), _copies(copying), class_="figures two maps"),
        _sets(found),
    )


def _verdicts(found: Table) -> Html:
    head = (
        *("seed", "top head", "score", "rise", "95 % interval", "rank of rise"),
        *("largest rise, low scores", "confirmed"),
    )
    lines = [
        (
            str(found["seed"][i]),
            f"{found['layer'][i]}.{found['head'][i]}",
            _plain(found["score"][i]),
            numbers.signed(found["rise"][i]),
            f"{_plain(found['rise_low'][i])} to {_plain(found['rise_high'][i])}",
            str(found["rank"][i]),
            _plain(found["weak_rise"][i]),
            "yes" if found["confirmed"][i] else "no",
        )
        for i in range(len(found["seed"]))
    ]
    return table("The head with the top score, switched off alone", head, lines, text_columns=2)


def _rises(found: Table) -> Html:
    """Return the rise by single heads, a mean over seeds, as a heat map."""
    single = np.array([what == "head" for what in found["what"]])
    return _nats(
        "Rise of the loss",
        "nats, each head off alone, mean over seeds",
        *(found[name][single] for name in ("layer", "head", "rise")),
    )


def _copies(found: Table) -> Html:
    """Return how much heads raise the logit of what they attend to, as a heat map."""
    return _nats(
        "Copying",
        "nats by which a head raises the logit of the right token",
        *(found[name] for name in ("layer", "head", "copying")),
    )


def _nats(title: str, said: str, layer: Any, head: Any, values: Any) -> Html:
    if not len(layer):
        return element("p", "No heads.")
    shape = (int(layer.max()) + 1, int(head.max()) + 1)
    total, count = np.zeros(shape), np.zeros(shape)
    np.add.at(total, (layer, head), values)
    np.add.at(count, (layer, head), 1)
    with np.errstate(invalid="ignore"):
        grid = total / count
    rows = [(str(number), row.tolist()) for number, row in enumerate(grid)]
    full = max(float(np.nanmax(grid)), 1e-9)
    return heat(title, said, "layer", range(shape[1]), rows, full=full, say=_signless)


def _signless(value: float) -> str:
    return f"{value:.2f}".replace("-0.00", "0.00").replace("-", "\u2212")


def _sets(found: Table) -> Html:
    names = {"strong": "all high-scoring heads", "weak": "as many low-scoring ones"}
    lines = [
        (
            names[what],
            str(found["heads"][i]),
            _plain(found["loss_second_before"][i]),
            _plain(found["loss_second_after"][i]),
            numbers.signed(found["rise"][i]),
            str(found["seed"][i]),
        )
        for i, what in enumerate(found["what"])
        if what in names
    ]
    head = ("switched off", "heads", "loss before", "loss after", "rise", "seed")
    return table("Several heads switched off together", head, lines)


def _plain(value: float) -> str:
    return numbers.decimal(value, trim=False)


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
