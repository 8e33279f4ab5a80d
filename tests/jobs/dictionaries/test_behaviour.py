"""The model with a dictionary in it, against forwards written out with plain hooks."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

import store
from ingest.config import HarvestConfig, TokensConfig
from ingest.models import load, toy
from ingest.run import ingest
from ingest.sources import SOURCES
from jobs.codebook import Codebook
from jobs.dictionaries.held_out import evaluate_on, figures
from jobs.dictionaries.suites.behaviour import Behaviour
from jobs.errors import JobError
from jobs.runtimes.in_process import InProcess
from store.tokens import FLAG_SPECIAL

SITE, INNER, LATER = "blocks.0.resid_post", "blocks.1.mlp.in", "blocks.1.mlp.out"
LATENTS = 24


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    words = toy.TEXT.split()
    for number in range(10):
        text = " ".join(rng.choice(words, int(rng.integers(5, 40))))
        (folder / f"d{number:02d}.txt").write_text(text)
    return folder


def stored(url, corpus, model, sites):
    tokens = TokensConfig(
        source=SOURCES.get("text")(paths=(str(corpus),)),
        rows=300,
        part_rows=256,
        context=32,
        bos="sequence",
    )
    harvest = HarvestConfig(model=str(model), sites=sites, dtype="float32", batch=4)
    ingest(url, tokens, harvest, runtime=InProcess())
    return store.open(url)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return toy.save("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def held(tmp_path_factory, corpus, model):
    sites = (SITE, INNER, LATER, "blocks.0.mlp.in", "blocks.0.mlp.out")
    return stored(tmp_path_factory.mktemp("s") / "s", corpus, model, sites)


def book(width, out=None, *, seed=0, **more):
    generator = torch.Generator().manual_seed(seed)
    decoder = torch.randn(LATENTS, out or width, generator=generator)
    return Codebook(
        torch.randn(width, LATENTS, generator=generator) * 0.3,
        torch.zeros(LATENTS),
        torch.nn.functional.normalize(decoder, dim=1),
        torch.zeros(out or width),
        0.1,
        **more,
    )


def sequences_of(held):
    """Every sequence by itself: ids [T] and which tokens are ordinary [T]."""
    tokens = held.arrow("tokens")
    columns = {name: tokens[name].to_numpy() for name in ("token_id", "seq_id", "flags")}
    for number in np.unique(columns["seq_id"]):
        mine = columns["seq_id"] == number
        ordinary = (columns["flags"][mine] & FLAG_SPECIAL) == 0
        yield (
            torch.from_numpy(columns["token_id"][mine].astype(np.int64)),
            torch.from_numpy(ordinary),
        )


def by_hand(held, folder, change):
    """(loss, divergence from the clean model), means over tokens, sequence by sequence in float64."""
    loaded = load(folder, dtype="float32")
    losses, divergences = [], []
    for ids, ordinary in sequences_of(held):
        with torch.inference_mode():
            clean = loaded.model(input_ids=ids[None]).logits[0].double()
            handles = change(loaded.model, ordinary)
            changed = loaded.model(input_ids=ids[None]).logits[0].double()
            for handle in handles:
                handle.remove()
        losses.append(cross_entropy(changed[:-1], ids[1:], reduction="none"))
        p, q = log_softmax(clean, 1), log_softmax(changed, 1)
        divergences.append(kl_div(q, p, log_target=True, reduction="none").sum(1))
    return float(torch.cat(losses).mean()), float(torch.cat(divergences).mean())


def replaced(value):
    """A change: the first block's output where tokens are ordinary becomes ``value(x [T, D])``."""

    def change(model, ordinary):
        def hook(module, args, out):
            del module, args
            hidden = out[0] if isinstance(out, tuple) else out
            new = torch.where(ordinary[:, None], value(hidden[0]).to(hidden), hidden[0])[None]
            return (new, *out[1:]) if isinstance(out, tuple) else new

        return [model.model.layers[0].register_forward_hook(hook)]

    return change


