"""A model that attends otherwise than its family says is found out before anything is written."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import store
from ingest.attended import attention_blocks, check_attention
from ingest.config import HarvestConfig, TokensConfig
from ingest.errors import ModelError
from ingest.models import HookedModel, adapt, toy
from ingest.run import ingest
from ingest.sources import SOURCES
from jobs.runtimes.in_process import InProcess

Z = ("blocks.1.attn.z",)
FAMILIES = [name for name in toy.reading() if name != "mamba"]


def batch():
    ids = torch.randint(5, 200, (3, 37), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 30:] = 0
    return ids, mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_attends_as_it_says(family, dtype):
    adapter = adapt(toy.build(family, layers=2).to(dtype))
    error = check_attention(adapter, *batch(), list(adapter.sites()))
    assert 0 < error < (1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize(
    ("family", "wrong"),
    [
        ("llama", {"scale": 0.3}),
        ("llama", {"window": 8}),
        ("llama", {"causal": False}),
        ("gemma2", {"softcap": None}),
        ("gemma2", {"window": None}),
        ("bert", {"causal": True}),
    ],
    ids=lambda value: str(value),
)
def test_one_wrong_word_is_found(monkeypatch, family, wrong):
    adapter = adapt(toy.build(family, layers=2))
    own = HookedModel.attention
    monkeypatch.setattr(HookedModel, "attention", lambda *a: replace(own(*a), **wrong))
    with pytest.raises(ModelError, match=r"attention-differs.*block 0.*Nothing was written"):
        check_attention(adapter, *batch(), ["blocks.0.attn.v", "blocks.1.attn.rot_q"])
    assert check_attention(adapter, *batch(), ["blocks.0.resid_post", "blocks.0.attn.out"]) == 0.0


def test_blocks_are_those_of_attention_sites():
    sites = [
        "embed",
        "blocks.3.attn.out",
        "blocks.2.attn.z",
        "blocks.10.attn.rot_k",
        "blocks.2.attn.q",
    ]
    assert attention_blocks(sites) == [2, 10]


def harvest(tmp_path, sites):
    (tmp_path / "text.txt").write_text(toy.TEXT * 3)
    source = SOURCES.get("text")(paths=(str(tmp_path / "text.txt"),))
    ingest(
        tmp_path / "s",
        TokensConfig(source=source, context=32, part_rows=256, special_tokens=False),
        HarvestConfig(model=str(tmp_path / "m"), sites=sites, dtype="float32"),
        runtime=InProcess(),
    )
    return store.open(tmp_path / "s")


def test_a_harvest_asks_once_and_its_commits_say_what_was_found(tmp_path, monkeypatch):
    toy.save("llama", tmp_path / "m")
    asked = []
    own = check_attention
    monkeypatch.setattr("ingest.harvest.check_attention", lambda *a: asked.append(a[3]) or own(*a))
    made = harvest(tmp_path, Z)
    commits = [made.view.commit("acts", part) for part in made.view.parts("acts")]
    assert len(commits) > 1
    assert asked == [list(Z)]
    assert all(0 < float(commit.provenance["attention_error"]) < 1e-5 for commit in commits)


def test_a_harvest_that_would_lie_writes_nothing(tmp_path, monkeypatch):
    toy.save("llama", tmp_path / "m")
    own = HookedModel.attention
    monkeypatch.setattr(HookedModel, "attention", lambda *a: replace(own(*a), scale=1.0))
    with pytest.raises(ModelError, match="attention-differs"):
        harvest(tmp_path, Z)
    assert not store.open(tmp_path / "s").view.parts("acts")
    monkeypatch.setattr(HookedModel, "attention", own)
    assert harvest(tmp_path, Z).view.parts("acts")


def test_one_token_proves_nothing_and_the_next_batch_is_asked(tmp_path, monkeypatch):
    """Texts of one token come first: attention over one token is its value, whatever the scale."""
    toy.save("llama", tmp_path / "m")
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(9):
        (folder / f"{number}.txt").write_text("a" if number < 8 else toy.TEXT)
    own = HookedModel.attention
    monkeypatch.setattr(HookedModel, "attention", lambda *a: replace(own(*a), scale=1.0))
    source = SOURCES.get("text")(paths=(str(folder),))
    tokens = TokensConfig(source=source, context=32, part_rows=256, special_tokens=False)
    config = HarvestConfig(model=str(tmp_path / "m"), sites=Z, dtype="float32", batch=4)
    with pytest.raises(ModelError, match="attention-differs"):
        ingest(tmp_path / "s", tokens, config, runtime=InProcess())
    assert not store.open(tmp_path / "s").view.parts("acts")
