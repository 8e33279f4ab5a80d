"""Datasets through Hugging Face's package: what was saved, what lies as files, and what the hub does not give."""

from __future__ import annotations

import json
import sys

import datasets
import pytest

import store
from ingest.config import TokensConfig
from ingest.errors import SourceError
from ingest.models.toy import build_tokenizer
from ingest.sources import SOURCES
from ingest.tokens import Tokenizing, tokens_recipe

TEXTS = ["the mill", "", None, "the river carried the boat", "naïve 日本"]
HuggingFace = SOURCES.get("huggingface")


@pytest.fixture(params=["dataset", "dict", "lines", "parquet"])
def folder(request, tmp_path):
    where = tmp_path / "data"
    names = [f"n{number}" for number in range(len(TEXTS))]
    data = datasets.Dataset.from_dict({"text": TEXTS, "title": names, "n": [*range(len(TEXTS))]})
    if request.param == "dataset":
        data.save_to_disk(where)
    elif request.param == "dict":
        datasets.DatasetDict({"train": data, "other": data.select([0])}).save_to_disk(where)
    elif request.param == "lines":
        where.mkdir()
        data.to_json(where / "train.jsonl")
    else:
        where.mkdir()
        data.to_parquet(where / "train.parquet")
    return str(where)


def test_rows_become_documents_in_their_order(folder):
    source = HuggingFace(paths=(folder,), name_field="title")
    wanted = [(f"n{number}", text) for number, text in enumerate(TEXTS) if text]
    assert [(one.name, one.text) for one in source.documents()] == wanted
    unnamed = HuggingFace(paths=(folder,))
    assert [one.name for one in unnamed.documents()] == ["train:1", "train:4", "train:5"]


def test_what_identifies_it_is_its_files_wherever_they_lie(folder, tmp_path):
    import shutil

    one = HuggingFace(paths=(folder,))
    two = HuggingFace(paths=(shutil.copytree(folder, str(tmp_path / "copy")),))
    recipes = [
        tokens_recipe(TokensConfig(source=source), source.inputs(), 16, "asset")
        for source in (one, two)
    ]
    assert recipes[0] == recipes[1]
    assert all(len(digest) == 64 for digest in one.inputs().values())


def test_a_store_of_it_is_that_of_the_same_lines(folder, tmp_path):
    lines = tmp_path / "c.jsonl"
    lines.write_text("\n".join(json.dumps({"text": text, "t": text}) for text in TEXTS))
    tokenizer, found = build_tokenizer("gpt2"), []
    for number, source in enumerate(
        (HuggingFace(paths=(folder,)), SOURCES.get("jsonl")(paths=(str(lines),)))
    ):
        made = store.create(f"memory://hf-{tmp_path.name}-{number}", part_rows=256)
        config = TokensConfig(source=source)
        cut = Tokenizing(config=config, source=source, tokenizer=tokenizer, context=16)
        cut.write(made.writer("tokens", recipe={}), lambda *_: None)
        found.append(made.refresh().arrow("tokens").drop_columns(["doc_id"]))
    assert found[0].equals(found[1])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"text_field": "words"}, r"no field words; its fields are text, title, n"),
        ({"text_field": "n"}, r"row 1 holds int, not text"),
        ({"split": "nowhere"}, r"nowhere"),
    ],
)
def test_what_it_does_not_hold_is_named(folder, settings, said):
    alone = "split" in settings and "state.json" in HuggingFace(paths=(folder,)).inputs()
    kind = "setting-unused" if alone else "corpus-unreadable"
    with pytest.raises(SourceError, match=rf"{kind}.*{said}"):
        list(HuggingFace(paths=(folder,), **settings).documents())


def test_a_place_that_is_none_is_refused(tmp_path):
    with pytest.raises(SourceError, match="corpus-missing"):
        HuggingFace(paths=(str(tmp_path / "none"),)).inputs()
    for settings in ({}, {"paths": ("a",), "name": "b/c"}, {"paths": ("a", "b")}):
        with pytest.raises(SourceError, match=r"bad-source.*--corpus.*huggingface:name="):
            HuggingFace(**settings).inputs()


def test_a_hub_that_cannot_be_reached_is_said(monkeypatch):
    from huggingface_hub import HfApi

    def gone(*_, **__):
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(HfApi, "dataset_info", gone)
    with pytest.raises(SourceError, match=r"corpus-unreadable.*owner/data.*no route.*network"):
        HuggingFace(name="owner/data").inputs()


def test_a_hub_dataset_is_streamed_at_its_revision_and_identified_by_its_commit(monkeypatch):
    from types import SimpleNamespace

    from huggingface_hub import HfApi

    asked = []

    def load(name, config, **options):
        asked.append((name, config, options))
        rows = [{"text": text} for text in TEXTS]
        return datasets.IterableDataset.from_generator(lambda: iter(rows))

    monkeypatch.setattr(
        HfApi, "dataset_info", lambda *_, revision: SimpleNamespace(sha=f"commit of {revision}")
    )
    monkeypatch.setattr(datasets, "load_dataset", load)
    source = HuggingFace(name="owner/data", config="small", revision="v2", split="test")
    assert source.inputs() == {"hub:owner/data": "commit of v2"}
    assert [one.name for one in source.documents()] == ["test:1", "test:4", "test:5"]
    options = {"split": "test", "revision": "commit of v2", "streaming": True}
    assert asked == [("owner/data", "small", options)]


def test_without_the_package_one_is_told_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SourceError, match=r"missing-package.*pip install 'actlake\[datasets\]'"):
        list(HuggingFace(paths=(folder,)).documents())


def test_an_error_without_words_is_named(monkeypatch):
    from huggingface_hub import HfApi

    def slow(*_, **__):
        raise TimeoutError

    monkeypatch.setattr(HfApi, "dataset_info", slow)
    with pytest.raises(SourceError, match=r"corpus-unreadable.*TimeoutError"):
        HuggingFace(name="owner/data").inputs()


def test_a_revision_of_a_folder_is_refused(folder):
    with pytest.raises(SourceError, match=r"setting-unused: revision=v2"):
        list(HuggingFace(paths=(folder,), revision="v2").documents())
