"""The demo's second half: a causal model's heads, by their patterns, in text, and with some switched off.

Two stores of one model: text as it comes, and random tokens said twice, where only a head that finds the earlier copy
can help. Statistics are taken while the model runs; q, k, v and z of two layers are kept for the kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ingest.config import HarvestConfig, TokensConfig
from ingest.contract import Runtime
from ingest.models import attention_sites, bundled_causal, load
from ingest.run import Summary
from ingest.run import ingest as run_ingest
from ingest.sources import SOURCES
from jobs.circuits import STATISTICS
from jobs.circuits.confirm import ConfirmConfig, confirm_induction
from jobs.circuits.live import LiveStatistic
from jobs.circuits.run import statistics_on
from jobs.config import Demo
from jobs.demo.sources import source_for
from jobs.errors import JobError
from jobs.features import pair_passages
from jobs.progress import Progress
from jobs.results import Result
from store import Store
from store import open as open_store

GROUP = "attn"
TEXT = ("induction", "attention_sinks", "massive_activations", "moments")
REPEATS = ("induction",)
CONFIRM = ConfirmConfig(sequences=8, periods=(40, 80))
SHOWN_HEADS, SHOWN_PAIRS = 4, 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Looked:
    """What the second half leaves."""

    store: Store
    """The text's."""
    repeats: Store
    layers: tuple[int, ...]
    """Layers whose q, k, v and z are kept."""
    results: tuple[Result, ...]
    """In the order a report tells them."""
    top: dict[str, Any]
    """The head with the top score: layer, head, score, mean rise of the loss without it, seeds that confirm it."""


def look(config: Demo, out: Path, *, runtime: Runtime, progress: Progress) -> Looked:
    """Make (or complete) both stores and everything about the heads."""
    name = config.heads_model or str(bundled_causal())
    loaded = load(name)
    if not loaded.adapter.causal:
        raise JobError(
            f"{name} looks both ways; heads that copy what came before are found in causal models. The first half "
            "of the demo stands. Give a causal --heads-model.",
            kind="not-causal",
        )
    layers = _kept(loaded.adapter.layers)
    text = TokensConfig(
        source=source_for(config.corpus, seed=config.seed),
        rows=config.heads_rows,
        context=min(512, loaded.adapter.max_positions or 512),
        part_rows=4096,
    )
    repeats = TokensConfig(source=SOURCES.get("repeats")(sequences=48), part_rows=4096)
    sites = [site for layer in layers for site in attention_sites(loaded.adapter, layer)]
    first = list(attention_sites(loaded.adapter, layers[0])[:2])

    def run(where: str, tokens: TokensConfig, keep: Sequence[str], live: Sequence[str]) -> Store:
        harvest = HarvestConfig(model=name, sites=tuple(keep), group=GROUP, batch=8)
        observers = [LiveStatistic(statistic=STATISTICS.get(kind)()) for kind in live]
        done: Summary = run_ingest(
            out / where,
            tokens,
            harvest,
            runtime=runtime,
            observers=observers,
            progress=lambda phase, at, total: progress(f"{where}: {phase}", at, total),
        )
        return open_store(done.url)

    texts, repeated = (
        run("heads", text, sites, TEXT),
        run("repeats", repeats, first, REPEATS),
    )
    on_text = statistics_on(texts, [STATISTICS.get(kind)() for kind in TEXT], out)
    on_repeats = statistics_on(repeated, [STATISTICS.get(kind)() for kind in REPEATS], out)
    confirmed = confirm_induction(
        loaded,
        on_repeats[0].table("heads"),
        out,
        CONFIRM,
        progress=lambda done, total: progress("ablate", done, total, unit="runs"),
    )
    return Looked(
        store=texts,
        repeats=repeated,
        layers=layers,
        results=(
            *on_repeats,
            confirmed,
            _passages(texts, on_text[0], out),
            *on_text,
        ),
        top=_top(confirmed),
    )


def _top(confirmed: Result) -> dict[str, Any]:
    found = {name: np.asarray(values) for name, values in confirmed.table("confirmation").items()}
    return {
        "layer": int(found["layer"][0]),
        "head": int(found["head"][0]),
        "prefix_matching": float(found["score"][0]),
        "rise": float(found["rise"].mean()),
        "confirmed": int(found["confirmed"].sum()),
        "seeds": len(found["seed"]),
    }


def _kept(layers: int) -> tuple[int, ...]:
    """Return the layers whose attention is kept: the middle, and two thirds up."""
    return tuple(sorted({layers // 2, min(layers - 1, 2 * layers // 3)}))


def _passages(store: Store, induction: Result, out: Path) -> Result:
    """Return the text around the strongest matches of the best heads."""
    pairs = {name: np.asarray(values) for name, values in induction.table("head_contexts").items()}
    named = pairs["layer"] * 65_536 + pairs["head"]
    best = np.isin(named, list(dict.fromkeys(named.tolist()))[:SHOWN_HEADS])
    best &= (
        pairs["query_row"] != pairs["key_row"]
    )  # a token said twice in a row is its own continuation
    best &= pairs["rank"] < SHOWN_PAIRS
    shown = {name: values[best] for name, values in pairs.items()}
    described = {"of": induction.path.name, "heads": SHOWN_HEADS, "pairs": SHOWN_PAIRS}
    result = Result.create(out, "passages", described, store=store.id, pin=store.pin())
    if not result.done:
        with result:
            for name, columns in pair_passages(store, shown).items():
                result.write_table(name, columns)
    return result
