"""Weights beside columns: they make of one site what the model made of it, in every family that has both."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image

import store
from ingest.config import HarvestConfig, TokensConfig
from ingest.errors import IngestError, SiteError
from ingest.models import adapt, load, toy
from ingest.models.matrices import known, matrices, of_files, resolve, to_files
from ingest.run import ingest
from ingest.sources import SOURCES
from jobs.runtimes.in_process import InProcess


@pytest.fixture(params=toy.reading(), scope="module")
def loaded(request, tmp_path_factory):
    return load(toy.save(request.param, tmp_path_factory.mktemp("m")), dtype="float32")


def test_they_lead_from_site_to_site(loaded):
    adapter = loaded.adapter
    ids = torch.randint(5, 200, (2, 21), generator=torch.Generator().manual_seed(1))
    got = adapter.capture(ids, torch.ones_like(ids), list(adapter.sites()))
    names = [name for name in known(adapter) if name.startswith("blocks.")]
    held = matrices(loaded, names)
    for name, weight in held.items():
        block, _, kind = name.rpartition(".")[0].rpartition(".")
        before, after = {"attn": ("z", "out"), "mlp": ("post", "out")}[kind]
        given, wanted = got[f"{block}.{kind}.{before}"], got[f"{block}.{kind}.{after}"]
        assert weight.shape == (*given.shape[2:], wanted.shape[-1])
        made = given.flatten(2) @ weight.flatten(0, -2)
        # What is left is the bias: the same for every token.
        rest = (wanted - made).flatten(0, 1)
        torch.testing.assert_close(rest, rest[:1].expand_as(rest), rtol=1e-4, atol=1e-4)
    if adapter.attends:
        assert "blocks.0.attn.W_O" in held


def test_embeddings_are_the_first_and_the_last_thing_done(loaded):
    model = loaded.model
    if model.get_output_embeddings() is None:
        assert "W_U" not in known(loaded.adapter)
        return
    held = matrices(loaded, ["W_E", "W_U"])
    ids = torch.randint(5, 200, (1, 9), generator=torch.Generator().manual_seed(1))
    assert held["W_E"].shape[0] == held["W_U"].shape[1]
    got = loaded.adapter.capture(ids, torch.ones_like(ids), ["embed"])["embed"]
    scale = got.norm() / held["W_E"][ids].norm()
    assert loaded.adapter.family.startswith("gemma") or scale == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close(held["W_E"][ids] * scale, got, rtol=1e-5, atol=1e-5)
    if "final.normalized" not in loaded.adapter.sites() or "gemma" in loaded.adapter.family:
        return  # logits are capped
    logits = []
    got = loaded.adapter.capture(
        ids, torch.ones_like(ids), ["final.normalized"], logits=logits.append
    )
    torch.testing.assert_close(
        got["final.normalized"] @ held["W_U"], logits[0], rtol=1e-4, atol=1e-4
    )


def test_a_harvest_keeps_what_it_is_asked_for(tmp_path):
    folder = toy.save("gpt2", tmp_path / "m")
    (tmp_path / "a.txt").write_text(toy.TEXT)
    tokens = TokensConfig(source=SOURCES.get("text")(paths=(str(tmp_path / "a.txt"),)))
    harvest = HarvestConfig(
        model=str(folder), sites=("blocks.0.attn.z",), dtype="float32", weights=("W_O", "W_U")
    )
    ingest(tmp_path / "s", tokens, harvest, runtime=InProcess())
    held = store.open(tmp_path / "s")
    asset = held.view.commit("acts", 0).provenance["weights"]
    kept = of_files(held.asset(asset))
    assert sorted(kept) == ["W_U", "blocks.0.attn.W_O", "blocks.1.attn.W_O"]
    own = matrices(load(folder, dtype="float32"), sorted(kept))
    assert all(torch.equal(kept[name], own[name]) for name in kept)
    plain = HarvestConfig(model=str(folder), sites=("blocks.0.attn.z",), dtype="float32")
    ingest(tmp_path / "t", tokens, plain, runtime=InProcess())
    assert held.digest() == store.open(tmp_path / "t").digest()  # they are no part of the data
    assert of_files(to_files(own)).keys() == own.keys()


def test_weights_that_are_none_are_refused_before_a_store_is_made(tmp_path):
    folder = toy.save("gpt2", tmp_path / "m")
    bert, vit = (toy.save(name, tmp_path / name) for name in ("bert", "vit"))
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(toy.TEXT)
    tokens = TokensConfig(source=SOURCES.get("text")(paths=(str(tmp_path / "a.txt"),)))
    images = TokensConfig(source=SOURCES.get("images")(paths=(str(tmp_path / "a.png"),)))
    for model, weights, error, said in (
        (folder, ("W_Q",), SiteError, r"unknown-weight.*Known: W_E, W_U, blocks\.\*\.attn\.W_O"),
        (bert, ("W_U",), SiteError, "unknown-weight.*Known: W_E,"),
        (vit, ("W_E",), SiteError, r"unknown-weight.*Known: blocks\.\*\.attn\.W_O"),
    ):
        harvest = HarvestConfig(model=str(model), weights=weights)
        with pytest.raises(error, match=said):
            ingest(tmp_path / "s", images if model == vit else tokens, harvest, runtime=InProcess())
    assert not (tmp_path / "s").exists()


def test_patterns_name_blocks_in_order():
    adapter = adapt(toy.build("llama", layers=3))
    assert resolve(["W_out", "W_E"], adapter) == [
        "W_E",
        *(f"blocks.{n}.mlp.W_out" for n in range(3)),
    ]
    assert resolve(["blocks.1.*"], adapter) == ["blocks.1.attn.W_O", "blocks.1.mlp.W_out"]


def test_weights_that_come_too_late_are_refused(tmp_path):
    folder = toy.save("gpt2", tmp_path / "m")
    (tmp_path / "a.txt").write_text(toy.TEXT)
    tokens = TokensConfig(source=SOURCES.get("text")(paths=(str(tmp_path / "a.txt"),)))
    plain = HarvestConfig(model=str(folder), sites=("blocks.0.attn.z",), dtype="float32")
    ingest(tmp_path / "s", tokens, plain, runtime=InProcess())
    with pytest.raises(IngestError, match=r"weights-late.*--group"):
        ingest(tmp_path / "s", tokens, replace(plain, weights=("W_O",)), runtime=InProcess())
