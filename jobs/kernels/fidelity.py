"""Rows of what plans keep: one per problem, planner and budget, then over heads and over documents.

Dimensions: H query heads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from torch import Tensor

from jobs.errors import JobError
from jobs.kernels.contract import QKV, Budget, Executor, Planner, attention_flops, plan
from jobs.kernels.gate import truth as gate_truth
from jobs.kernels.gate import wrong
from jobs.kernels.metrics import METRICS, Exact, exact, fidelity, over_heads
from jobs.kernels.plan import BlockPlan
from jobs.kernels.settings import AttentionBench
from jobs.kernels.structure import by_document, structure_gain
from store.registry import to_json

Row = dict[str, Any]

SELF_CHECK = 1e-4
"""Largest disagreement, in mass of one row, of an executor's log-sum-exp with its plan's mask."""


FIGURES = (
    "rho_token",
    "rho_tile",
    "tile_inflation",
    "forced_share",
    "plan_flops",
    "exec_flops",
    "speedup_ideal",
    "exec_only_ideal",
    *METRICS,
    "self_check",
    "sink_mass",
    "own_mass",
    "out_rel_err_p95",
    "out_rel_err_max",
)
"""Columns of numbers that a refused row has none of."""

HEADS = (
    *("layer", "control", "method", "budget_kind", "budget", "head"),
    *(*METRICS, "sink_mass", "own_mass", "documents"),
)
"""Columns of table ``attention_heads``."""

STRUCTURE = (
    *("layer", "control", "method", "budget_kind", "budget", "metric", "head"),
    *("real", "control_value", "gain", "low", "high", "documents"),
)
"""Columns of table ``structure``."""


def measured(qkv: QKV, control: str, config: AttentionBench) -> list[Row]:
    """Return a row per planner and budget; what a planner refuses is a row with its reason."""
    truth = exact(qkv, config.tiles)
    executor = config.build_executor()
    rows = []
    for planner in config.build_planners():
        for budget in config.budgets():
            row = _described(qkv, planner, budget, control, config)
            try:
                chosen = plan(planner, qkv, config.tiles, budget)
            except JobError as refused:
                said = {"valid": False, "status": "refused", "reason": str(refused)}
                rows.append({**row, **dict.fromkeys(FIGURES, float("nan")), **said})
                continue
            rows.append({**row, **_figures(qkv, chosen, executor, truth, config)})
    return rows


def _described(
    qkv: QKV, planner: Planner, budget: Budget, control: str, config: AttentionBench
) -> Row:
    batch, heads, queries, width = qkv.q.shape
    return {
        "layer": qkv.meta["layer"],
        "sample_id": qkv.meta["sequence"],
        "document": qkv.meta["document"],
        "method": planner.kind,
        "exactness": planner.exactness,
        "params": json.dumps(to_json(planner), sort_keys=True),
        "control": control,
        "budget_kind": budget.kind,
        "budget": budget.value,
        "executor": config.executor,
        "exec_precision": config.precision,
        "seed": config.seed,
        "B": batch,
        "H": heads,
        "Hk": qkv.groups,
        "Nq": queries,
        "Nk": qkv.k.shape[2],
        "d": width,
        "bq": config.block,
        "bk": config.block,
        "plan_heads": config.plan_heads,
        "causal": qkv.causal,
    }


def _figures(
    qkv: QKV, chosen: BlockPlan, executor: Executor, truth: Exact, config: AttentionBench
) -> Row:
    density = chosen.density()
    ran = executor.run(qkv, chosen)
    found = fidelity(qkv, chosen, ran, truth)
    gap = float(found["self_check"].max())
    # Written so that NaN is wrong.
    reason = wrong(ran, gate_truth(qkv, chosen, config.precision), config.precision) or (
        ""
        if gap <= SELF_CHECK
        else f"log-sum-exp and mask of the plan disagree by {gap:.2g} of a row's mass"
    )
    pairs = qkv.geometry.pairs() * qkv.heads * qkv.q.shape[0]
    listed = int((chosen.kv_num.sum() + chosen.full_num.sum()) * (qkv.heads // chosen.plan_heads))
    return {
        "rho_token": density.rho_token,
        "rho_tile": density.rho_tile,
        "tile_inflation": density.tile_inflation,
        "forced_share": density.forced_share,
        "plan_flops": float(chosen.stats["plan_flops"]),
        "exec_flops": attention_flops(listed * chosen.bq * chosen.bk, qkv.q.shape[3]),
        "speedup_ideal": 1
        / (
            density.rho_tile
            + float(chosen.stats["plan_flops"]) / attention_flops(pairs, qkv.q.shape[3])
        ),
        "exec_only_ideal": 1 / density.rho_tile,
        **{name: found[name] for name in (*METRICS, "self_check")},
        "sink_mass": truth.sink_mass,
        "own_mass": truth.own_mass,
        "valid": not reason,
        "status": "failed" if reason else "ok",
        "reason": reason,
    }


def aggregated(row: Row) -> Row:
    """Return a row over heads, ``head`` −1."""
    tensors = {n: v for n, v in row.items() if isinstance(v, Tensor)}
    return {**row, "head": -1, **(over_heads(tensors) if tensors else {})}


def _cells(rows: Sequence[Row]) -> Iterator[tuple[Row, list[Row]]]:
    """Yield valid rows by (layer, control, method, budget): what they share, and they."""
    cells: dict[tuple[Any, ...], list[Row]] = {}
    shared = ("layer", "control", "method", "budget_kind", "budget")
    for row in rows:
        if row["valid"]:
            cells.setdefault(tuple(row[n] for n in shared), []).append(row)
    for key, members in cells.items():
        yield dict(zip(shared, key, strict=True)), members


def per_head(rows: Sequence[Row]) -> list[Row]:
    """Return means over documents of each head's metrics, a row per head and cell."""
    found = []
    for cell, members in _cells(rows):
        documents = np.array([m["document"] for m in members])
        values = {
            name: np.stack([m[name].double().numpy() for m in members])
            for name in (*METRICS, "sink_mass", "own_mass")
        }
        for head in range(members[0]["H"]):
            means = {n: _mean(by_document(documents, v[:, head])) for n, v in values.items()}
            found.append({**cell, "head": head, **means, "documents": len(set(documents.tolist()))})
    return found


