"""Rows of how long plans take: gated by their results, next to dense attention, inside its noise or not.

Times are of these values at this length on this machine with this many threads, the problems taking
turns. A longer problem replays the shape of a plan on joined rows: ``shape only``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from jobs.errors import JobError
from jobs.kernels import baseline
from jobs.kernels.assemble import plan_of
from jobs.kernels.contract import (
    QKV,
    Budget,
    Executor,
    Planner,
    Tiles,
    attention_flops,
    plan,
)
from jobs.kernels.gate import truth, wrong
from jobs.kernels.geometry import layout
from jobs.kernels.inputs import joined
from jobs.kernels.measure import Ceiling, Timing, interleaved, noise_band, spread, verdict
from jobs.kernels.plan import BlockPlan
from jobs.kernels.scores import dense
from jobs.kernels.settings import AttentionBench
from jobs.machine import hardware, versions

TIMED = 4
"""Problems that take turns, so that no run finds its inputs where the last one left them."""
STORED, SHAPE_ONLY = "stored length", "shape only"

TIMES = (
    *("rho_token", "rho_tile"),
    *(f"t_{p}{s}_us" for p in ("plan", "exec", "total") for s in ("", "_p20", "_p80", "_min")),
    *("plan_share", "speedup_best", "speedup_exec", "speedup_self", "speedup_self_exec"),
    *("exec_only_ideal", "floor_us", "frac_of_limit"),
)
"""Columns of numbers that a row has only where its results are right."""

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Everything:
    """Keeps every visible tile: what our executor takes where nothing is skipped."""

    kind: ClassVar[str] = "everything"
    causal_only: ClassVar[bool] = False
    exactness: ClassVar[str] = "exact-at-full-budget"

    def plan(self, qkv: QKV, tiles: Tiles, budget: Budget) -> BlockPlan:
        """Return the plan that lists all there is."""
        del budget
        visible = layout(qkv.geometry, tiles.bq, tiles.bk).visible
        kept = visible.expand(qkv.q.shape[0], tiles.plan_heads(qkv), -1, -1)
        return plan_of(qkv, tiles, kept, stats={"planner": self.kind, "plan_flops": 0.0})


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Case:
    """One planner at one budget on the problems that are timed."""

    planner: Planner
    budget: Budget
    plans: tuple[BlockPlan, ...]
    reason: str
    """Why it must not be timed; empty where it may."""

    @property
    def name(self) -> str:
        """Its name among others."""
        return f"{self.planner.kind}@{self.budget.value:g}"


def timed_rows(
    problems: Sequence[QKV],
    config: AttentionBench,
    peaks: Sequence[Ceiling],
    check: Callable[[], None] | None = None,
) -> tuple[list[Row], dict[str, BlockPlan]]:
    """Return rows of times at the stored length and at longer ones, and the first problem's plans.

    Parameters
    ----------
    peaks
        What this machine can do; limits are told against them.
    check
        Called between rounds; may raise to stop.
    """
    planners = config.build_planners()
    rows, plans = _rows(problems, planners, config, peaks, STORED, check)
    for length in config.lengths:
        long = [joined([*problems[n:], *problems[:n]], length) for n in range(len(problems))]
        rows += _rows(long[:2], planners, config, peaks, SHAPE_ONLY, check)[0]
    return rows, plans


def _rows(
    problems: Sequence[QKV],
    planners: Sequence[Planner],
    config: AttentionBench,
    peaks: Sequence[Ceiling],
    claim: str,
    check: Callable[[], None] | None,
) -> tuple[list[Row], dict[str, BlockPlan]]:
    executor = config.build_executor()
    cases = [_case(p, b, problems, config, executor) for p in planners for b in config.budgets()]
    whole = _case(Everything(), Budget(density=1.0), problems, config, executor)
    baseline_wrong = _baseline_wrong(problems)
    if baseline_wrong:
        cases = [replace(case, reason=case.reason or baseline_wrong) for case in cases]
    methods = _methods(problems, cases, whole, config, executor)
    took = interleaved(methods, repeats=config.repeats, check=check)
    rows = [
        {
            **_row(case, whole, took, problems[0], config, peaks, claim),
            "cache_regime": f"{len(problems)} problems in turn",
        }
        for case in cases
    ]
    return rows, {case.name: case.plans[0] for case in cases if case.plans}


def _case(
    planner: Planner,
    budget: Budget,
    problems: Sequence[QKV],
    config: AttentionBench,
    executor: Executor,
) -> Case:
    try:
        plans = tuple(plan(planner, qkv, config.tiles, budget) for qkv in problems)
    except JobError as refused:
        return Case(planner=planner, budget=budget, plans=(), reason=str(refused))
    reasons = [
        wrong(executor.run(q, p), truth(q, p, config.precision), config.precision)
        for q, p in zip(problems, plans, strict=True)
    ]
    return Case(planner=planner, budget=budget, plans=plans, reason=next(filter(None, reasons), ""))


def _baseline_wrong(problems: Sequence[QKV]) -> str:
    """Return what is wrong with the dense baseline, empty where nothing is."""
    for qkv in problems:
        o, lse = dense(qkv)
        if said := wrong((baseline.run(qkv), lse), (o, lse), "float32"):
            return f"the dense baseline ({baseline.backend(qkv)}): {said}"
    return ""


def _methods(
    problems: Sequence[QKV],
    cases: Sequence[Case],
    whole: Case,
    config: AttentionBench,
    executor: Executor,
) -> dict[str, Callable[[int], object]]:
    """Return what is timed, by name; the baseline stands first and last."""
    count = len(problems)

    def attend(number: int) -> object:
        return baseline.run(problems[number % count])

    def execute(case: Case) -> Callable[[int], object]:
        return lambda n: executor.run(problems[n % count], case.plans[n % count])

    def think(case: Case) -> Callable[[int], object]:
        return lambda n: plan(case.planner, problems[n % count], config.tiles, case.budget)

    def both(case: Case) -> Callable[[int], object]:
        return lambda n: executor.run(
            problems[n % count],
            plan(case.planner, problems[n % count], config.tiles, case.budget),
        )

    methods: dict[str, Callable[[int], object]] = {"dense": attend}
    if not whole.reason:
        methods["self"] = execute(whole)
    for case in cases:
        if not case.reason:
            methods[f"{case.name}/plan"] = think(case)
            methods[f"{case.name}/execute"] = execute(case)
            methods[f"{case.name}/total"] = both(case)
    return {**methods, "dense again": attend}


def _row(
    case: Case,
    whole: Case,
    took: dict[str, Timing],
    qkv: QKV,
    config: AttentionBench,
    peaks: Sequence[Ceiling],
    claim: str,
) -> Row:
    band = noise_band(took["dense"], took["dense again"])
    best = min(took["dense"].median_us, took["dense again"].median_us)
    row = {
        "layer": qkv.meta["layer"],
        "method": case.planner.kind,
        "exactness": case.planner.exactness,
        "budget_kind": case.budget.kind,
        "budget": case.budget.value,
        "executor": config.executor,
        "exec_precision": config.precision,
        "claim": claim,
        "plan_heads": config.plan_heads,
        "H": qkv.heads,
        "Hk": qkv.groups,
        "Nq": qkv.q.shape[2],
        "Nk": qkv.k.shape[2],
        "d": qkv.q.shape[3],
        "bq": config.block,
        "bk": config.block,
        "dense_best_backend": baseline.backend(qkv),
        "t_dense_best_us": best,
        "t_dense_self_us": took["self"].median_us if not whole.reason else float("nan"),
        "noise_band": band,
        "n_samples": took["dense"].samples,
        "device": str(hardware()["gpu"] or hardware()["cpu"]),
        "threads": torch.get_num_threads(),
        "lib_versions": json.dumps(versions(), sort_keys=True),
    }
    if case.reason:
        said = {"valid": False, "status": "failed", "reason": case.reason}
        return {
            **row,
            **dict.fromkeys(TIMES, float("nan")),
            "verdict": "",
            "verdict_exec": "",
            **said,
        }
    return {
        **row,
        **_times(case, took, row, qkv, peaks),
        "valid": True,
        "status": "ok",
        "reason": "",
    }


def _times(
    case: Case, took: dict[str, Timing], row: Row, qkv: QKV, peaks: Sequence[Ceiling]
) -> Row:
    chosen = case.plans[0]
    density = chosen.density()
    times: Row = {}
    for phase, short in (("plan", "plan"), ("execute", "exec"), ("total", "total")):
        timing = took[f"{case.name}/{phase}"]
        times[f"t_{short}_us"] = timing.median_us
        times[f"t_{short}_p20_us"] = timing.p20_us
        times[f"t_{short}_p80_us"] = timing.p80_us
        times[f"t_{short}_min_us"] = timing.minimum_us
    tiles = int((chosen.kv_num.sum() + chosen.full_num.sum()) * (qkv.heads // chosen.plan_heads))
    flops = attention_flops(tiles * chosen.bq * chosen.bk, qkv.q.shape[3])
    # Scores are float32 in every executor, so its product is the ceiling; q, k, v and o move once at least.
    limits = {p.quantity: p.value for p in peaks}
    moved = 4.0 * sum(x.numel() for x in (qkv.q, qkv.k, qkv.v, qkv.q))
    floor = max(flops / limits["product float32"], moved / limits["copy"]) * 1e6
    dense, band = row["t_dense_best_us"], row["noise_band"]
    best = dense / times["t_total_us"]
    executed = dense / times["t_exec_us"]
    return {
        "rho_token": density.rho_token,
        "rho_tile": density.rho_tile,
        **times,
        "plan_share": times["t_plan_us"] / (times["t_plan_us"] + times["t_exec_us"]),
        "speedup_best": best,
        "speedup_exec": executed,
        "speedup_self": row["t_dense_self_us"] / times["t_total_us"],
        "speedup_self_exec": row["t_dense_self_us"] / times["t_exec_us"],
        # What a method's own runs differ by is noise as well: the verdict takes the wider of the two.
        "verdict": verdict(best, max(band, spread(took[f"{case.name}/total"]))),
        "verdict_exec": verdict(executed, max(band, spread(took[f"{case.name}/execute"]))),
        "exec_only_ideal": 1 / density.rho_tile,
        "floor_us": floor,
        "frac_of_limit": floor / times["t_exec_us"],
    }
