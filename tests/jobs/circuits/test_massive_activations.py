"""``massive_activations``: the closed form of planted rows (F0), and everything against float64 NumPy."""

import numpy as np
import pytest
import torch

from ingest.errors import SiteError
from jobs.circuits import STATISTICS
from jobs.errors import JobError

SITE = "blocks.{}.resid_post"


@pytest.fixture(scope="module")
def truth(oracle):
    return oracle("statistics")


def run(statistic, facts, blocks):
    partial = statistic.empty(facts)
    for block in blocks:
        partial.update(block)
    return partial.finalize()


def column(table, name, **where):
    keep = np.ones(len(table[name]), bool)
    for key, value in where.items():
        keep &= table[key] == value
    return np.asarray(table[name])[keep].tolist()


def test_of_normal_rows_1500_passes_and_600_fails(toy_facts, toy_block):
    """N(0, 1) has median |h| = 0.6745, so the bound is 674.5: spec F0 of 4.2."""
    sites = [SITE.format(0), SITE.format(1)]
    block = toy_block(toy_facts, sites, [400, 400, 400])
    x = block.sites[SITE.format(1)]
    x[700, 3], x[0, 5] = -1500.0, 600.0
    found = run(STATISTICS.get("massive_activations")(), toy_facts, [block])
    median = column(found["layers"], "median", layer=1)[0]
    assert median == pytest.approx(0.6745, rel=0.02)
    assert column(found["layers"], "hits") == [0, 1]
    assert column(found["dims"], "dim") == [3]
    assert column(found["dims"], "layer") == [1]
    assert column(found["top"], "value", layer=1)[:2] == [-1500, 600]
    assert column(found["top"], "dim", layer=1)[:2] == [3, 5]
    rows = column(found["top"], "row", layer=1)[:2]
    assert rows == [int(block.row_ids[700]), int(block.row_ids[0])]
    assert column(found["top"], "token_id", layer=1)[0] == block.tokens["token_id"][700]
    assert column(found["top"], "pos", layer=1)[0] == 300
    assert column(found["layers"], "top1", layer=1) == [1500]
    assert column(found["layers"], "top1_over_median", layer=1)[0] == 1500 / median


def test_both_conditions_are_needed_and_the_ratio_alone_is_told(toy_facts, toy_block):
    """Rows 0.01 large: 20 is 2000 times the median and below 100; the small models' form."""
    block = toy_block(toy_facts, [SITE.format(0)], [50])
    x = block.sites[SITE.format(0)]
    x[:] = 0.01
    x[7, 2], x[9, 4] = 20.0, 150.0
    found = run(STATISTICS.get("massive_activations")(layers=(0,)), toy_facts, [block])
    assert column(found["layers"], "hits") == [1]
    assert column(found["layers"], "ratio_hits") == [2]
    assert column(found["dims"], "ratio_hits", dim=2) == [1]
    assert column(found["dims"], "hits", dim=2) == [0]


@pytest.mark.parametrize("bound", [1000.0, 1001.0])
def test_the_bounds_are_inclusive_for_the_ratio_and_exclusive_for_the_magnitude(
    toy_facts, toy_block, bound
):
    block = toy_block(toy_facts, [SITE.format(0)], [20])
    block.sites[SITE.format(0)][:] = 1.0
    block.sites[SITE.format(0)][3, 3] = 1000.0
    of = STATISTICS.get("massive_activations")
    found = run(of(layers=(0,), ratio=bound), toy_facts, [block])
    assert column(found["layers"], "hits") == [int(bound == 1000)]
    found = run(of(layers=(0,), absolute=1000.0), toy_facts, [block])
    assert column(found["layers"], "hits") == [0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("absolute", "ratio"), [(0.0, 1.5), (2.0, 2.0), (1.0, 3.0)])
def test_everything_is_what_numpy_says(toy_facts, toy_blocks, truth, dtype, absolute, ratio):
    sites = [SITE.format(layer) for layer in range(2)]
    blocks = toy_blocks(toy_facts, sites, dtype=dtype)
    flat = [block for mine in blocks.values() for block in mine]
    statistic = STATISTICS.get("massive_activations")(absolute=absolute, ratio=ratio, top=9)
    found = run(statistic, toy_facts, flat)
    for layer, site in enumerate(sites):
        x = [b.sites[site].double().numpy() for b in flat]
        sequences = [
            v[low:high]
            for v, b in zip(x, flat, strict=True)
            for low, high in zip(b.bounds[:-1], b.bounds[1:], strict=True)
        ]
        hits, ratio_hits = truth.massive(sequences, absolute, ratio)
        assert column(found["layers"], "hits", layer=layer) == [hits.sum()]
        assert column(found["layers"], "ratio_hits", layer=layer) == [ratio_hits.sum()]
        for dim in np.flatnonzero(ratio_hits):
            assert column(found["dims"], "hits", layer=layer, dim=dim) == [hits[dim]]
            assert column(found["dims"], "ratio_hits", layer=layer, dim=dim) == [ratio_hits[dim]]
        ids = np.concatenate([b.row_ids for b in flat])
        wanted = truth.greatest(np.concatenate(x), ids, 9)
        got = zip(
            *(column(found["top"], name, layer=layer) for name in ("row", "dim", "value")),
            strict=True,
        )
        assert list(got) == [(row, dim, value) for _, row, dim, value in wanted]
        every = np.sort(np.abs(np.concatenate(x)).ravel())
        median = every[(every.size - 1) // 2]
        assert column(found["layers"], "median", layer=layer)[0] == pytest.approx(
            median, rel=1 / 128
        )


def test_sequences_of_zeros_have_no_hits(toy_facts, toy_block):
    block = toy_block(toy_facts, [SITE.format(0)], [10, 10])
    block.sites[SITE.format(0)][:] = 0
    found = run(STATISTICS.get("massive_activations")(layers=(0,)), toy_facts, [block])
    assert column(found["layers"], "ratio_hits") == [0]
    assert column(found["layers"], "median")[0] == pytest.approx(0, abs=1e-37)


@pytest.mark.parametrize("bad", [{"absolute": -1.0}, {"ratio": 0.0}, {"top": 0}, {"top": 10**6}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(JobError, match="bad-number"):
        STATISTICS.get("massive_activations")(**bad)


@pytest.mark.parametrize("layer", [-1, 2])
def test_a_block_that_is_not_there_is_refused(toy_facts, layer):
    with pytest.raises(SiteError, match=r"no block .* blocks 0 to 1"):
        STATISTICS.get("massive_activations")(layers=(0, layer)).requires(toy_facts)


def test_an_infinity_is_no_massive_activation(toy_facts, toy_block):
    block = toy_block(toy_facts, [SITE.format(0)], [50])
    x = block.sites[SITE.format(0)]
    x[7, 2], x[9, 4] = torch.inf, 2000.0
    found = run(STATISTICS.get("massive_activations")(layers=(0,)), toy_facts, [block])
    assert column(found["layers"], "top1") == [2000]
    assert column(found["layers"], "hits") == [1]
    assert column(found["top"], "value", layer=0)[0] == 2000
