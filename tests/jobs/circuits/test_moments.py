"""``moments`` against float64 NumPy, in every stored dtype."""

import numpy as np
import pytest
import torch

from ingest.errors import SiteError
from jobs.circuits import STATISTICS


@pytest.fixture(scope="module")
def truth(oracle):
    return oracle("statistics").moments


def run(statistic, facts, blocks):
    partial = statistic.empty(facts)
    for mine in blocks.values():
        for block in mine:
            partial.update(block)
    return partial.finalize()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tables_are_what_numpy_says(toy_facts, toy_blocks, truth, dtype):
    sites = ("blocks.1.resid_post", "blocks.0.attn.k")
    blocks = toy_blocks(toy_facts, sites, dtype=dtype)
    found = run(STATISTICS.get("moments")(sites=sites), toy_facts, blocks)
    at = 0
    for number, site in enumerate(sites):
        x = torch.cat([b.sites[site].double() for mine in blocks.values() for b in mine]).numpy()
        wanted = truth(x)
        width = len(wanted["mean"])
        rows, here = found["sites"], slice(at, at + width)
        at += width
        features = {name: np.asarray(values)[here] for name, values in found["features"].items()}
        assert set(features["site"]) == {site}
        assert features["feature"].tolist() == list(range(width))
        for name in ("mean", "variance"):
            np.testing.assert_allclose(features[name], wanted[name], rtol=1e-10, atol=1e-13)
        for name in ("minimum", "maximum"):
            assert np.array_equal(features[name], wanted[name])
        assert (rows["site"][number], rows["rows"][number]) == (site, len(x))
        assert rows["features"][number] == width
        rms = wanted["rms"]
        for name, value in {"mean": rms.mean(), "std": rms.std()}.items():
            assert rows[f"rms_{name}"][number] == pytest.approx(value, rel=1e-10)
        for name, value in {"minimum": rms.min(), "maximum": rms.max()}.items():
            assert rows[f"rms_{name}"][number] == pytest.approx(value, rel=1e-14)
        assert rows["std"][number] == pytest.approx(np.sqrt(wanted["variance"].mean()), rel=1e-10)


def test_planted_rows_have_their_closed_forms(toy_facts, toy_block):
    block = toy_block(toy_facts, ("blocks.0.resid_post",), [4, 4])
    x = block.sites["blocks.0.resid_post"]
    x[:] = torch.tensor([[1.0], [-1.0]] * 4) * torch.arange(16)
    found = run(STATISTICS.get("moments")(sites=("blocks.0.resid_post",)), toy_facts, {0: [block]})
    assert np.array_equal(found["features"]["mean"], np.zeros(16))
    assert np.array_equal(found["features"]["variance"], np.arange(16.0) ** 2)
    assert found["sites"]["rms_mean"][0] == np.sqrt((np.arange(16.0) ** 2).mean())
    assert found["sites"]["rms_std"][0] == 0


def test_without_names_it_takes_what_leaves_each_block(toy_facts):
    statistic = STATISTICS.get("moments")()
    assert statistic.requires(toy_facts) == ("blocks.0.resid_post", "blocks.1.resid_post")


def test_a_site_the_model_lacks_is_refused(toy_facts):
    with pytest.raises(SiteError, match=r"no site 'blocks\.9\.resid_post'"):
        STATISTICS.get("moments")(sites=("blocks.9.resid_post",)).empty(toy_facts)
