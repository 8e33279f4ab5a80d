"""OLMoE: the router's scores, choices and weights, what an edit of each does, and what has no gradient."""

from __future__ import annotations

import pytest
import torch

import store
from ingest.config import HarvestConfig, TokensConfig
from ingest.errors import ModelError, SiteError
from ingest.models import adapt, load, toy
from ingest.models.rules import RULES
from ingest.run import ingest
from ingest.sources import SOURCES
from jobs.runtimes.in_process import InProcess


@pytest.fixture(scope="module")
def model():
    return toy.build("olmoe", seed=5, layers=2)


def batch():
    ids = torch.randint(1, 320, (2, 21), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 13:] = 0
    return ids, mask


def captured(model, *names):
    return adapt(model).capture(*batch(), [f"blocks.1.{name}" for name in names]).values()


def logits_of(model):
    ids, mask = batch()
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=mask, use_cache=False).logits


def test_the_router_is_recomputed_and_the_experts_chosen_by_hand_give_what_the_half_adds(model):
    names = ("resid_mid", "mlp.in", "router.logits", "router.topk", "router.weights", "mlp.out")
    middle, entering, logits, chosen, weights, out = captured(model, *names)
    block = model.model.layers[1]
    with torch.inference_mode():
        assert torch.equal(block.post_attention_layernorm(middle), entering)
        scores = entering @ block.mlp.gate.weight.T
        torch.testing.assert_close(scores, logits, rtol=1e-5, atol=1e-5)
        best = logits.softmax(-1, dtype=torch.float32).topk(3, dim=-1)
        assert torch.equal(best.indices, chosen)
        torch.testing.assert_close(best.values, weights)
        total = torch.zeros_like(out)
        experts = block.mlp.experts
        for place in range(3):
            both = experts.gate_up_proj[chosen[..., place]]
            gate, up = torch.einsum("btid,btd->bti", both, entering).chunk(2, -1)
            inner = torch.nn.functional.silu(gate) * up
            down = experts.down_proj[chosen[..., place]]
            total += torch.einsum("btdi,bti->btd", down, inner) * weights[..., place, None]
        torch.testing.assert_close(total, out, rtol=1e-4, atol=1e-4)


def test_q_and_k_are_behind_a_norm_over_all_heads(model):
    resid, q, k = captured(model, "resid_pre", "attn.q", "attn.k")
    block = model.model.layers[1]
    with torch.inference_mode():
        normal = block.input_layernorm(resid)
        for value, name in ((q, "q"), (k, "k")):
            project, norm = (
                getattr(block.self_attn, f"{name}_{what}") for what in ("proj", "norm")
            )
            assert torch.equal(value.flatten(2), norm(project(normal)))


def test_another_choice_is_another_answer_and_scores_cannot_be_edited(model):
    adapter, plain = adapt(model), logits_of(model)
    with adapter.listen("blocks.1.router.topk", torch.zeros_like):
        assert not torch.equal(logits_of(model), plain)
    with adapter.listen("blocks.1.router.weights", torch.zeros_like):
        (out,) = captured(model, "mlp.out")
    assert not out.any()
    seen = []
    with adapter.listen("blocks.1.router.logits", seen.append):
        assert torch.equal(logits_of(model), plain)
    assert seen[0].shape == (2, 21, 8)
    with (
        adapter.listen("blocks.1.router.logits", torch.zeros_like),
        pytest.raises(SiteError, match=r"site-fixed.*would change nothing"),
    ):
        logits_of(model)
    assert torch.equal(logits_of(model), plain)


def test_gradients_where_there_are_some(model):
    adapter = adapt(model)
    places = [site for site, info in adapter.sites().items() if info.differentiable]
    assert {site for site in adapter.sites() if site not in places} == {
        f"blocks.{layer}.router.{what}" for layer in range(2) for what in ("logits", "topk")
    }

    def objective(logits_BTV):
        return torch.tanh(logits_BTV[:, :13, 5].double()).sum(1)

    def measured(edits):
        handles = [adapter.listen(site, lambda v, d=d: v + d) for site, d in edits.items()]
        found = objective(logits_of(model))
        for handle in handles:
            handle.remove()
        return found

    found, _ = adapter.gradients(*batch(), places, objective)
    for site in ("blocks.0.router.weights", "blocks.0.mlp.in", "blocks.1.mlp.out"):
        along = torch.randn(found[site].shape, generator=torch.Generator().manual_seed(2))
        along[1, 13:] = 0
        along *= found[site] != 0
        up, down = (measured({site: sign * 1e-3 * along}) for sign in (1, -1))
        got = (found[site] * along).flatten(1).sum(1).double()
        assert torch.allclose(got, (up - down) / 2e-3, rtol=5e-2, atol=1e-2), site
    for site in ("blocks.1.router.topk", "blocks.1.router.logits"):
        with pytest.raises(SiteError, match="no-gradient"):
            adapter.gradients(*batch(), [site], objective)


def test_a_rule_is_refused_where_it_could_not_reach():
    adapter = adapt(toy.build("olmoe", layers=1))
    with pytest.raises(ModelError, match="rule-unsupported"):
        adapter.gradients(*batch(), ["embed"], lambda logits: logits.sum((1, 2)), RULES["relp"])


def test_clipped_q_k_and_v_are_refused(model):
    model.config.clip_qkv = 8.0
    try:
        with pytest.raises(ModelError, match=r"unsupported-family.*clip_qkv"):
            adapt(model)
    finally:
        model.config.clip_qkv = None


def test_choices_are_stored_as_the_whole_numbers_they_are(tmp_path):
    folder = toy.save("olmoe", tmp_path / "m")
    (tmp_path / "text.txt").write_text(toy.TEXT)
    sites = ("blocks.1.router.*", "blocks.1.mlp.out")
    ingest(
        tmp_path / "s",
        TokensConfig(
            source=SOURCES.get("text")(paths=(str(tmp_path / "text.txt"),)),
            context=32,
            special_tokens=False,
        ),
        HarvestConfig(model=str(folder), sites=sites, dtype="float32", store_dtype="bfloat16"),
        runtime=InProcess(),
    )
    made = store.open(tmp_path / "s")
    columns = made.groups["acts"].columns
    assert {name: column.dtype for name, column in columns.items()} == {
        "blocks.1.router.logits": "bfloat16",
        "blocks.1.router.topk": "int16",
        "blocks.1.router.weights": "bfloat16",
        "blocks.1.mlp.out": "bfloat16",
    }
    assert made.groups["acts"].recipe["dtypes"]["blocks.1.router.topk"] == "int16"
    ids = made.arrow("tokens").column("token_id").to_numpy().astype("int64")
    ids_BT = torch.zeros(32, 32, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    lengths = made.arrow("sequences").column("rows").to_numpy()
    for at, (low, rows) in enumerate(zip(lengths.cumsum() - lengths, lengths, strict=True)):
        ids_BT[at, :rows] = torch.from_numpy(ids[low : low + rows])
        mask_BT[at, :rows] = 1
    mask_BT[len(lengths) :, 0] = 1
    wanted = adapt(load(folder, dtype="float32").model).capture(ids_BT, mask_BT, list(columns))
    real = mask_BT.bool()
    real[len(lengths) :] = False
    for name in columns:
        got = torch.from_numpy(made.read(name, slice(None)))
        mine = wanted[name][real]
        assert torch.equal(got, mine.short() if "topk" in name else mine.bfloat16().float()), name
