"""The demo's last part: sparse kernels on what the stores hold, beside controls and dense baselines."""

from __future__ import annotations

from pathlib import Path

from jobs.kernels.bench import bench_attention
from jobs.kernels.codes.bench import CodesBench, bench_codes
from jobs.kernels.settings import AttentionBench
from jobs.progress import Progress
from jobs.results import Result
from store import Store

DENSITIES = (0.125, 0.25, 0.5)
SEQUENCES = 8
ROWS_OF_A_SEQUENCE = 2048
"""Rows in the store for each sequence measured, up to ``SEQUENCES``: a small demo measures few."""


def attention(store: Store, layers: tuple[int, ...], out: Path, progress: Progress) -> Result:
    """Measure planners on the attention a store keeps."""
    rows = store.coverage["tokens"].rows
    return bench_attention(
        store,
        AttentionBench(
            layers=layers,
            densities=DENSITIES,
            sequences=min(SEQUENCES, max(2, rows // ROWS_OF_A_SEQUENCE)),
            repeats=5,
        ),
        out,
        step=lambda phase, done, total: progress(f"bench {phase}", done, total, unit="steps"),
    )


def codes(store: Store, group: str, out: Path, progress: Progress) -> Result:
    """Measure products of codes, on the store's own and on redrawn ones."""
    return bench_codes(
        CodesBench(latents=(4096,), k=(8, 32, 128, 512), repeats=5, group=group),
        out,
        store=store,
        step=lambda phase, done, total: progress(phase, done, total, unit="cases"),
    )
