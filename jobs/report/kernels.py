"""The sections about kernels: what sparse attention misses and takes, and where sparse codes overtake dense."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.report import numbers, plots
from jobs.report.markup import Html, details, element, figure, join, section, table

if TYPE_CHECKING:
    from jobs.report.tables import Table

REAL, ORACLE, STORED = "real", "oracle", "stored length"
_GAIN = "mass_recall"


def attention(key: str, found: Table, gains: Table, label: Any) -> Html:
    """Return recall against density with the oracle as envelope, real against controls, and every figure."""
    blocks = []
    for layer in sorted(set(found["layer"].tolist())):
        mine = _where(found, layer=layer, valid=True)
        drawings = [
            _recall(f"{key}-{layer}-recall", _where(mine, control=REAL)),
            *_gains(f"{key}-{layer}-gain", _where(gains, layer=layer, metric=_GAIN)),
        ]
        title = element("h3", f"Layer {layer}, {_lengths(mine)}")
        blocks += [title, element("div", *drawings, class_="figures two"), _planners(layer, mine)]
    refused = int((~found["valid"]).sum())
    said = element(
        "p",
        "A plan keeps some tiles of keys for each tile of queries. Mass recall is the share of the exact attention "
        "that the kept keys hold; density is the share of the visible tiles a plan multiplies. The oracle knows the "
        "exact mass: no plan of whole tiles with as many a row recalls more; plans that choose query by query may. "
        "Structure gain is recall on the stored tensors less recall on a control that lacks their structure, with "
        "95 % intervals over documents. Nothing is claimed beyond the stored length, nor beyond the one the model "
        f"was trained at. {refused} of {len(found['valid'])} measurements were refused or failed their check.",
        class_="note",
    )
    return section(key, join(["Sparse attention", label]), said, *blocks)


def _where(found: Table, **wanted: Any) -> Table:
    """Return the rows whose columns have some values."""
    count = len(next(iter(found.values())))
    keep = np.ones(count, bool)
    for name, value in wanted.items():
        keep &= np.asarray(found[name]) == value
    at = np.flatnonzero(keep)
    return {
        name: values[at] if isinstance(values, np.ndarray) else [values[i] for i in at]
        for name, values in found.items()
    }


def _lengths(found: Table) -> str:
    lengths = sorted(set(found["Nq"].tolist()))
    if not lengths:
        return "no valid rows"
    ends = lengths[:1] if len(lengths) == 1 else [lengths[0], lengths[-1]]
    return f"sequences of {' to '.join(map(numbers.count, ends))} tokens"


def _means(found: Table, method: str, *names: str) -> list[list[float]]:
    """Return means over sequences of some columns of one planner, by budget ascending."""
    mine = _where(found, method=method)
    budgets = sorted(set(mine["budget"].tolist()))
    return [
        [float(np.mean(mine[name][mine["budget"] == budget])) for budget in budgets]
        for name in names
    ]


def _methods(found: Table) -> list[str]:
    return sorted(set(found["method"]), key=lambda name: (name != ORACLE, name))


def _recall(name: str, found: Table) -> Html:
    curves = []
    for method in _methods(found):
        density, recall = _means(found, method, "rho_tile", "mass_recall")
        curves.append(plots.Curve(label=method, x=density, y=recall, bound=method == ORACLE))
    chart = plots.Chart(
        name=name, alt="Mass recall against density, by planner", curves=curves, x_label="density"
    )
    return figure(
        Html(plots.chart(chart)), "Mass recall against density, stored tensors; dashed: the oracle"
    )


def _gains(name: str, found: Table) -> list[Html]:
    """Return the gain in recall over each control against the budget, a chart for each planner but the oracle."""
    methods = [method for method in _methods(found) if method != ORACLE] or _methods(found)
    return [_gain(f"{name}-{method}", method, _where(found, method=method)) for method in methods]


def _gain(name: str, method: str, found: Table) -> Html:
    curves = []
    for control in sorted(set(found["control"])):
        mine = _where(found, control=control)
        order = np.argsort(mine["budget"])
        x, gain, low, high = (mine[n][order] for n in ("budget", "gain", "low", "high"))
        curves.append(plots.Curve(label=control, x=x, y=gain, low=low, high=high))
    chart = plots.Chart(
        name=name,
        alt=f"Gain of {method} in mass recall over controls against the budget",
        curves=curves,
        x_label="budget (density)",
        zero=0.0,
    )
    return figure(
        Html(plots.chart(chart)), f"Structure gain in recall of {method}, real less control"
    )


def _planners(layer: int, found: Table) -> Html:
    lines = []
    for method in _methods(found):
        for control in sorted(set(found["control"]), key=lambda name: (name != REAL, name)):
            mine = _where(found, control=control)
            names = ("budget", "rho_tile", "rho_token", "mass_recall", "regret", "out_rel_err")
            lines += [
                (method, control, *(numbers.decimal(v, trim=False) for v in values))
                for values in zip(*_means(mine, method, *names), strict=True)
            ]
    head = (
        *("planner", "tensors", "budget", "density, tiles", "density, pairs"),
        *("mass recall", "regret", "output error"),
    )
    said = f"Layer {layer}: means over sequences"
    return details("Every planner, budget and control", table(said, head, lines, text_columns=2))


def timing(key: str, found: Table, fidelity: Table, label: Any) -> Html:
    """Return error against time, and what planning and executing take beside dense attention, losses shown."""
    layers = sorted(set(found["layer"].tolist()))
    drawings = [
        _error(
            f"{key}-{layer}",
            _where(fidelity, layer=layer),
            _where(found, layer=layer, claim=STORED),
        )
        for layer in layers
    ]
    grid = element("div", *drawings, class_="figures two")
    lines = [
        (
            found["method"][i],
            found["claim"][i],
            str(found["layer"][i]),
            numbers.decimal(found["rho_tile"][i], trim=False),
            numbers.count(found["Nq"][i]),
            _micro(found["t_plan_us"][i]),
            _micro(found["t_exec_us"][i]),
            _micro(found["t_dense_best_us"][i]),
            numbers.decimal(found["speedup_best"][i], trim=False),
            "± " + numbers.share(found["noise_band"][i]),
            found["verdict"][i] or "–",
        )
        for i in range(len(found["method"]))
        if found["valid"][i]
    ]
    head = (
        *("planner", "claim", "layer", "density", "tokens", "plan", "execute", "dense", "speed-up"),
        *("noise", "verdict"),
    )
    spoilt = int((~found["valid"]).sum())
    said = element(
        "p",
        "Medians of interleaved runs on this machine. Dense is PyTorch's own attention, timed twice: speed-ups "
        "within the noise of 1 are no difference (a planner's own spread counts, too). Below 1 the plan costs more than "
        f"it saves. {spoilt} of {len(found['valid'])} were not timed: their results failed a check or were refused.",
        class_="note",
    )
    return section(
        key,
        join(["Attention times", label]),
        said,
        grid,
        table("Times", head, lines, text_columns=2),
    )


def _error(name: str, fidelity: Table, times: Table) -> Html:
    """Return one point a planner and budget: the error of its output against plan and execution together."""
    curves = []
    for method in _methods(times):
        mine = _where(times, method=method, valid=True)
        real = _where(fidelity, method=method, control=REAL, valid=True)
        errors = [
            float(np.mean(real["out_rel_err"][real["budget"] == budget]))
            if np.any(real["budget"] == budget)
            else np.nan
            for budget in mine["budget"]
        ]
        curves.append(plots.Curve(label=method, x=mine["t_total_us"] / 1e3, y=errors))
    chart = plots.Chart(
        name=name,
        alt="Relative error of the output against time for plan and execution, by planner",
        curves=curves,
        x_label="plan and execute, ms",
    )
    layer = f", layer {times['layer'][0]}" if len(times["layer"]) else ""
    return figure(Html(plots.chart(chart)), f"Output error against time{layer}")


def _micro(value: float) -> str:
    return numbers.duration(value / 1e6)


def codes(key: str, found: Table, crossover: Table, label: Any) -> Html:
    """Return where sparse products of codes overtake dense ones, and every form that was measured."""
    lines = [
        (
            crossover["op"][i],
            crossover["sparse"][i],
            crossover["dense"][i],
            numbers.count(crossover["latents"][i]),
            {"below": "< ", "above": "> "}.get(crossover["bound"][i], "")
            + numbers.decimal(crossover["ratio"][i]),
        )
        for i in range(len(crossover["op"]))
    ]
    head = ("product", "sparse form", "dense form", "latents", "overtakes at latents / k")
    said = element(
        "p",
        "Products of sparse codes, each checked against float64 before it is timed. The ratio is that of latents to "
        "active latents of a row: sparse forms touch only the active ones, dense forms all. The verdict is against the "
        "dense product of equal precision; the fastest dense one may round its factors to bfloat16.",
        class_="note",
    )
    forms = [
        (
            found["op"][i],
            found["method"][i],
            found["control"][i],
            numbers.count(found["latents"][i]),
            numbers.decimal(found["pairs"][i] / found["rows"][i]),
            _micro(found["t_total_us"][i]),
            numbers.decimal(found["speedup_best"][i], trim=False),
            numbers.decimal(found["speedup_fastest_dense"][i], trim=False),
            ("chosen, " if found["chosen"][i] else "") + (found["verdict"][i] or "–"),
        )
        for i in range(len(found["op"]))
        if found["valid"][i]
    ]
    forms_head = (
        *("product", "form", "codes", "latents", "k", "time"),
        *("over dense", "over fastest dense", "verdict"),
    )
    return section(
        key,
        join(["Sparse codes", label]),
        said,
        table("Crossover", head, lines, text_columns=3),
        details("Every form", table("Forms", forms_head, forms, text_columns=3)),
    )
