"""Attention problems of odd shapes, and plans over them that no planner would make."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from jobs.kernels.assemble import plan_of
from jobs.kernels.contract import QKV, Tiles
from jobs.kernels.geometry import layout

CASES = {
    "even": {"T": 64},
    "odd": {"T": 53, "H": 4, "G": 2},
    "below a tile": {"T": 7},
    "one token": {"T": 1},
    "batch, grouped heads": {"B": 2, "H": 6, "G": 2, "T": 37},
    "bidirectional": {"T": 45, "S": 45, "causal": False},
    "fewer queries than keys": {"T": 20, "S": 61, "query_start": 41},
    "window": {"T": 60, "window": 21},
    "bidirectional window": {"T": 40, "window": 9, "causal": False},
    "soft cap": {"T": 33, "softcap": 2.0},
    "wide key tiles": {"T": 50, "bq": 8, "bk": 24},
    "wide query tiles": {"T": 50, "bq": 24, "bk": 8},
}


def make(*, B=1, H=4, G=4, T=64, S=None, d=8, causal=True, bq=16, bk=16, seed=0, **rules):
    """Return a problem and its tiles."""
    generator = torch.Generator().manual_seed(seed)
    keys = T if S is None else S
    q = torch.randn(B, H, T, d, generator=generator)
    k, v = (torch.randn(B, G, keys, d, generator=generator) for _ in range(2))
    qkv = QKV(q=q, k=k, v=v, scale=d**-0.5, causal=causal, **rules)
    return qkv, Tiles(bq=bq, bk=bk)


def any_plan(qkv, tiles, *, seed=0, share=0.5, routed=False, plan_heads=None):
    """Return a plan of tiles drawn at random: rows may be empty, tiles routed query by query."""
    generator = torch.Generator().manual_seed(seed)
    shape = layout(qkv.geometry, tiles.bq, tiles.bk).visible.shape
    heads = qkv.heads if plan_heads is None else plan_heads
    kept = torch.rand(qkv.q.shape[0], heads, *shape, generator=generator) < share
    rows = None
    if routed:
        drawn = torch.rand(*kept.shape[:3], tiles.bq, shape[1], generator=generator) < 0.6
        rows = drawn & kept[:, :, :, None]
    return plan_of(qkv, tiles, kept, routed_BPIrJ=rows, stats={"planner": "any", "plan_flops": 0.0})


@pytest.fixture(params=CASES.values(), ids=list(CASES))
def problem(request):
    """Each odd problem with its tiles."""
    return make(**request.param)


@pytest.fixture
def problems():
    """How to make problems and plans."""
    return SimpleNamespace(make=make, any_plan=any_plan)


@pytest.fixture(scope="module", autouse=True)
def _small_ceilings():
    """Measure ceilings on little: no test looks at their size."""
    from jobs.kernels import bench as bench_module
    from jobs.kernels.measure import ceilings

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_module, "ceilings", lambda: ceilings(64, 1 << 16))
        yield


@pytest.fixture(scope="module")
def urls(tmp_path_factory):
    """A store of attention sites of a toy Llama and one of a toy BERT."""
    from ingest.models import toy
    from jobs import cli

    folder = tmp_path_factory.mktemp("bench")
    corpus = folder / "corpus"
    corpus.mkdir()
    for number in range(3):
        (corpus / f"{number}.txt").write_text(toy.TEXT[number * 40 :] * 2)
    found = {}
    for family in ("llama", "bert"):
        model = toy.save(family, folder / family, heads=4, width=32, positions=64)
        url = folder / f"{family}-store"
        words = ["ingest", "--model", model, "--corpus", corpus, "--out", url, "--context", "44"]
        words += ["--sites", "blocks.*.attn.*", "--json"]
        assert cli.main([str(word) for word in words]) == 0
        found[family] = url
    return found
