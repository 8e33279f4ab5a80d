"""``bench codes``."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from jobs import config as settings
from jobs.verbs.contract import Answer, Context

if TYPE_CHECKING:
    from jobs.kernels.codes.contract import Encoder


def codes(config: settings.BenchCodes, context: Context) -> Answer:
    """Measure the products of sparse codes, and the encoders training uses."""
    from ingest.models.dtypes import multiplies_bfloat16
    from jobs.kernels.codes.bench import CodesBench, bench_codes, recorded
    from store import open as open_store

    bench = CodesBench(
        width=config.width,
        latents=config.latents,
        k=config.k,
        rows=config.rows,
        repeats=config.repeats,
        controls=config.controls,
        group=config.codes if config.on else None,
        seed=config.seed,
    )
    result = bench_codes(
        bench,
        config.out,
        store=open_store(config.on) if config.on else None,
        encoders=_encoders(),
        step=lambda phase, done, total: context.progress(phase, done, total, unit="cases"),
    )
    table, crossover = result.table("codes"), result.table("crossover")
    lines = [*_crossover_lines(crossover), *_chosen_lines(table), str(result.path)]
    if not multiplies_bfloat16():
        lines.insert(
            0, "bfloat16  left out: this CPU does not multiply it, and emulated it measures nothing"
        )
    answer = {"result": str(result.path), "crossover": _rows(crossover), **_counts(table)}
    if config.record:
        month = datetime.now(UTC).strftime("%Y%m")
        path = recorded(result, {"command": _command(config)}, month).save()
        answer["record"] = str(path)
        lines.append(f"record  {path}")
    return Answer(answer, "\n".join(lines), 0 if all(table["valid"]) else 1)


def _encoders() -> Mapping[str, Mapping[str, Encoder]]:
    """Return the encoders that training uses, for the operations that say what they have to find."""
    import torch

    from ingest.models.dtypes import multiplies_bfloat16
    from jobs.dictionaries.encoders.linear import LinearScores
    from jobs.dictionaries.sparsifiers.batch_topk import batch_topk
    from jobs.dictionaries.sparsifiers.row_topk import row_topk

    def encode(x: Any, w: Any, b: Any, k: int, *, cut: Any, dtype: Any) -> Any:
        return cut(LinearScores(x, w, b, dtype), k)

    return {
        op: {
            f"blocks_{name}": partial(encode, cut=cut, dtype=getattr(torch, name))
            for name in ("float32", *(["bfloat16"] if multiplies_bfloat16() else []))
        }
        for op, cut in {"encode_topk": row_topk, "encode_threshold": batch_topk}.items()
    }


def _command(config: settings.BenchCodes) -> str:
    latents, k = (",".join(map(str, values)) for values in (config.latents, config.k))
    return (
        f"actlake bench codes --width {config.width} --latents {latents} --k {k} --rows {config.rows} "
        f"--repeats {config.repeats} --record"
    )


def _rows(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    names = list(table)
    columns = [_plain(table[name]) for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _plain(column: Any) -> list[Any]:
    found: list[Any] = column.tolist() if hasattr(column, "tolist") else list(column)
    return found


def _crossover_lines(table: Mapping[str, Any]) -> list[str]:
    """Return the crossovers as text."""
    said = {"measured": "at", "below": "below", "above": "above"}
    lines = ["sparse overtakes dense at latents/k:"]
    lines += [
        f"  {row['op']:<16} {row['latents']:>6} latents  {row['dense']:<15} {said[row['bound']]:<5} "
        f"{row['ratio']:>6.1f}   {row['speedup_lowest']:.2f}x at {row['lowest_ratio']:.0f}, "
        f"{row['speedup_highest']:.1f}x at {row['highest_ratio']:.0f} ({row['sparse']})"
        for row in _rows(table)
    ]
    return lines


def _counts(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return what became of the forms that the records choose, against the dense float32 product."""
    chosen = [row for row in _rows(table) if row["chosen"]]
    return {
        "chosen": len(chosen),
        "verdicts": {
            word: sum(row["verdict"] == word for row in chosen)
            for word in ("faster", "no difference", "slower")
        },
        "failed": [
            f"{row['op']} {row['method']}: {row['reason']}"
            for row in _rows(table)
            if not row["valid"]
        ],
    }


def _chosen_lines(table: Mapping[str, Any]) -> list[str]:
    counts = _counts(table)
    words = ", ".join(f"{number} {word}" for word, number in counts["verdicts"].items())
    lines = [f"chosen forms against dense, {counts['chosen']} cases: {words}"]
    return lines + [f"failed its gate: {text}" for text in counts["failed"]]