def _mean(values: Mapping[int, float]) -> float:
    return float(np.mean(list(values.values()))) if values else float("nan")


GAINS = ("mass_recall", "mass_recall_p05", "out_rel_err", "out_cos", "block_recall", "regret")


def gains(rows: Sequence[Row], config: AttentionBench) -> list[Row]:
    """Return structure gains of every cell against every control, with intervals over documents."""
    cells = {tuple(cell.values()): (cell, members) for cell, members in _cells(rows)}
    found = []
    for cell, members in cells.values():
        if cell["control"] != "real":
            continue
        for name in config.controls:
            other = cells.get(tuple({**cell, "control": name}.values()))
            for metric in GAINS if other is not None and name != "real" else ():
                assert other is not None
                ours, theirs = _of_documents(members, metric), _of_documents(other[1], metric)
                gain = structure_gain(ours, theirs, seed=config.seed)
                figures = {"real": _mean(ours), "control_value": _mean(theirs), **asdict(gain)}
                found.append({**cell, "control": name, "metric": metric, "head": -1, **figures})
    return found


def _of_documents(members: Sequence[Row], metric: str) -> dict[int, float]:
    figures = np.array([over_heads(_tensors(m))[metric] for m in members])
    return by_document(np.array([m["document"] for m in members]), figures)


def _tensors(row: Row) -> dict[str, Tensor]:
    return {n: v for n, v in row.items() if isinstance(v, Tensor)}


def columns_of_rows(
    rows: Sequence[Row], names: Sequence[str] = ()
) -> dict[str, np.ndarray[Any, np.dtype[Any]] | list[Any]]:
    """Return rows as table columns: what a row lacks is NaN, or empty where the others hold text.

    Parameters
    ----------
    names
        Columns that are there even where there is no row.
    """
    names = list(dict.fromkeys([*names, *(name for row in rows for name in row)]))
    table: dict[str, np.ndarray[Any, np.dtype[Any]] | list[Any]] = {}
    for name in names:
        held = [row.get(name) for row in rows]
        if any(isinstance(value, str) for value in held):
            table[name] = ["" if value is None else str(value) for value in held]
        elif any(value is None or isinstance(value, float) for value in held):
            table[name] = np.array([np.nan if v is None else float(v) for v in held])
        else:
            table[name] = np.array(held)
    return table