def test_every_figure_is_that_of_plain_hooks(held, model, tmp_path):
    dictionary = book(held.column(SITE).shape[0])
    suites = [Behaviour(sequences=1000)]
    found = figures(evaluate_on(held, SITE, dictionary, tmp_path, split=None, suites=suites))
    rows = np.concatenate([np.flatnonzero(o.numpy()) for _, o in sequences_of(held)])
    assert len(rows) < found["behaviour_tokens"]  # some are special
    everything = held.gather(
        SITE, held.row_ids()[np.concatenate([o for _, o in sequences_of(held)])]
    )
    mean = torch.as_tensor(everything).double().mean(0)
    expected = {
        "sae": by_hand(held, model, replaced(dictionary.reconstruct)),
        "zero": by_hand(held, model, replaced(torch.zeros_like)),
        "mean": by_hand(held, model, replaced(lambda x: mean.expand_as(x))),
    }
    clean, nothing = by_hand(held, model, replaced(lambda x: x))
    assert nothing == 0
    assert found["ce"] == pytest.approx(clean, rel=1e-5)
    for name, (loss, divergence) in expected.items():
        assert found[f"ce_{name}"] == pytest.approx(loss, rel=1e-5)
        assert found[f"kl_{name}"] == pytest.approx(divergence, rel=1e-4)
    assert found["delta_ce"] == pytest.approx(expected["sae"][0] - clean, abs=1e-5)
    for name in ("zero", "mean"):
        ablated = expected[name][0]
        recovered = (ablated - expected["sae"][0]) / (ablated - clean)
        assert found[f"ce_recovered_{name}"] == pytest.approx(recovered, rel=1e-3)


def test_a_dictionary_that_rebuilds_all_costs_nothing(held, tmp_path):
    width = held.column(SITE).shape[0]
    eye = torch.eye(width)
    both = torch.cat([eye, -eye])
    exact = Codebook(both.t(), torch.zeros(2 * width), both, torch.zeros(width), 0.0)
    found = figures(evaluate_on(held, SITE, exact, tmp_path, split=None, suites=["behaviour"]))
    assert found["delta_ce"] == pytest.approx(0, abs=1e-6)
    assert found["kl_sae"] == pytest.approx(0, abs=1e-6)
    assert found["ce_recovered_zero"] == pytest.approx(1, abs=1e-4)


def test_a_transcoder_stands_for_the_mlp_it_reads_the_input_of(held, model, tmp_path):
    width = held.column(INNER).shape[0]
    skip = torch.randn(width, width, generator=torch.Generator().manual_seed(5)) * 0.1
    transcoder = book(width, W_skip_DE=skip)

    def change(network, ordinary):
        def hook(module, args, out):
            del module
            new = transcoder.reconstruct(args[0][0])
            return torch.where(ordinary[:, None], new, out[0])[None]

        return [network.model.layers[1].mlp.register_forward_hook(hook)]

    result = evaluate_on(
        held, INNER, transcoder, tmp_path, targets=[LATER], split=None, suites=["behaviour"]
    )
    found = figures(result)
    loss, divergence = by_hand(held, model, change)
    assert found["ce_sae"] == pytest.approx(loss, rel=1e-5)
    assert found["kl_sae"] == pytest.approx(divergence, rel=1e-4)


def cross_layer(width):
    """Latents of block 0 read its input and write both outputs, those of block 1 only theirs."""
    made = book(2 * width, seed=3)
    encoder, decoder = made.W_enc_DL.clone(), made.W_dec_LD.clone()
    half = LATENTS // 2
    encoder[width:, :half] = 0
    encoder[:width, half:] = 0
    decoder[half:, :width] = 0
    decoder = torch.nn.functional.normalize(decoder, dim=1)
    return Codebook(encoder, made.b_enc_L, decoder, made.b_dec_D, 0.1)


