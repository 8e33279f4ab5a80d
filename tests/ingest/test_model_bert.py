"""BERT: every site against the family's own modules, called one by one, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from ingest.errors import ModelError
from ingest.models import adapt, attend, bundled, load, resolve_sites, toy

LAYERS, WIDTH, HEADS, HEAD, INNER = 3, 32, 4, 8, 128


@pytest.fixture(params=["BertModel", "BertForMaskedLM", "BertForSequenceClassification"])
def bare_or_headed(request):
    return toy.build("bert", seed=3, layers=LAYERS, architecture=request.param)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def model(request, bare_or_headed):
    return bare_or_headed.to(request.param)


@pytest.fixture(params=["full", "padded", "one"])
def batch(request):
    ids = torch.randint(5, 320, (3, 21), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if request.param == "padded":
        mask[0, 9:], mask[2, 17:] = 0, 0
        ids = ids * mask
    return (ids[:1], mask[:1]) if request.param == "one" else (ids, mask)


@torch.no_grad()
def by_hand(model, ids, mask):
    """Every site from the modules of `BertModel`, in the order its paper describes them."""
    base = model.base_model
    embedding = base.embeddings
    sites = {"embed": embedding.word_embeddings(ids)}
    positions = torch.arange(ids.shape[1])[None]
    x = sites["embed"] + embedding.token_type_embeddings(torch.zeros_like(ids))
    x = embedding.LayerNorm(x + embedding.position_embeddings(positions))
    size, length = ids.shape
    seen = None if mask.all() else mask.bool()[:, None, None, :].expand(-1, 1, length, -1)
    for number, layer in enumerate(base.encoder.layer):
        at = f"blocks.{number}."
        own, out = layer.attention.self, layer.attention.output
        q, k, v = (m(x).view(size, length, HEADS, HEAD) for m in (own.query, own.key, own.value))
        z = scaled_dot_product_attention(
            *(t.transpose(1, 2) for t in (q, k, v)), attn_mask=seen
        ).transpose(1, 2)
        attn = out.dense(z.reshape(size, length, WIDTH))
        middle = out.LayerNorm(attn + x)
        pre = layer.intermediate.dense(middle)
        post = torch.nn.functional.gelu(pre)
        mlp = layer.output.dense(post)
        after = layer.output.LayerNorm(mlp + middle)
        named = {"resid_pre": x, "attn.q": q, "attn.k": k, "attn.v": v, "attn.z": z}
        named |= {"attn.out": attn, "resid_mid": middle, "mlp.in": middle, "mlp.pre": pre}
        named |= {"mlp.post": post, "mlp.out": mlp, "resid_post": after}
        sites |= {at + name: value for name, value in named.items()}
        x = after
    return sites


def test_every_site_is_the_models_own_bit_for_bit(model, batch):
    adapter = adapt(model)
    truth = by_hand(model, *batch)
    assert list(truth) == list(adapter.sites())
    got = adapter.capture(*batch, list(adapter.sites()))
    for site, value in truth.items():
        assert got[site].dtype == model.dtype
        assert torch.equal(got[site], value), site


def test_residuals_are_the_hidden_states_of_transformers(model, batch):
    ids, mask = batch
    got = adapt(model).capture(ids, mask, ["blocks.0.resid_pre", *residuals(LAYERS)])
    with torch.no_grad():
        states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    assert len(states) == LAYERS + 1
    for value, state in zip(got.values(), states, strict=True):
        assert torch.equal(value, state)


def residuals(layers):
    return [f"blocks.{layer}.resid_post" for layer in range(layers)]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_attention_recomputed_from_q_k_v_is_z(dtype, bound, batch):
    ids, mask = batch
    adapter = adapt(toy.build("bert", seed=3, layers=LAYERS).to(dtype))
    for layer in range(LAYERS):
        names = [f"blocks.{layer}.attn.{part}" for part in "qkvz"]
        q, k, v, z = adapter.capture(ids, mask, names).values()
        again, lse = attend(q, k, v, adapter.attention(layer), mask, block=8)
        assert torch.isfinite(lse).all()
        assert (again - z.float()).norm() <= bound * z.float().norm()


def test_what_the_family_declares():
    adapter = adapt(toy.build("bert", layers=LAYERS))
    assert (adapter.family, adapter.causal, adapter.layers) == ("bert", False, LAYERS)
    assert (adapter.width, adapter.max_positions) == (WIDTH, 64)
    sites = adapter.sites()
    assert sites["blocks.1.attn.z"].shape == (HEADS, HEAD)
    assert sites["blocks.1.mlp.pre"].shape == (INNER,)
    assert "LayerNorm" in sites["blocks.1.resid_post"].note
    assert "LayerNorm" in sites["blocks.1.resid_mid"].note
    spec = adapter.attention(0)
    assert (spec.heads, spec.kv_heads, spec.head_width) == (HEADS, HEADS, HEAD)
    assert (spec.scale, spec.causal) == (HEAD**-0.5, False)


@pytest.mark.parametrize(
    "field", [{"position_embedding_type": "relative_key"}, {"chunk_size_feed_forward": 8}]
)
def test_layouts_that_would_load_wrongly_are_refused(field):
    model = toy.build("bert")
    for name, value in field.items():
        setattr(model.config, name, value)
    with pytest.raises(ModelError, match="unsupported-family"):
        adapt(model)


def test_a_causal_bert_declares_causal_attention(batch):
    ids, mask = batch
    config = toy.family_of("bert").toy(vocab=320, layers=2, width=32, heads=4, positions=64)
    config.is_decoder = True
    from transformers import BertLMHeadModel

    adapter = adapt(BertLMHeadModel(config).eval())
    q, k, v, z = adapter.capture(ids, mask, [f"blocks.1.attn.{p}" for p in "qkvz"]).values()
    again, _ = attend(q, k, v, adapter.attention(1), mask)
    assert adapter.causal
    assert (again - z)[mask.bool()].norm() <= 1e-5 * z.norm()


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_the_bundled_model_agrees_with_transformers(dtype, bound):
    loaded = load(bundled(), dtype=dtype)
    text = ["A store is one wide table.", "A row is a token of a text that a model has read once."]
    batch = loaded.tokenizer(text, padding=True, return_tensors="pt")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    names = ["blocks.3.resid_post", *(f"blocks.2.attn.{part}" for part in "qkvz")]
    got = loaded.adapter.capture(ids, mask, names)
    with torch.no_grad():
        states = loaded.model(**batch, output_hidden_states=True).hidden_states
    assert torch.equal(got["blocks.3.resid_post"], states[4])
    _, q, k, v, z = got.values()
    again, _ = attend(q, k, v, loaded.adapter.attention(2), mask)
    assert (again - z.float()).norm() <= bound * z.float().norm()
    assert resolve_sites(["@50%"], loaded.adapter) == ["blocks.3.resid_post"]
    assert loaded.adapter.sites()["blocks.0.attn.q"].shape == (12, 32)
