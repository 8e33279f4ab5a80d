"""A plan is what comes of it: rows, parts and bytes to the byte, operations by hand, money by hand, refusals alike."""

from __future__ import annotations

import pytest

import store
from ingest.config import HarvestConfig, TokensConfig
from ingest.errors import IngestError, ModelError, SiteError
from ingest.estimate import Forward, Prices, column_bytes, forward, money
from ingest.models import load, toy
from ingest.plan import Batching
from ingest.planning import plan, plan_into, plan_vectors
from ingest.run import ingest, ingest_into, ingest_vectors
from ingest.sources import SOURCES
from jobs.runtimes.in_process import InProcess

SITES = ("blocks.0.resid_pre", "blocks.1.attn.z")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(toy.save("llama", tmp_path_factory.mktemp("m")))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(7):
        (folder / f"{number}.txt").write_text(toy.TEXT * (number + 1))
    return str(folder)


def harvest_of(model, **more):
    return HarvestConfig(**{"model": model, "sites": SITES, "dtype": "float32", "batch": 4, **more})


def text_tokens(corpus, **more):
    return TokensConfig(
        source=SOURCES.get("text")(paths=(corpus,)), context=48, part_rows=512, **more
    )


def pair_tokens(**more):
    source = SOURCES.get("induction")(sequences=40, low=4, high=9)
    return TokensConfig(source=source, part_rows=256, **more)


@pytest.mark.parametrize("tokens", [text_tokens, lambda _: pair_tokens()], ids=["texts", "pairs"])
@pytest.mark.parametrize("codec", ["raw", "int8"])
def test_rows_parts_and_bytes_are_those_of_the_ingest(model, corpus, tmp_path, tokens, codec):
    config, harvest = tokens(corpus), harvest_of(model, codec=codec, store_dtype="bfloat16")
    found = plan(config, harvest)
    assert not list(tmp_path.iterdir())
    done = ingest(tmp_path / "s", config, harvest, runtime=InProcess())
    made = store.open(tmp_path / "s")
    commits = [made.view.commit("acts", part) for part in made.view.parts("acts")]
    sizes = {site: sum(c.objects[f"{site}/c/0/0"].size if f"{site}/c/0/0" in c.objects else
                       next(i.size for k, i in c.objects.items() if k.startswith(f"{site}/c"))
                       for c in commits) for site in SITES}  # fmt: skip
    assert found.columns == sizes
    assert (found.rows, found.parts) == (done.rows, done.parts)
    assert found.sequences == made.arrow("sequences").num_rows
    assert found.parts > 1
    tables = [made.view.commit("tokens", part) for part in made.view.parts("tokens")]
    written = sum(item.size for commit in tables for item in commit.objects.values())
    assert found.tokens_bytes == pytest.approx(written, rel=0.35)  # parts of so few rows differ
    assert done.planned_bytes == found.group_bytes
    beside = done.group_bytes - done.planned_bytes  # tables of row ids, some kilobytes a part
    assert 0 < beside < 8000 * done.parts


def test_a_plan_for_a_group_counts_the_rows_that_are_there(model, corpus, tmp_path):
    first = harvest_of(model)
    ingest(tmp_path / "s", text_tokens(corpus), first, runtime=InProcess())
    more = harvest_of(model, group="more", sites=("blocks.*.resid_post",))
    found = plan_into(tmp_path / "s", more)
    assert "more" not in store.open(tmp_path / "s").groups
    done = ingest_into(tmp_path / "s", more, runtime=InProcess())
    assert (found.rows, found.parts, found.group_bytes) == (
        done.rows,
        done.parts,
        done.planned_bytes,
    )


def test_what_only_values_tell_is_said_to_be_about_what_it_is_uncoded(model, corpus, tmp_path):
    coded = harvest_of(model, codec="bitshuffle-zstd", store_dtype="bfloat16")
    found = plan(text_tokens(corpus), coded)
    plain = plan(text_tokens(corpus), harvest_of(model, store_dtype="bfloat16"))
    assert found.columns == plain.columns
    assert (found.about, plain.about) == (SITES, ())
    done = ingest(tmp_path / "s", text_tokens(corpus), coded, runtime=InProcess())
    assert done.planned_bytes is None


def test_scalars_are_about(model, corpus, tmp_path):
    sites = ("loss", "stat.norm.embed", "blocks.0.resid_pre")
    found = plan(text_tokens(corpus), harvest_of(model, sites=sites))
    assert found.about == ("stat.norm.embed", "loss") or found.about == ("loss", "stat.norm.embed")
    done = ingest(
        tmp_path / "s", text_tokens(corpus), harvest_of(model, sites=sites), runtime=InProcess()
    )
    assert found.group_bytes == pytest.approx(done.group_bytes, rel=0.25)


def test_vectors_are_planned_without_a_model(tmp_path):
    source = SOURCES.get("synthetic")(width=16)
    tokens = TokensConfig(source=source, rows=2000, context=100, part_rows=512)
    found = plan_vectors(tokens)
    ingest_vectors(tmp_path / "s", tokens, "acts", runtime=InProcess())
    made = store.open(tmp_path / "s")
    commits = [made.view.commit("acts", part) for part in made.view.parts("acts")]
    assert (found.rows, found.parts) == (2000, len(commits))
    shards = [i.size for c in commits for name, i in c.objects.items() if name.startswith("x/c")]
    assert found.columns == {"x": sum(shards)}
    with pytest.raises(IngestError, match="rows-missing"):
        plan_vectors(TokensConfig(source=source))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"sites": ("blocks.9.resid_post",)}, SiteError),
        ({"model": "/nowhere/at/all"}, ModelError),
        ({"gradient": "exact", "metric": "logit_diff"}, IngestError),
        ({"group": "tokens"}, IngestError),
        (
            {"codec": "int8", "sites": ("stat.top_dim.blocks.0.attn.z",)},
            store.InvalidInputError,
        ),
    ],
)
def test_what_an_ingest_would_refuse_a_plan_refuses(model, corpus, change, error):
    with pytest.raises(error, match="Nothing was"):
        plan(text_tokens(corpus), harvest_of(**{"model": model, **change}))