def test_a_cross_layer_transcoder_writes_to_every_block_above(held, model, tmp_path):
    """What block 1 reads has block 0's reconstruction in it already."""
    reads, writes = ("blocks.0.mlp.in", INNER), ("blocks.0.mlp.out", LATER)
    width = held.column(INNER).shape[0]
    dictionary = cross_layer(width)

    def change(network, ordinary):
        seen = []

        def hook(layer, module, args, out):
            del module
            seen.append(args[0][0])
            rows = torch.cat([*seen, *[torch.zeros_like(seen[0])] * (1 - layer)], dim=1)
            new = dictionary.reconstruct(rows)[:, layer * width : (layer + 1) * width]
            return torch.where(ordinary[:, None], new, out[0])[None]

        return [
            network.model.layers[layer].mlp.register_forward_hook(
                lambda *given, layer=layer: hook(layer, *given)
            )
            for layer in (0, 1)
        ]

    result = evaluate_on(
        held, reads, dictionary, tmp_path, targets=writes, split=None, suites=["behaviour"]
    )
    loss, divergence = by_hand(held, model, change)
    assert figures(result)["ce_sae"] == pytest.approx(loss, rel=1e-5)
    assert figures(result)["kl_sae"] == pytest.approx(divergence, rel=1e-4)


def test_a_dictionary_that_reads_ahead_is_refused(held, tmp_path):
    reads = ("blocks.0.mlp.out", LATER)
    crosscoder = book(2 * held.column(LATER).shape[0])
    with pytest.raises(JobError, match=r"not-in-order.*Nothing was written"):
        evaluate_on(held, reads, crosscoder, tmp_path, split=None, suites=["behaviour"])
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_another_or_gone_is_refused(held, tmp_path, tmp_path_factory):
    other = toy.save("llama", tmp_path_factory.mktemp("other"), seed=9)
    dictionary = book(held.column(SITE).shape[0])
    for asked, kind in ((str(other), "model-differs"), (str(tmp_path / "no"), "model-not-found")):
        with pytest.raises(Exception, match=r"model") as caught:
            evaluate_on(
                held, SITE, dictionary, tmp_path / "r", split=None, suites=[Behaviour(model=asked)]
            )
        assert caught.value.kind == kind
    assert not (tmp_path / "r").exists()


def test_a_model_that_predicts_no_token_is_refused(corpus, tmp_path):
    bert = toy.save("bert", tmp_path / "bert")
    tokens = TokensConfig(source=SOURCES.get("text")(paths=(str(corpus),)), rows=100, context=32)
    harvest = HarvestConfig(model=str(bert), sites=(SITE,), dtype="float32")
    ingest(tmp_path / "s", tokens, harvest, runtime=InProcess())
    held = store.open(tmp_path / "s")
    with pytest.raises(JobError, match="not-causal"):
        evaluate_on(
            held,
            SITE,
            book(held.column(SITE).shape[0]),
            tmp_path / "r",
            split=None,
            suites=["behaviour"],
        )
    assert not (tmp_path / "r").exists()


def test_the_number_of_sequences_is_kept_to(held, tmp_path):
    dictionary = book(held.column(SITE).shape[0])
    few = [Behaviour(sequences=3)]
    result = evaluate_on(held, SITE, dictionary, tmp_path, split=None, suites=few)
    assert figures(result)["behaviour_sequences"] == 3
    assert json.loads((result.path / "card.json").read_text())["config"]["suites"] == [
        {"kind": "behaviour", "sequences": 3}
    ]
    with pytest.raises(JobError, match="bad-number"):
        Behaviour(sequences=0)


