"""The facts of a model: a record that answers as its adapter does, and survives its bytes."""

import json

import pytest
from transformers import AutoModel

import store
from ingest.errors import ModelError, SiteError
from ingest.models import adapt, resolve_sites, toy
from ingest.models.contract import ADAPTERS
from ingest.models.facts import ModelFacts

FAMILIES = ("bert", "gpt2", "llama")


@pytest.fixture(params=FAMILIES)
def adapter(request):
    return adapt(toy.build(request.param))


def test_they_answer_as_the_adapter_does_and_survive_json(adapter):
    facts = ModelFacts.of(adapter)
    again = ModelFacts.from_files(facts.to_files())
    assert again == facts
    assert json.loads(json.dumps(facts.to_json())) == facts.to_json()
    assert (again.family, again.layers, again.width) == (
        adapter.family,
        adapter.layers,
        adapter.width,
    )
    assert again.causal == adapter.causal
    for layer in range(adapter.layers):
        assert again.attention(layer) == adapter.attention(layer)
    for name, site in adapter.sites().items():
        assert again.shape(name) == tuple(site.shape)
        assert again.sites()[name].depth == site.depth
    patterns = ["blocks.*.resid_post", "@50%"]
    assert resolve_sites(patterns, again) == resolve_sites(patterns, adapter)


def test_equal_models_have_equal_files_and_so_one_asset(adapter):
    files = ModelFacts.of(adapter).to_files()
    assert files == ModelFacts.of(adapter).to_files()
    made = store.create("memory://facts", part_rows=256)
    assert made.put_asset(files) == made.put_asset(files)


def test_what_is_not_there_is_refused(adapter):
    facts = ModelFacts.of(adapter)
    with pytest.raises(SiteError, match="no block 9"):
        facts.attention(9)
    with pytest.raises(SiteError, match="no site 'nothing'"):
        facts.shape("nothing")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_is_described_without_its_weights(tmp_path, family):
    folder = toy.save(family, tmp_path / "m")
    for file in folder.glob("*.safetensors"):
        file.unlink()
    facts, digest = ModelFacts.of_folder(folder)
    assert facts == ModelFacts.of(adapt(toy.build(family, vocab=facts_vocab(folder))))
    assert len(digest) == 64


def facts_vocab(folder):
    return json.loads((folder / "config.json").read_text())["vocab_size"]


def test_a_folder_without_a_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{nonsense")
    with pytest.raises(ModelError, match="cannot be described"):
        ModelFacts.of_folder(tmp_path)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, 64),
        ({"trained_length": 16}, 16),
        (
            {
                "rope_parameters": {
                    "rope_type": "linear", "factor": 4.0, "rope_theta": 1e4,
                    "original_max_position_embeddings": 32,
                }
            },
            32,
        ),
    ],
    ids=["positions", "its own word", "a stretched rotation"],
)  # fmt: skip
def test_the_trained_length_is_what_the_config_says(given, wanted):
    family = ADAPTERS.get("llama")
    config = family.toy(vocab=32, layers=1, width=16, heads=2, positions=64)
    config = type(config)(**{**config.to_dict(), **given})
    facts = ModelFacts.of(adapt(AutoModel.from_config(config)))
    assert facts.trained_length == wanted
    assert ModelFacts.from_json(facts.to_json()) == facts
    older = {name: value for name, value in facts.to_json().items() if name != "trained_length"}
    assert ModelFacts.from_json(older).trained_length is None