def run_of(loaded, sites):
    return lambda ids, mask: loaded.adapter.capture(ids, mask, sites)


def test_operations_are_those_one_counts_by_hand(tmp_path):
    """Two a weight and token, and attention's two products; only as far as the deepest site, at every length."""
    loaded = load(toy.save("gpt2", tmp_path / "g", layers=3), dtype="float32")
    width = 32

    def by_hand(tokens, length, blocks):
        return blocks * tokens * (2 * (4 * width * width + 8 * width * width) + 4 * length * width)

    for layer, blocks in ((0, 1), (2, 3)):
        run = forward(
            loaded, run_of(loaded, [f"blocks.{layer}.resid_post"]), [(32,) * 8], Batching(size=4)
        )
        assert run.padded_tokens == 8 * 32
        assert run.flops == pytest.approx(by_hand(8 * 32, 32, blocks), rel=1e-3)
        assert run.seconds > 0
    mixed = forward(
        loaded,
        run_of(loaded, ["blocks.2.resid_post"]),
        [(20,) * 4, (60,) * 4, (40,) * 8],
        Batching(size=4),
    )
    wanted = by_hand(4 * 32, 32, 3) + by_hand(4 * 64, 64, 3) + by_hand(8 * 64, 64, 3)
    assert mixed.flops == pytest.approx(wanted, rel=1e-3)


def test_operations_of_experts_count(tmp_path):
    """Three of eight experts work on every token; fused products do not say what they do."""
    loaded = load(toy.save("olmoe", tmp_path / "m"), dtype="float32")
    before = loaded.model.config._experts_implementation
    run = forward(loaded, run_of(loaded, ["blocks.0.resid_post"]), [(32,) * 4], Batching(size=4))
    assert loaded.model.config._experts_implementation == before
    attention = 2 * (2 * 32 * 32 + 2 * 32 * 16) + 4 * 32 * 32
    experts = 2 * 3 * (3 * 32 * 32) + 2 * 8 * 32
    assert run.flops == pytest.approx(4 * 32 * (attention + experts), rel=0.02)


def test_a_gradient_costs_its_backward_and_every_run_of_its_rule(model, corpus):
    sites = ("blocks.0.resid_pre",)
    plain = plan(text_tokens(corpus), harvest_of(model, sites=("blocks.1.resid_post",)))
    exact, dropped = (
        plan(text_tokens(corpus), harvest_of(model, sites=sites, gradient=rule, group=rule))
        for rule in ("exact", "grad_drop")
    )
    assert (
        exact.flops > 1.8 * plain.flops
    )  # the backward of activations alone is about another forward
    assert 1.4 * exact.flops < dropped.flops < 2 * exact.flops  # two runs, each with a block less


def test_padding_is_counted(tmp_path):
    loaded = load(toy.save("gpt2", tmp_path / "g"), dtype="float32")
    run = forward(loaded, run_of(loaded, ["embed"]), [(5, 33, 7), (1,)], Batching(size=2))
    assert run.padded_tokens == 2 * 64 + 2 * 32 + 2 * 32
    assert forward(loaded, run_of(loaded, ["embed"]), [()], Batching(size=2)).padded_tokens == 0


def test_money_is_what_one_reckons():
    prices = Prices(storage_gb_month=0.5, put_1000=10, get_1000=0.5, machine_hour=36)
    run = Forward(padded_tokens=1, flops=1e15, seconds=1000.0)
    found = money(prices, run, 10, 3, int(80e9))
    assert found.compute == pytest.approx(10)
    assert found.write == pytest.approx(10 * 5 * 10 / 1000)
    assert found.month == pytest.approx(40)
    assert found.read == pytest.approx(0.5 * (50 + 80e9 / (8 << 20)) / 1000)
    n = found.reads_until_keeping_pays
    kept = found.compute + found.write + found.month
    assert kept + n * found.read <= n * found.compute
    assert kept + (n - 1) * found.read > (n - 1) * found.compute
    fast = money(Prices(storage_gb_month=0.5, machine_hour=36, machine_flops=1e15), run, 10, 3, 1)
    assert fast.compute == pytest.approx(0.01)
    dear = money(Prices(storage_gb_month=0.5, get_1000=1e6, machine_hour=1), run, 10, 3, int(80e9))
    assert dear.reads_until_keeping_pays is None


def test_shards_that_would_be_too_large_are_said(model, corpus):
    found = plan(text_tokens(corpus), harvest_of(model))
    assert found.advice(512) == []
    from dataclasses import replace

    large = replace(found, columns={"x": 3 * found.parts * (1 << 30)})
    assert large.advice(16_384) == [
        "a shard would have 3.2 GB: --part-rows 5376 makes them about one"
    ]


def test_bytes_of_a_column_follow_from_its_declaration():
    assert column_bytes("float32[1024]", "raw", [256], 65_536) == (
        4096 + 256 * 4096 + 4096 + 4100,
        True,
    )
    assert column_bytes("float32", "raw", [300, 5], 65_536) == (305 * 12, False)
    assert column_bytes("bfloat16[64]", "bitshuffle-zstd", [256], 65_536)[1] is False
