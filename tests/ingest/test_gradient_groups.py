"""Gradients as columns: what is stored is the gradient of each sequence's own loss, whatever stops in between."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import store
from ingest.config import HarvestConfig, TokensConfig
from ingest.contract import Observer
from ingest.errors import IngestError, ModelError
from ingest.gradients import Gradient
from ingest.models import load, toy
from ingest.models.metrics import METRICS, Examples
from ingest.models.rules import RULES
from ingest.run import ingest, ingest_into
from ingest.sources import SOURCES
from jobs.runtimes.in_process import InProcess
from jobs.sequences import stored_sites

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "seven"]
SITES = ("blocks.0.resid_pre", "blocks.1.attn.v", "blocks.1.resid_post")
LENGTHS = (1, 3, 40, 90, 12, 150, 7, 60, 33)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Texts of which the first is a single word, so a single token."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for number, words in enumerate(LENGTHS):
        (folder / f"d{number}.txt").write_text(" ".join(rng.choice(WORDS, words)))
    (folder / "d0.txt").write_text("a")
    return folder


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return toy.save(request.param, folder, text=" ".join(WORDS))


def harvest_of(model, rule="exact", **more):
    settings = {"dtype": "float32", "batch": 3, "sites": SITES, "gradient": rule, **more}
    return HarvestConfig(model=str(model), **{"group": f"grad.{rule}.nll", **settings})


def tokens_of(corpus):
    source = SOURCES.get("text")(paths=(str(corpus),))
    return TokensConfig(source=source, context=48, part_rows=256, special_tokens=False)


@pytest.fixture
def made(tmp_path, corpus, model):
    """A store of values, and the gradients of its rows."""
    url = tmp_path / "s"
    values = HarvestConfig(model=str(model), sites=SITES[:1], dtype="float32", batch=3)
    ingest(url, tokens_of(corpus), values, runtime=InProcess())
    ingest_into(url, harvest_of(model), runtime=InProcess())
    return store.open(url)


def test_rows_hold_the_gradient_of_their_own_sequences_loss(made, model):
    """Against autograd over one sequence at a time, no batch, no padding, no probe."""
    loaded = load(str(model), dtype="float32")
    adapter, nll = loaded.adapter, METRICS.get("nll")()
    assert {c.dtype for c in made.groups["grad.exact.nll"].columns.values()} == {"float32"}
    seen = set()
    tokens = made.arrow("tokens").to_pydict()
    ids_of = dict(zip(tokens["row"], tokens["token_id"], strict=True))
    for seq, rows in zip(*sequences(made), strict=True):
        mine = np.arange(seq, seq + rows)
        ids = torch.tensor([[ids_of[row] for row in mine.tolist()]])
        seen.add(min(rows, 2))
        for site in SITES:
            stored = made.gather(f"grad.exact.nll:{site}", mine)
            if rows == 1:
                assert not stored.any()
                continue
            leaf = []

            def begin(value, leaf=leaf):
                leaf.append(value.detach().clone().requires_grad_())
                return leaf[0]

            with adapter.listen(site, begin):
                logits = loaded.model(input_ids=ids, use_cache=False).logits
            loss = nll.value(logits, Examples(ids=ids, mask=torch.ones_like(ids)), None)
            wanted = torch.autograd.grad(loss.sum(), leaf[0])[0][0]
            assert np.allclose(stored, wanted.numpy(), rtol=2e-4, atol=1e-6)
    assert seen == {1, 2}


def sequences(made):
    """First rows and lengths of all sequences."""
    data = made.arrow("sequences").to_pydict()
    return data["seq_id"], data["rows"]


def test_values_and_gradients_of_the_same_rows_lie_side_by_side(made):
    values, grads = made.read(f"acts:{SITES[0]}"), made.read(f"grad.exact.nll:{SITES[0]}")
    assert values.shape == grads.shape
    assert not np.array_equal(values, grads)
    assert np.array_equal(made.read(SITES[0]), values)  # a site by itself is its values
    with pytest.raises(store.NotFoundError, match=rf"of its gradient grad.exact.nll:{SITES[2]}"):
        made.read(SITES[2])
    assert stored_sites(made) == [SITES[0]]
    assert set(stored_sites(made, ["grad.exact.nll"])) == set(SITES)
    recipe = made.groups["grad.exact.nll"].recipe
    assert recipe["gradient"] == RULES["exact"].to_json()
    assert recipe["metric"] == {"kind": "nll", "span": ""}
    assert Gradient.of_recipe(recipe).rule == RULES["exact"]


@pytest.mark.parametrize("rule", [name for name in RULES if RULES[name].point == "here"])
def test_every_rule_makes_a_group_of_its_own(made, model, rule):
    ingest_into(made.url, harvest_of(model, rule), runtime=InProcess())
    opened = made.refresh()
    exact = opened.read(f"grad.exact.nll:{SITES[0]}")
    assert (rule == "exact") == np.array_equal(opened.read(f"grad.{rule}.nll:{SITES[0]}"), exact)
    assert store.verify(opened).ok


def test_another_rule_under_a_name_that_is_taken_is_refused(made, model):
    with pytest.raises(store.ConflictError, match="gradient"):
        ingest_into(
            made.url, harvest_of(model, "relp", group="grad.exact.nll"), runtime=InProcess()
        )


def test_a_stopped_run_goes_on_to_the_same_digest(tmp_path, corpus, model, monkeypatch):
    urls = [tmp_path / name for name in ("whole", "stopped")]
    ingest(urls[0], tokens_of(corpus), harvest_of(model), runtime=InProcess())
    at = Gradient.at
    calls = []

    def failing(self, *rest):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return at(self, *rest)

    monkeypatch.setattr(Gradient, "at", failing)
    with pytest.raises(KeyboardInterrupt):
        ingest(urls[1], tokens_of(corpus), harvest_of(model), runtime=InProcess())
    monkeypatch.undo()
    ingest(urls[1], tokens_of(corpus), harvest_of(model), runtime=InProcess())
    one, other = map(store.open, urls)
    assert one.digest() == other.digest()


class Watching(Observer):
    """Asks for nothing."""


BAD = {
    "rule": ({"rule": "magic"}, ModelError, "unknown-name"),
    "metric": ({"metric": "loss"}, store.InvalidInputError, "unknown-name"),
    "answers": ({"metric": "logit_diff"}, IngestError, "metric-needs"),
    "clean": ({"metric": "kl_to_clean"}, IngestError, "metric-needs"),
}


@pytest.mark.parametrize(("given", "error", "kind"), BAD.values(), ids=BAD)
def test_what_cannot_be_differentiated_is_refused_before_a_store_is_made(
    tmp_path, corpus, model, given, error, kind
):
    with pytest.raises(error, match="Nothing was") as caught:
        ingest(tmp_path / "s", tokens_of(corpus), harvest_of(model, **given), runtime=InProcess())
    assert caught.value.kind == kind
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("family", "architecture", "kind"),
    [("bert", "BertModel", "not-causal"), ("llama", "LlamaModel", "no-head")],
)
def test_models_that_predict_no_next_token_are_refused(
    tmp_path, corpus, family, architecture, kind
):
    folder = toy.save(family, tmp_path / "m", text=" ".join(WORDS), architecture=architecture)
    with pytest.raises((IngestError, ModelError), match="Nothing was") as caught:
        ingest(tmp_path / "s", tokens_of(corpus), harvest_of(folder), runtime=InProcess())
    assert caught.value.kind == kind
    assert not (tmp_path / "s").exists()


def test_statistics_of_values_are_not_taken_of_gradients(tmp_path, corpus, model):
    with pytest.raises(IngestError, match="look at values") as caught:
        ingest(
            tmp_path / "s",
            tokens_of(corpus),
            harvest_of(model),
            runtime=InProcess(),
            observers=[Watching],
        )
    assert caught.value.kind == "gradient-observed"
