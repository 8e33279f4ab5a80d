"""Whole sequences from a store: the harvest's batches, the stored bits, and what to do where a column is missing."""

from __future__ import annotations

import shlex

import numpy as np
import pytest
import torch

import store
from ingest.errors import ModelError
from jobs.errors import JobError
from jobs.sequences import (
    base_of,
    locate,
    missing_columns_error,
    model_facts,
    sequence_blocks,
    stored_sites,
)
from store.testing.small import fill, small_store, tokens_store, values_of

MODEL = {"family": "toy", "config.json": "a" * 64}


def recipe(sites, batch=3, **more):
    return {
        "schema": 1,
        "tokens": "t",
        "model": MODEL,
        "sites": list(sites),
        "dtypes": dict.fromkeys(sites, "bfloat16"),
        "compute_dtype": "float32",
        "batch": {"sequences": batch, "pad_multiple": 32},
        "mask": None,
        **more,
    }


def harvested(made, group, sites, **more):
    """A group that looks harvested: two sites a model would have."""
    columns = dict.fromkeys(sites, "bfloat16[16]")
    provenance = {"model_name": "/models/the toy"}
    options = {"recipe": recipe(sites, **more), "provenance": provenance}
    with made.writer(group, columns=columns, **options) as writer:
        ids = made.row_ids()
        writer.put(ids, {n: values_of(ids, c) for n, c in writer.group.columns.items()})
    return made.refresh()


@pytest.fixture
def made(request):
    return tokens_store(f"memory://sequences-{request.node.name}")


def test_blocks_are_the_batches_with_their_tokens_and_stored_bits(made):
    made = harvested(made, "acts", ["blocks.0.resid_post"])
    starts = made.arrow("sequences")["first_row"].to_numpy()
    lengths = made.arrow("sequences")["rows"].to_numpy()
    seen, parts = [], []
    for block in sequence_blocks(made, ["blocks.0.resid_post"]):
        count = len(block.bounds) - 1
        at = len(seen)
        assert block.row_ids[block.bounds[:-1]].tolist() == starts[at : at + count].tolist()
        assert np.diff(block.bounds).tolist() == lengths[at : at + count].tolist()
        assert block.bounds[0] == 0
        assert block.bounds[-1] == len(block.row_ids)
        assert count <= 3
        seen += [0] * count
        parts.append(block.part)
        (values,) = block.sites.values()
        assert values.dtype == torch.bfloat16
        wanted = made.gather("acts:blocks.0.resid_post", block.row_ids, raw=True)
        assert np.array_equal(values.view(torch.int16).numpy().view(np.uint16), wanted)
        ids = block.tokens["token_id"]
        assert np.array_equal(ids, made.gather("tokens:token_id", block.row_ids))
        assert set(block.tokens) >= {"pos", "flags", "seq_id", "split", "row", "doc_id"}
    assert len(seen) == len(starts)
    assert parts == sorted(parts)


def test_blocks_of_some_parts_are_those_parts(made):
    made = harvested(made, "acts", ["blocks.0.resid_post"])
    wanted = list(made.view.parts("tokens"))[::-2]
    found = [block.part for block in sequence_blocks(made, ["blocks.0.resid_post"], wanted)]
    assert list(dict.fromkeys(found)) == wanted


def test_sites_of_one_make_may_lie_in_several_groups(made):
    made = harvested(made, "acts", ["blocks.0.resid_post"])
    made = harvested(made, "more", ["blocks.1.resid_post"])
    sites = ["blocks.1.resid_post", "blocks.0.resid_post"]
    assert locate(made, sites).groups == {sites[0]: "more", sites[1]: "acts"}
    (one, *_) = sequence_blocks(made, sites)
    assert list(one.sites) == sites


def test_groups_made_differently_are_not_mixed(made):
    made = harvested(made, "acts", ["blocks.0.resid_post"])
    made = harvested(made, "more", ["blocks.1.resid_post"], batch=4)
    with pytest.raises(JobError, match=r"made differently .*--group") as caught:
        locate(made, ["blocks.0.resid_post", "blocks.1.resid_post"])
    assert caught.value.kind == "ambiguous-column"
    assert locate(made, ["blocks.1.resid_post"]).batch == 4


def test_one_site_in_two_groups_of_other_models_needs_a_name(made):
    made = harvested(made, "acts", ["blocks.0.resid_post"])
    made = harvested(
        made, "other", ["blocks.0.resid_post"], model={"family": "b", "config.json": "c"}
    )
    with pytest.raises(JobError, match="ambiguous-column"):
        locate(made, ["blocks.0.resid_post"])
    assert locate(made, ["blocks.0.resid_post"], ["other"]).base["model"]["family"] == "b"
    with pytest.raises(JobError, match="come from different models"):
        model_facts(made)


