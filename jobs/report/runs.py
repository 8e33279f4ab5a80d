"""The run-card section, and what a report learns from cards: title, labels, next commands."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.report import numbers
from jobs.report.markup import Html, code, definitions, details, element, join, section, table
from jobs.report.store import pretty

if TYPE_CHECKING:
    from jobs.results import Result
    from jobs.run_card import RunCard

_SHORT = 12


def find(config: Any, *names: str) -> Any:
    """Return the first value of one of these names, anywhere in a config; outer ones first."""
    if isinstance(config, Mapping):
        for name in names:
            if config.get(name) is not None:
                return config[name]
        config = list(config.values())
    if isinstance(config, Sequence) and not isinstance(config, str):
        for inner in config:
            if (found := find(inner, *names)) is not None:
                return found
    return None


def site(results: Sequence[Result]) -> str | None:
    """Return the site the results are about, where their configs name one."""
    configs = [result.card.config for result in results]
    found = find(configs, "site") or find(configs, "sites")  # one that was resolved, or as asked
    if isinstance(found, list):
        return ", ".join(str(name) for name in found)
    return None if found is None else str(found)


def model(results: Sequence[Result]) -> str | None:
    """Return the model's name where a config gives one; of a path, its last two parts."""
    found = find([result.card.config for result in results], "model")
    return None if found is None else "/".join(Path(str(found)).parts[-2:])


def runs(key: str, results: Sequence[Result]) -> Html:
    """Return the run-card section: one line per run, then code and machine, then every config."""
    cards = [result.card for result in results]
    head = ("run", "outcome", "time", "peak memory", "seed", "started (UTC)")
    lines = [
        (
            code(result.path.name),
            card.outcome,
            numbers.duration(card.wall_seconds),
            numbers.size(card.peak_bytes),
            "–" if card.seed is None else str(card.seed),
            card.started.replace("T", " ").removesuffix("+00:00"),
        )
        for result, card in zip(results, cards, strict=True)
    ]
    configs = [
        details(join(["Config of ", code(result.path.name)]), pretty(dict(result.card.config)))
        for result in results
    ]
    return section(
        key, "Run card", table("Runs", head, lines, text_columns=2), *_where(cards), *configs
    )


def _where(cards: Sequence[RunCard]) -> list[Html]:
    """Return code and machine once for runs that share them."""
    seen: list[tuple[Any, ...]] = []
    blocks: list[Html] = []
    for card in cards:
        facts = (card.revision, card.hardware, card.versions, card.store, card.pin, card.digest)
        if facts in seen:
            continue
        seen.append(facts)
        machine = card.hardware
        blocks.append(
            definitions(
                [
                    ("store", card.store and code(card.store)),
                    ("pin", card.pin and code(card.pin)),
                    ("digest", card.digest and code(card.digest)),
                    ("actlake", card.revision.get("version")),
                    ("commit", _commit(card.revision.get("commit"))),
                    ("processor", _processor(machine)),
                    ("memory", numbers.size(float(machine.get("memory_bytes") or 0))),
                    ("accelerator", machine.get("gpu") or "none"),
                    ("libraries", ", ".join(f"{name} {v}" for name, v in card.versions.items())),
                ]
            )
        )
    return blocks


def _commit(commit: str | None) -> Html | None:
    if commit is None:
        return None
    digits, _, dirty = commit.partition("-")
    return code(digits[:_SHORT] + (" + changes" if dirty else ""))


def _processor(machine: Mapping[str, Any]) -> str:
    cores = int(machine.get("cores") or 0)
    return f"{machine.get('cpu')}, {cores} {'core' if cores == 1 else 'cores'}"


def following(key: str, results: Sequence[Result], summary: Mapping[str, Any]) -> Html:
    """Return commands that lead on from here, with this store's address filled in."""
    url = shlex.quote(str(summary.get("url") or "STORE"))
    about = shlex.quote(site(results) or "SITE")
    name = shlex.quote(str(find([result.card.config for result in results], "model") or "MODEL"))
    drawn = " ".join(shlex.quote(str(result.path)) for result in results)
    query = _query(summary)
    steps = [
        ("See what the store holds", f"actlake inspect {url}"),
        ("Read every byte back", f"actlake verify {url}"),
        ("Ask in SQL; every table joins by row", f"actlake query {url} {shlex.quote(query)}"),
        (
            "Add another layer over the same rows",
            f"actlake ingest --into {url} --group early --model {name} --sites blocks.0.resid_post",
        ),
        (
            "Train several dictionaries",
            f"actlake train {url} --site {about} --variant batch_topk "
            "--latents 2k,4k --k 16,32 --out DIR",
        ),
    ]
    if results:
        steps.append(("Draw this page again", f"actlake report {drawn} --on {url}"))
    items = [
        element("li", element("p", said), element("pre", command, tabindex="0"))
        for said, command in steps
    ]
    return section(key, "Where to go next", element("ul", *items, class_="commands"))


def _query(summary: Mapping[str, Any]) -> str:
    """Return a query this very store can answer: over its codes where it has some."""
    for group in summary.get("groups", []):
        if any("codes" in (c.get("kind"), c.get("dtype")) for c in group.get("columns", [])):
            name = '"' + str(group.get("name", "")).replace('"', '""') + '"'
            return (
                f"SELECT latent, count(*) AS n, max(value) AS top FROM {name} JOIN tokens "
                "USING (row) WHERE split = 2 GROUP BY latent ORDER BY n DESC LIMIT 10"
            )
    return "SELECT name, sum(rows) AS n FROM documents GROUP BY name ORDER BY n DESC LIMIT 10"
