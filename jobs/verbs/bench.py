"""``bench attention`` and ``bench codes``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jobs import config as settings
from jobs.verbs.contract import Answer, Context


def attention(config: settings.BenchAttention, context: Context) -> Answer:
    """Measure planners on a store's attention and on controls."""
    from jobs.kernels.bench import bench_attention
    from jobs.kernels.settings import AttentionBench
    from jobs.sequences import model_facts
    from store import open as open_store

    bench = AttentionBench(
        layers=config.layer,
        planners=config.planners,
        densities=config.densities,
        block=config.block,
        plan_heads=config.plan_heads,
        controls=config.controls,
        sequences=config.sequences,
        split=None if config.split == "all" else config.split,
        group=config.group,
        executor=config.executor,
        precision=config.precision,
        repeats=config.repeats,
        lengths=config.lengths or (),
        seed=config.seed,
    )
    store = open_store(config.url)
    groups = None if config.group is None else [config.group]
    result = bench_attention(
        store,
        bench,
        config.out,
        facts=model_facts(store, groups, model=config.model),
        step=lambda phase, done, total: context.progress(phase, done, total, unit="steps"),
    )
    table = result.table("structure") if "structure" in result.tables() else {}
    rows = _summary(result.table("attention"), table)
    lines = [f"{'layer':>5} {'planner':<12} {'density':>7} {'tiles':>6} {'recall':>7} {'error':>7}"]
    for row in rows:
        gains = "  ".join(f"{n} {v:+.3f}" for n, v in row["recall_gain"].items())
        lines.append(
            f"{row['layer']:>5} {row['method']:<12} {row['budget']:>7.3g} {row['rho_tile']:>6.3f} "
            f"{row['mass_recall']:>7.4f} {row['out_rel_err']:>7.4f}  {gains}"
        )
    found = result.table("attention")
    spoilt = {
        status: sorted(
            {str(r) for r, s in zip(found["reason"], found["status"], strict=True) if s == status}
        )
        for status in ("failed", "refused")
    }
    for status, reasons in spoilt.items():
        count = list(found["status"]).count(status)
        lines += [f"{count} measurements {status}: {reasons[0]}"] if count else []
    lines.append(str(result.path))
    answer = {"result": str(result.path), "rows": rows, **spoilt}
    return Answer(answer, "\n".join(lines), 1 if spoilt["failed"] else 0)


def _summary(table: Mapping[str, Any], structure: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the means over real sequences, a row per layer, planner and budget, with gains in recall."""
    text = {n: np.array(table[n]) for n in ("layer", "method", "budget", "control")}
    ok = np.asarray(table["valid"], bool) & (text["control"] == "real")
    keys = sorted({(int(x), str(m), float(b)) for x, m, b in zip(
        *(text[n][ok] for n in ("layer", "method", "budget")), strict=True)})  # fmt: skip
    found = []
    for layer, method, budget in keys:
        mine = ok & (text["layer"] == layer) & (text["method"] == method)
        mine &= text["budget"] == budget
        figures = {
            n: float(np.mean(np.asarray(table[n])[mine]))
            for n in ("rho_tile", "rho_token", "mass_recall", "out_rel_err", "regret")
        }
        gain = {
            str(structure["control"][i]): float(structure["gain"][i])
            for i in range(len(structure.get("gain", ())))
            if (structure["layer"][i], structure["method"][i], structure["budget"][i])
            == (layer, method, budget)
            and structure["metric"][i] == "mass_recall"
            and not math.isnan(structure["gain"][i])
        }
        key = {"layer": layer, "method": method, "budget": budget}
        found.append({**key, **figures, "recall_gain": gain})
    return found
