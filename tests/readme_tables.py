"""Writes the generated tables of the README from the registries: ``python tests/readme_tables.py``."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ingest.models import ADAPTERS
from ingest.models.metrics import METRICS
from ingest.models.planted import PLANTED
from ingest.sources import SOURCES
from jobs.batches import Widths
from jobs.circuits import STATISTICS
from jobs.dictionaries import VARIANTS
from jobs.dictionaries.scores import Raw
from jobs.interventions import OPERATIONS
from jobs.kernels.codes.contract import FORMS
from jobs.kernels.contract import EXECUTORS, PLANNERS
from store.codecs import CODECS
from store.registry import Registry

ORDER = (
    "embed", "image.pooled", "image.embed", "text.pooled", "text.embed", "resid_pre",
    "attn.q", "attn.k", "attn.v", "attn.rot_q", "attn.rot_k", "attn.z", "attn.out", "attn.scaled", "attn.post_norm",
    "mixer.in", "mixer.x", "mixer.gate", "mixer.conv", "mixer.dt", "mixer.b", "mixer.c", "mixer.post", "mixer.out",
    "resid_mid",
    "mlp.in", "router.logits", "router.topk", "router.weights",
    "mlp.pre", "mlp.pre_linear", "mlp.post", "mlp.out", "mlp.scaled", "mlp.post_norm",
    "resid_post", "final.normalized",
)  # fmt: skip
README = Path(__file__).parents[1] / "README.md"


def first_line(cls: Any) -> str:
    """Return the first line of a docstring without its full stop."""
    line = (cls.__doc__ or "").strip().splitlines()[0].rstrip(".")
    return line.replace("|", r"\|")  # a bar would end the cell


def of_registry(noun: str, registry: Registry) -> Callable[[], str]:
    def table() -> str:
        lines = [f"| {noun} | what it is |", "|---|---|"]
        lines += [f"| `{name}` | {first_line(registry.get(name))} |" for name in registry.names()]
        return "\n".join(lines)

    return table


FEEDS = {
    "target": "column to column",
    "gradient": "column with gradients",
    "columns": "columns side by side",
}


def dictionaries() -> str:
    """Return the family: what each reads, the pieces it is put together from, and where it was published."""
    lines = ["| dictionary | what it is | reads | pieces | source |", "|---|---|---|---|---|"]
    for name in VARIANTS.names():
        cls = VARIANTS.get(name)
        feeds = [word for need, word in FEEDS.items() if need in cls.needs] or ["column"]
        widths = Widths((8, 8), (8, 8)) if "columns" in cls.needs else Widths((8,), (8,))
        made = cls(latents=16, k=2).build(widths, seed=0)
        pieces = [type(made.sparsifier).__name__]
        pieces += [type(made.score).__name__] if type(made.score) is not Raw else []
        pieces += [f"`{loss.__name__}`" for _, loss in made.losses]
        pieces += [f"`{loss.__name__}` steered" for loss in steered(made)]
        cells = (f"`{name}`", first_line(cls), ", ".join(feeds), ", ".join(pieces), source_of(cls))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def steered(made: Any) -> list[Any]:
    """Return the penalties a controller weighs."""
    return [] if made.penalty is None else [made.penalty.loss]


def source_of(cls: Any) -> str:
    """Return the arXiv number a docstring names first, else what it calls its source."""
    text = " ".join((cls.__doc__ or "").partition("Source:")[2].split())
    number = re.search(r"\b\d{4}\.\d{5}\b", text.partition("Deviation")[0])
    return number[0] if number else re.split(r"\. |, which", text)[0].rstrip(".")


def sites_by_family() -> str:
    """Return which family has which site, from the toy models that the laws of ``tests/ingest`` run over."""
    shape = {"vocab": 320, "layers": 1, "width": 32, "heads": 4, "positions": 64}
    has: dict[str, list[str]] = {}
    for family in ADAPTERS.names():
        kind = ADAPTERS.get(family)
        anatomy = kind.anatomy(kind.toy(**shape))
        block = [f"blocks.{{l}}.{name}" for name in anatomy.block]
        for site in (*anatomy.before, *block, *anatomy.after):
            has.setdefault(site, []).append(family)
    places = {site: at for at, site in enumerate(ORDER)}
    families = ADAPTERS.names()
    lines = [f"| site | {' | '.join(families)} |", f"|---|{':-:|' * len(families)}"]
    for site in sorted(has, key=lambda name: places[name.removeprefix("blocks.{l}.")]):
        marks = ["●" if family in has[site] else "" for family in families]
        lines.append(f"| `{site}` | {' | '.join(marks)} |")
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {
    "sources": of_registry("source", SOURCES),
    "families": of_registry("model family", ADAPTERS),
    "sites": sites_by_family,
    "planted": of_registry("planted model", PLANTED),
    "metrics": of_registry("metric", METRICS),
    "variants": dictionaries,
    "statistics": of_registry("statistic", STATISTICS),
    "operations": of_registry("intervention", OPERATIONS),
    "planners": of_registry("planner", PLANNERS),
    "executors": of_registry("executor of attention plans", EXECUTORS),
    "forms": of_registry("form of the products of codes", FORMS),
    "codecs": of_registry("codec", CODECS),
}


def filled(text: str) -> str:
    """Return the README with every generated table as it should be."""
    for name, table in TABLES.items():
        pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
        text, count = re.subn(
            pattern, lambda m, t=table: m[1] + t() + "\n" + m[2], text, flags=re.S
        )
        assert count == 1, f"the README has no place for table {name}"
    return text


if __name__ == "__main__":
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