def test_sae_bench_finds_its_file_with_every_field_it_asks_for(held, model, tmp_path):
    """Names as in SAEBench's schema of core results; figures against dense float64."""
    dictionary = book(held.column(SITE).shape[0])
    result = evaluate_on(held, SITE, dictionary, tmp_path, split=None, suites=["behaviour"])
    record = json.loads(result.read_file("saebench_core_eval_results.json"))
    assert record["eval_type_id"] == "core"
    assert record["eval_config"]["model_name"] == model.name
    assert set(record) >= {
        *("eval_id", "datetime_epoch_millis", "eval_result_details", "eval_result_unstructured"),
        *("sae_bench_commit_hash", "sae_lens_id", "sae_lens_release_id", "sae_lens_version"),
        "sae_cfg_dict",
    }
    metrics = record["eval_result_metrics"]
    x = torch.as_tensor(held.gather(SITE, held.row_ids())).double()
    x = x[torch.cat([ordinary for _, ordinary in sequences_of(held)])]
    f = dictionary.encode_dense(x.float()).double()
    hat = f @ dictionary.W_dec_LD.double() + dictionary.b_dec_D.double()
    error, spread = (x - hat).square().sum(1), (x - x.mean(0)).square().sum(1)
    fired = (f > 0).double().mean(0)
    unit = torch.nn.functional.normalize(dictionary.W_enc_DL.t().double(), dim=1)
    near = (unit @ unit.t() - 2 * torch.eye(LATENTS)).amax(1).mean()
    expected = {
        "reconstruction_quality": {
            "explained_variance": 1 - error.sum() / spread.sum(),
            "mse": (x - hat).square().mean(),
            "cossim": torch.cosine_similarity(x, hat, dim=1).mean(),
        },
        "shrinkage": {
            "l2_norm_in": x.norm(dim=1).mean(),
            "l2_norm_out": hat.norm(dim=1).mean(),
            "l2_ratio": (hat.norm(dim=1) / x.norm(dim=1)).mean(),
            "relative_reconstruction_bias": hat.square().sum() / (x * hat).sum(),
        },
        "sparsity": {"l0": (f > 0).double().sum(1).mean(), "l1": f.sum(1).mean()},
        "misc_metrics": {
            "frac_alive": (fired > 0).double().mean(),
            "freq_over_10_percent": (fired > 0.1).double().mean(),
            "normalized_freq_over_10_percent": fired[fired > 0.1].sum() / fired.sum(),
            "average_max_encoder_cosine_sim": near,
        },
    }
    for category, figures_of in expected.items():
        for name, value in figures_of.items():
            assert metrics[category][name] == pytest.approx(float(value), rel=1e-4), name
    assert set(metrics["model_behavior_preservation"]) == {
        *("kl_div_score", "kl_div_with_ablation", "kl_div_with_sae"),
    }
    assert set(metrics["model_performance_preservation"]) == {
        *("ce_loss_score", "ce_loss_with_ablation", "ce_loss_with_sae", "ce_loss_without_sae"),
    }
    assert metrics["token_stats"]["total_tokens_eval_sparsity_variance"] == len(x)
    silent = evaluate_on(held, SITE, dictionary, tmp_path / "core", split=None)
    assert not (silent.path / "saebench_core_eval_results.json").exists()


def test_columns_may_be_named_in_any_order(held, model, tmp_path):
    """Inputs of both blocks, the later one named first, rebuild the output of the later."""
    width = held.column(INNER).shape[0]
    dictionary = book(2 * width, width, seed=4)

    def change(network, ordinary):
        seen = []

        def first(module, args, out):
            del module, out
            seen.append(args[0][0])

        def second(module, args, out):
            del module
            new = dictionary.reconstruct(torch.cat([args[0][0], seen[0]], dim=1))
            return torch.where(ordinary[:, None], new, out[0])[None]

        return [
            network.model.layers[0].mlp.register_forward_hook(first),
            network.model.layers[1].mlp.register_forward_hook(second),
        ]

    reads = (INNER, "blocks.0.mlp.in")
    result = evaluate_on(
        held, reads, dictionary, tmp_path, targets=[LATER], split=None, suites=["behaviour"]
    )
    assert figures(result)["ce_sae"] == pytest.approx(by_hand(held, model, change)[0], rel=1e-5)


def test_a_finished_result_is_read_without_the_model(held, tmp_path):
    dictionary = book(held.column(SITE).shape[0])
    options = {"split": None, "suites": [Behaviour(sequences=2)]}
    first = evaluate_on(held, SITE, dictionary, tmp_path, **options)
    gone = {**options, "suites": [Behaviour(sequences=2, model="/nowhere")]}
    assert figures(evaluate_on(held, SITE, dictionary, tmp_path, **gone)) == figures(first)