def test_missing_columns_are_answered_with_the_command_that_adds_them(made):
    made = harvested(made, "acts", ["blocks.0.resid_post"])
    wanted = [f"blocks.{n}.{s}" for s in ("resid_post", "attn.q") for n in range(3)]
    error = missing_columns_error(made, [*wanted, "embed"])
    assert error.kind == "columns-missing"
    words = shlex.split(error.message.partition("Add them: ")[2])
    assert words == [
        *("actlake", "ingest", "--into", made.url, "--group", "acts-2"),
        *("--model", "/models/the toy", "--sites"),
        "blocks.{1,2}.resid_post,blocks.{0,1,2}.attn.q,embed",
        *("--batch", "3", "--dtype", "float32", "--store-dtype", "bfloat16"),
    ]
    with pytest.raises(JobError, match="columns-missing"):
        list(sequence_blocks(made, wanted))


def test_missing_columns_of_a_store_no_model_filled(made):
    made = fill(made, "mine", {"h": "float32[16]"})
    error = missing_columns_error(made, ["blocks.0.resid_post"])
    assert "--model MODEL --sites blocks.0.resid_post" in error.message


def test_a_sample_is_refused_by_name():
    made = small_store("memory://sequences-sample")
    with pytest.raises(JobError, match="'sample'") as caught:
        list(sequence_blocks(made, ["h"], groups=["sample"]))
    assert caught.value.kind == "masked-group"
    assert set(stored_sites(made)) == {"f", "h", "i"}
    assert locate(made, ["h"]).groups == {
        "h": "acts"
    }  # the sample is passed over where none is named


def test_columns_of_few_elements_come_from_tables_as_the_same_bits(made):
    made = fill(made, "mine", {"triple": "bfloat16[3]", "y": "float32[2]"})
    for block in sequence_blocks(made, ["triple", "y"]):
        assert block.sites["triple"].dtype == torch.bfloat16
        assert np.array_equal(
            block.sites["triple"].float().numpy(), made.gather("mine:triple", block.row_ids)
        )
        assert np.array_equal(block.sites["y"].numpy(), made.gather("mine:y", block.row_ids))


def test_facts_of_columns_alone_know_sites_but_not_attention(made):
    made = harvested(made, "acts", ["blocks.0.resid_post", "blocks.3.resid_post"])
    facts = model_facts(made)
    assert (facts.family, facts.layers, facts.width) == ("toy", 4, 16)
    assert facts.shape("blocks.3.resid_post") == (16,)
    with pytest.raises(ModelError, match="--model FOLDER") as caught:
        facts.attention(0)
    assert caught.value.kind == "facts-missing"


def test_a_base_tells_apart_what_other_programs_wrote(made):
    assert base_of({"by": "me"}, "a") != base_of({"by": "me"}, "b")
    one, other = (recipe(sites) for sites in (["embed"], ["blocks.0.resid_post"]))
    assert base_of(one, "a") == base_of(other, "b")
    assert base_of(one) != base_of(recipe(["embed"], batch=5))


def test_a_part_without_commit_is_an_error(made):
    made = harvested(made, "acts", ["blocks.0.resid_post"])
    with pytest.raises(store.NotFoundError, match="part-missing"):
        list(sequence_blocks(made, ["blocks.0.resid_post"], [77]))


def test_the_facts_of_a_model_that_are_gone_are_found_by_verify(made):
    facts = model_facts(harvested(made, "acts", ["blocks.0.resid_post"]))
    asset = made.put_asset(facts.to_files())
    columns = {"embed": "float32[16]"}
    options = {"recipe": recipe(["embed"]), "provenance": {"model": asset}}
    with made.writer("more", columns=columns, **options) as writer:
        writer.put(made.row_ids(), {"embed": np.zeros((len(made.row_ids()), 16), np.float32)})
    opened = made.refresh()
    assert model_facts(opened, ["more"]) == facts
    assert store.verify(opened).ok
    storage = opened.view.storage
    storage.delete([key for key in storage.keys("assets") if asset in key])
    report = store.verify(opened)
    assert [problem["kind"] for problem in report.problems] == ["asset-missing"]


def test_columns_of_a_store_in_lanes_are_asked_for_in_lanes(made):
    recipe = {"model": {"family": "gpt2"}, "batch": {"sequences": 2, "lanes": 64}}
    more = {"compute_dtype": "float32", "dtypes": {"blocks.0.resid_post": "float32"}}
    made = fill(made, "acts", {"blocks.0.resid_post": "float32[16]"}, **recipe, **more)
    error = missing_columns_error(made, ["blocks.1.resid_post"])
    assert "--lanes" in error.message
    assert "--batch 2" in error.message


def test_a_store_of_samples_alone_is_said_to_be_one(made):
    recipe = {"model": {"family": "gpt2"}, "mask": {"share": "0.5", "seed": 0}}
    with made.writer("few", columns={"h": "float32[16]"}, recipe=recipe) as writer:
        ids = made.row_ids()[::2]
        writer.put(ids, {"h": np.zeros((len(ids), 16), np.float32)})
    with pytest.raises(JobError, match=r"masked-group.*samples of the rows: few.*without --sample"):
        model_facts(made.refresh())
