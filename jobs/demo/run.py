"""The main job: one store and its dictionary, another and its heads, kernels on both, one report."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.config import Demo
from jobs.demo import kernels
from jobs.demo.claim import claim
from jobs.demo.dictionary import CODES, check, learn
from jobs.demo.heads import look
from jobs.interrupts import Interrupts
from jobs.progress import Progress
from jobs.report import render
from jobs.runtimes.choose import runtime_for
from jobs.summary import summarize
from store import Report, Store, verify


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Where everything is, and the headline figures."""

    report: str
    store: str
    heads: str
    """The causal model's store."""
    results: tuple[str, ...]
    fvu: float
    l0: float
    dead: int
    digest: str | None
    heads_digest: str | None
    top_head: dict[str, Any]
    """The causal model's best induction head and what its loss says."""
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the outcome for programs."""
        return {name: getattr(self, name) for name in self.__slots__}


def demo(config: Demo, *, progress: Progress, interrupts: Interrupts) -> Outcome:
    """Run (or complete) the demo in ``config.out``."""
    began = time.monotonic()
    out = Path(config.out)
    check(config)
    claim(out, config)
    # One number of threads for all: a store begun with another keeps its own.
    with runtime_for(config, url=str(out / "store"), group="acts") as runtime:
        learned = learn(config, out, runtime=runtime, progress=progress, interrupts=interrupts)
        looked = look(config, out, runtime=runtime, progress=progress)
    # Workers are gone: nothing runs beside what is timed.
    measured = (
        kernels.attention(looked.store, looked.layers, out, progress),
        kernels.codes(learned.store, CODES, out, progress),
    )
    checked = [_verified(store, progress) for store in (learned.store, looked.store)]
    results = [*learned.results, *looked.results, *measured]
    page = render(results, summarize(learned.store, report=checked[0]), out / "report.html")
    return Outcome(
        report=str(page),
        store=learned.store.url,
        heads=looked.store.url,
        results=tuple(str(result.path) for result in results),
        fvu=learned.figures["fvu"],
        l0=learned.figures["l0_mean"],
        dead=int(learned.figures["dead"]),
        digest=checked[0].digest,
        heads_digest=checked[1].digest,
        top_head=looked.top,
        seconds=time.monotonic() - began,
    )


def _verified(store: Store, progress: Progress) -> Report:
    return verify(
        store.refresh(),
        progress=lambda _, done: progress("verify", done >> 20, None, unit="MiB"),
    )
