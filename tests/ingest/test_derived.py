"""Derived columns against what the model itself says: its own attention weights, its own logits, its own rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import store
from ingest.config import HarvestConfig, TokensConfig
from ingest.errors import IngestError, ModelError, SiteError
from ingest.models import adapt, load, toy
from ingest.models.derived import PREDICTED, PROBE, TOP, Derived
from ingest.run import ingest, ingest_into
from ingest.sources import SOURCES
from jobs.runtimes.in_process import InProcess

ATTENDING = [name for name in toy.reading() if name != "mamba"]
CAUSAL = [name for name in toy.reading() if name not in ("bert", "clip_text_model")]
T = 150
"""Longer than the block of queries that is looked at at once."""


def batch(length=45):
    ids = torch.randint(5, 200, (2, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, length - 15 :] = 0
    return ids, mask


@pytest.mark.parametrize("family", ATTENDING)
def test_what_is_said_of_attention_is_so_of_the_models_own_weights(family):
    model = toy.build(family, seed=3, layers=2, positions=T)
    model.set_attn_implementation("eager")
    ids, mask = batch(T)
    with torch.inference_mode():
        weights = model(input_ids=ids, attention_mask=mask, output_attentions=True).attentions[1]
    whats = ("entropy", "top", "top_pos", "to_first", "received", "lse", "max_score")
    names = [f"stat.{what}.blocks.1.attn" for what in whats]
    got = dict(zip(whats, Derived(adapt(model)).capture(ids, mask, names).values(), strict=True))
    seen = mask.bool()
    w_BTHS = weights.double().transpose(1, 2) * seen[:, None, None, :]
    logs = torch.where(w_BTHS > 0, w_BTHS.clamp_min(1e-300).log(), 0.0)
    wanted = {
        "entropy": -(w_BTHS * logs).sum(-1),
        "top": w_BTHS.amax(-1),
        "to_first": w_BTHS[..., 0],
    }
    for what, value in wanted.items():
        torch.testing.assert_close(got[what][seen].double(), value[seen], rtol=1e-4, atol=1e-5)
    at = got["top_pos"][..., None].long()
    torch.testing.assert_close(
        w_BTHS.gather(-1, at)[..., 0][seen], wanted["top"][seen], atol=1e-5, rtol=1e-4
    )
    # the log-sum-exp is what makes weights of scores
    torch.testing.assert_close(
        (got["max_score"] - got["lse"]).exp()[seen].double(),
        wanted["top"][seen],
        rtol=1e-4,
        atol=1e-5,
    )
    spec = adapt(model).attention(1)
    for one in range(2):
        real = torch.nonzero(seen[one])[:, 0]
        for key in real.tolist():
            reach = spec.window or T
            queries = [
                q for q in real.tolist() if abs(q - key) < reach and (q >= key or not spec.causal)
            ]
            mean = w_BTHS[one, queries, :, key].mean(0)
            torch.testing.assert_close(
                got["received"][one, key].double(), mean, rtol=1e-4, atol=1e-6
            )


@pytest.mark.parametrize("family", ATTENDING)
def test_whole_patterns_are_the_models_own_weights(family):
    model = toy.build(family, seed=3, layers=2)
    model.set_attn_implementation("eager")
    ids, mask = batch()
    with torch.inference_mode():
        weights = model(input_ids=ids, attention_mask=mask, output_attentions=True).attentions[1]
    got = Derived(adapt(model)).capture(ids, mask, ["pattern.blocks.1.attn"])
    (pattern,) = got.values()
    seen = mask.bool()
    assert pattern.shape[2:] == (weights.shape[1], PROBE)
    torch.testing.assert_close(
        pattern[seen][..., : ids.shape[1]], weights.transpose(1, 2)[seen], rtol=1e-4, atol=1e-5
    )
    assert (pattern[..., ids.shape[1] :] == 0).all()


@pytest.mark.parametrize("family", CAUSAL)
def test_what_is_predicted(family):
    model = toy.build(family, seed=3, layers=1)
    ids, mask = batch()
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.double()
    got = Derived(adapt(model)).capture(ids, mask, list(PREDICTED))
    seen = mask.bool()
    logs = logits.log_softmax(-1)
    torch.testing.assert_close(got["logits.lse"].double()[seen], logits.logsumexp(-1)[seen])
    entropy = -(logs.exp() * logs).sum(-1)
    torch.testing.assert_close(
        got["logits.entropy"].double()[seen], entropy[seen], rtol=1e-5, atol=1e-5
    )
    for one, length in enumerate(mask.sum(1).tolist()):
        mine, text = logits[one, : length - 1], ids[one, 1:length]
        label = mine[torch.arange(length - 1), text]
        torch.testing.assert_close(got["logits.label"][one, : length - 1].double(), label)
        assert got["logits.label"][one, length - 1].isnan()
        loss = torch.nn.functional.cross_entropy(mine, text, reduction="none")
        torch.testing.assert_close(got["loss"][one, 1:length].double(), loss, rtol=1e-5, atol=1e-5)
        assert got["loss"][one, 0].isnan()


@pytest.mark.parametrize("family", toy.reading())
def test_norms_and_largest_entries(family):
    adapter = adapt(toy.build(family, layers=2))
    sites = [site for site, info in adapter.sites().items() if not info.dtype]
    names = [f"stat.{what}.{site}" for site in sites for what in ("norm", "top", "top_dim")]
    got = Derived(adapter).capture(*batch(), [*names, *sites])
    for site in sites:
        value = got[site].numpy().astype(np.float64)
        norm, top, at = (got[f"stat.{what}.{site}"].numpy() for what in ("norm", "top", "top_dim"))
        np.testing.assert_allclose(norm, np.sqrt((value**2).sum(-1)), rtol=1e-5)
        largest = -np.sort(-np.abs(value), axis=-1)[..., :TOP]
        np.testing.assert_array_equal(np.abs(top), largest.astype(np.float32))
        np.testing.assert_array_equal(np.take_along_axis(value, at, -1).astype(np.float32), top)


def test_a_forward_for_sites_alone_stops_as_before():
    model = toy.build("llama", layers=2)
    ran = []
    model.lm_head.register_forward_hook(lambda *_: ran.append("head"))
    derived = Derived(adapt(model))
    derived.capture(*batch(), ["stat.norm.blocks.0.resid_post"])
    assert ran == []
    derived.capture(*batch(), ["loss", "blocks.0.resid_post", "stat.norm.blocks.0.resid_post"])
    assert ran == ["head"]


@pytest.mark.parametrize(
    ("family", "pattern", "known"),
    [
        ("llama", "stat.magic.blocks.0.attn", r"stat\.\{lse,entropy"),
        ("llama", "stat.norm.blocks.7.resid_post", "2 blocks"),
        ("mamba", "stat.lse.blocks.0.attn", "loss"),
        ("bert", "loss", "stat.{norm,top,top_dim}.SITE"),
    ],
)
def test_what_there_is_none_of_is_refused_in_few_words(family, pattern, known):
    with pytest.raises(SiteError, match="unknown-site") as caught:
        Derived(adapt(toy.build(family))).resolve([pattern])
    assert len(str(caught.value)) < 600
    assert known.replace("\\", "") in str(caught.value)


def harvest(tmp_path, **settings):
    (tmp_path / "text.txt").write_text(toy.TEXT * 3)
    source = SOURCES.get("text")(paths=(str(tmp_path / "text.txt"),))
    tokens = TokensConfig(source=source, context=32, part_rows=256, special_tokens=False)
    config = HarvestConfig(model=str(tmp_path / "m"), dtype="float32", batch=8, **settings)
    ingest(tmp_path / "s", tokens, config, runtime=InProcess())
    return store.open(tmp_path / "s")


def test_they_are_columns_like_any_other(tmp_path):
    toy.save("llama", tmp_path / "m")
    sites = ("blocks.1.resid_post", "stat.*.blocks.1.attn", "stat.norm.blocks.1.resid_post", "loss")
    made = harvest(tmp_path, sites=(*sites, "logits.label"))
    columns = made.groups["acts"].columns
    assert {name: (column.dtype, column.shape) for name, column in columns.items()} == {
        "blocks.1.resid_post": ("float32", (32,)),
        "stat.norm.blocks.1.resid_post": ("float32", ()),
        "loss": ("float32", ()),
        "logits.label": ("float32", ()),
        **{
            f"stat.{what}.blocks.1.attn": ("int32" if what == "top_pos" else "float32", (4,))
            for what in ("lse", "entropy", "max_score", "top", "top_pos", "to_first", "received")
        },
    }
    first = made.arrow("tokens").column("flags").to_numpy() & 4 != 0
    loss = made.read("loss", slice(None))
    np.testing.assert_array_equal(np.isnan(loss), first)
    last = np.roll(first, -1)
    np.testing.assert_array_equal(np.isnan(made.read("logits.label", slice(None))), last)
    norm = np.linalg.norm(made.read("blocks.1.resid_post", slice(None)), axis=-1)
    np.testing.assert_allclose(
        made.read("stat.norm.blocks.1.resid_post", slice(None)), norm, rtol=1e-5
    )
    commit = made.view.commit("acts", 0)
    assert float(commit.provenance["attention_error"]) < 1e-5  # q and k were looked at


def test_a_gap_is_no_licence_for_the_other_columns(tmp_path):
    """A model that overflows is refused though some rows of the loss are NaN by right."""
    toy.save("llama", tmp_path / "m")
    loaded = load(tmp_path / "m", dtype="float32")
    weights = loaded.model.state_dict()
    weights["model.layers.1.mlp.down_proj.weight"].fill_(1e38)
    loaded.model.save_pretrained(tmp_path / "m")
    with pytest.raises(store.InvalidInputError, match=r"nonfinite.*blocks\.1\.resid_post"):
        harvest(tmp_path, sites=("blocks.1.resid_post", "loss"))


def test_questions_that_cannot_be_answered_are_refused_before_anything_is_written(tmp_path):
    toy.save("llama", tmp_path / "m", architecture="LlamaModel")
    with pytest.raises(ModelError, match=r"no-head.*ForCausalLM"):
        harvest(tmp_path, sites=("loss",))
    with pytest.raises(SiteError, match="unknown-site"):
        harvest(tmp_path, sites=("stat.norm.nowhere",))
    assert not (tmp_path / "s").exists()


def test_gradients_of_derived_columns_are_refused(tmp_path):
    toy.save("llama", tmp_path / "m")
    harvest(tmp_path, sites=("blocks.1.resid_post",))
    config = HarvestConfig(
        model=str(tmp_path / "m"), sites=("loss",), gradient="exact", group="grad.exact.nll"
    )
    with pytest.raises(SiteError, match=r"no-gradient.*--metric"):
        ingest_into(tmp_path / "s", config, runtime=InProcess())


def test_statistics_look_at_sites_beside_derived_columns(tmp_path):
    from jobs.verbs.circuits import live_statistics

    toy.save("gpt2", tmp_path / "m")
    (tmp_path / "text.txt").write_text(toy.TEXT * 3)
    source = SOURCES.get("text")(paths=(str(tmp_path / "text.txt"),))
    config = HarvestConfig(
        model=str(tmp_path / "m"), sites=("loss", "blocks.0.resid_post"), dtype="float32", batch=8
    )
    done = ingest(
        tmp_path / "s",
        TokensConfig(source=source, context=32),
        config,
        runtime=InProcess(),
        observers=live_statistics(("moments",)),
    )
    assert done.unobserved_parts == 0
    made = store.open(tmp_path / "s")
    assert "loss" in made.groups["acts"].columns
    assert len(made.groups) == 3  # the statistic has a group of its own


def test_memory_for_logits_is_asked_of_names_and_patterns_alike(tmp_path, monkeypatch):
    toy.save("llama", tmp_path / "m")
    asked = []
    monkeypatch.setattr(
        "ingest.asked.check_memory", lambda *_, logits=0, **__: asked.append(logits)
    )
    for number, pattern in enumerate(("loss", "logits.*", "embed")):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "m").symlink_to(tmp_path / "m")
        harvest(tmp_path / str(number), sites=(pattern,))
    assert [logits > 0 for logits in asked] == [True, True, False]


def test_patterns_of_long_sequences_are_refused(tmp_path):
    folder = toy.save("gpt2", tmp_path / "m", positions=128)
    (tmp_path / "a.txt").write_text(toy.TEXT)
    source = SOURCES.get("text")(paths=(str(tmp_path / "a.txt"),))
    sites = ("pattern.blocks.0.attn",)
    harvest = HarvestConfig(model=str(folder), sites=sites, dtype="float32")
    with pytest.raises(IngestError, match=r"context-too-long.*--context 64"):
        ingest(
            tmp_path / "s", TokensConfig(source=source, context=65), harvest, runtime=InProcess()
        )
    assert not (tmp_path / "s").exists()
    ingest(tmp_path / "s", TokensConfig(source=source, context=64), harvest, runtime=InProcess())
    held = store.open(tmp_path / "s")
    pattern = held.read(sites[0], slice(0, 64))
    np.testing.assert_allclose(pattern.sum(-1), 1.0, rtol=1e-5)
    assert np.array_equal(pattern, np.tril(pattern.transpose(1, 0, 2)).transpose(1, 0, 2))
