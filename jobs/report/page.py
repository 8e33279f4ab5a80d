"""The page of a report: one HTML file that needs nothing else, drawn from result tables only.

No scripts, no fonts, no addresses: styles and drawings stand in the file, and a content security
policy forbids the rest, so text of a corpus can do nothing even if it slipped through the escaping.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable
from importlib import resources
from typing import TYPE_CHECKING, Any

from jobs.errors import JobError
from jobs.report import dictionary, heads, kernels, numbers, passages, runs, store, tables
from jobs.report.markup import Html, element, join

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from jobs.results import Result

_SECTIONS: dict[str, tuple[tuple[str, ...], Callable[..., Html]]] = {
    "Evaluation": ((), dictionary.evaluation),
    "Training": (("curve",), dictionary.training),
    "Latents": ((), passages.telling),
    "Heads": (("heads",), heads.heads),
    "Sinks": (("attention_sinks",), heads.sinks),
    "Massive activations": (("layers",), heads.massive),
    "Where heads look": (("head_passages", "head_tokens"), heads.passages),
    "Ablation": (("ablation", "confirmation", "copying"), heads.ablation),
    "Sparse attention": (("attention", "structure"), kernels.attention),
    "Attention times": (("timing", "attention"), kernels.timing),
    "Sparse codes": (("codes", "crossover"), kernels.codes),
}
"""Sections in the order they are told: the tables each is drawn from, where these are told apart by name alone."""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def render(results: Sequence[Result], store_summary: Mapping[str, Any], out: Path) -> Path:
    """Write the report of some results as one self-contained HTML file, and return its path.

    Parameters
    ----------
    results
        Results in the order they should be told; the tables they hold decide what is shown, see
        ``jobs.report.tables``.
    store_summary
        What the store holds, see ``jobs.report.store.SUMMARY``; empty where no store is at hand.
    out
        The file; an older one is replaced whole.

    Raises
    ------
    JobError
        ``bad-table`` where a table is not what its name says, ``not-permitted`` where ``out``
        cannot be written. The older page stands.
    """
    page = compose(results, store_summary)
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(out)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise JobError(
            f"the report cannot be written to {out}: {error.strerror or error}. The results stand. "
            "Choose another file.",
            kind="not-permitted",
        ) from error
    return out


def compose(results: Sequence[Result], store_summary: Mapping[str, Any]) -> str:
    """Return the page as text; equal results and summary give equal text."""
    evaluations = [tables.evaluation(result) for result in results]
    site = runs.site(results)
    heading = f"What {site.rpartition(':')[2]} holds" if site else "actlake report"
    named = {
        **_findings(results, evaluations),
        "corpus": ("Corpus", store.corpus("corpus", store_summary)),
        "store": ("Store", store.store("store", store_summary) if store_summary else Html("")),
        "runs": ("Run card", runs.runs("runs", results) if results else Html("")),
        "next": ("Where to go next", runs.following("next", results, store_summary)),
    }
    sections = {key: (name, part) for key, (name, part) in named.items() if part}
    links = [element("a", name, href=f"#{key}") for key, (name, _) in sections.items()]
    head = element(
        "header",
        element("p", "actlake report", class_="over"),
        element("h1", heading),
        element("p", _lead(results, evaluations, store_summary), class_="lead"),
        element("nav", *links, aria_label="Sections"),
        class_="top",
    )
    foot = element(
        "footer",
        element("p", "Drawn by actlake from result tables; nothing was recomputed."),
    )
    return _document(
        heading, join([head, element("main", *(part for _, part in sections.values())), foot])
    )


def _document(title: str, body: Html) -> str:
    style = resources.files("jobs.report").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"{element('title', title)}\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _findings(
    results: Sequence[Result], evaluations: Sequence[tables.Evaluation | None]
) -> dict[str, tuple[str, Html]]:
    """Return evaluations, training and telling latents, told apart where there are several."""
    found: dict[str, list[tuple[Result, tuple[Any, ...]]]] = {name: [] for name in _SECTIONS}
    for result, evaluated in zip(results, evaluations, strict=True):
        if evaluated is not None:
            found["Evaluation"].append((result, (evaluated,)))
        if latents := tables.telling_latents(result):
            found["Latents"].append((result, (latents,)))
        for name, (wanted, _) in _SECTIONS.items():
            read = [tables.read(result, table) for table in wanted]
            if read and all(table is not None for table in read):
                found[name].append((result, tuple(read)))
    sections = {}
    for name, entries in found.items():
        for i, (result, content) in enumerate(entries, start=1):
            key, several = f"{name.lower().replace(' ', '-')}-{i}", len(entries) > 1
            part = _SECTIONS[name][1](key, *content, _label(result) if several else "")
            sections[key] = (f"{name} {i}" if several else name, part)
    return sections


def _label(result: Result) -> Html:
    """Return what tells a result from others like it: its site, its text, or its name."""
    said = runs.site([result]) or runs.find(result.card.config, "text")
    return element("small", f"on {said}" if said else result.path.name)


def _lead(
    results: Sequence[Result],
    evaluations: Sequence[tables.Evaluation | None],
    summary: Mapping[str, Any],
) -> str:
    """Return one or two sentences that say what this is and what came out."""
    metrics = next((found.metrics for found in evaluations if found is not None), {})
    latents, model = _latents(results, metrics), runs.model(results)
    rows = max((int(group.get("rows", 0)) for group in summary.get("groups", [])), default=0)
    said = []
    if latents is not None:
        said.append(f"A dictionary of {numbers.count(latents)} latents")
        if model:
            said.append(f"for {model}")
        if rows:
            said.append(f"over a store of {numbers.count(rows)} rows")
    else:
        said.append(
            f"{numbers.count(rows)} rows in a store" if rows else "Results and their run cards"
        )
    if "fvu" in metrics and "l0_p50" in metrics:
        said[-1] += "."
        said.append(
            f"On held-out documents it explains {numbers.share(1 - metrics['fvu'])} of the "
            f"variance with {numbers.decimal(metrics['l0_p50'])} active latents on the median row"
        )
    return " ".join(said) + "."


def _latents(results: Sequence[Result], metrics: Mapping[str, float]) -> float | None:
    """Return the dictionary's number of latents, from its evaluation or its training config."""
    if "latents" in metrics:
        return metrics["latents"]
    configs = [result.card.config for result in results]
    said = runs.find(runs.find(configs, "variant"), "latents")
    return float(said) if isinstance(said, int) else None
