"""What the tokens group is a function of, and what is refused before a row is written."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import store
from ingest.config import TokensConfig
from ingest.contract import SourceDocument
from ingest.errors import IngestError, ModelError
from ingest.models.toy import TEXT, build_tokenizer
from ingest.sources.text import Text
from ingest.tokens import (
    Tokenizing,
    check_same_tokenizer,
    resolve_context,
    tokenizer_files,
    tokens_recipe,
)
from store.errors import ConflictError


@pytest.fixture(scope="module")
def bert():
    return build_tokenizer("bert")


@pytest.fixture(scope="module")
def gpt2():
    return build_tokenizer("gpt2")


class OneText:
    """A source of one document."""

    def documents(self):
        yield SourceDocument(name="d", text=TEXT)


def tokenizing(tokenizer, context=16):
    config = TokensConfig(source=OneText())
    return Tokenizing(config=config, source=config.source, tokenizer=tokenizer, context=context)


def silent(*_):
    pass


def recipe(folder, **options):
    source = Text(paths=(str(folder),), **options)
    return tokens_recipe(TokensConfig(source=source), source.inputs(), 16, "asset")


def test_a_recipe_is_of_contents_not_of_places(tmp_path):
    for folder in ("here", "there", "else"):
        (tmp_path / folder).mkdir()
        for n in range(3):
            (tmp_path / folder / f"{n}.txt").write_text(f"{n} {folder == 'else'}")
    assert recipe(tmp_path / "here") == recipe(tmp_path / "there")
    assert recipe(tmp_path / "here") != recipe(tmp_path / "else")
    assert recipe(tmp_path / "here") != recipe(tmp_path / "here", order_seed=1)
    assert str(tmp_path) not in repr(recipe(tmp_path / "here"))


def test_many_inputs_are_one_hash_of_all(tmp_path):
    for n in range(17):
        (tmp_path / f"{n}.txt").write_text(str(n))
    before = recipe(tmp_path)["inputs"]
    assert before["files"] == 17
    (tmp_path / "16.txt").write_text("changed")
    assert recipe(tmp_path)["inputs"]["sha256"] != before["sha256"]


def test_another_recipe_over_the_same_store_is_refused(bert):
    held = store.create("memory://recipe-other", part_rows=256)
    tokenizing(bert).write(held.writer("tokens", recipe={"of": "tests"}), silent)
    with pytest.raises(ConflictError):
        held.writer("tokens", recipe={"of": "others"})


@pytest.mark.parametrize(
    ("asked", "positions", "context"),
    [(None, 512, 256), (None, 64, 64), (None, None, 256), (32, 64, 32)],
)
def test_the_context_is_at_most_the_models_positions(asked, positions, context):
    loaded = SimpleNamespace(adapter=SimpleNamespace(max_positions=positions), name="m")
    assert resolve_context(TokensConfig(source=None, context=asked), loaded) == context


def test_a_context_beyond_the_positions_is_refused():
    loaded = SimpleNamespace(adapter=SimpleNamespace(max_positions=64), name="m")
    with pytest.raises(IngestError, match=r"context-too-long.*65 tokens.*64 positions"):
        resolve_context(TokensConfig(source=None, context=65), loaded)


def test_a_context_of_special_tokens_alone_is_refused(bert):
    with pytest.raises(IngestError, match="context-too-short"):
        tokenizing(bert, 2)
    assert list(tokenizing(bert, 3).sequences(None))


@pytest.mark.parametrize("name", ["rows", "context", "part_rows"])
@pytest.mark.parametrize("value", [0, -1])
def test_numbers_are_positive(name, value):
    with pytest.raises(IngestError, match="bad-number"):
        TokensConfig(source=None, **{name: value})


def test_the_same_tokenizer_is_told_by_its_file(tmp_path, bert, gpt2):
    folders = {"one": bert, "two": gpt2}
    for name, tokenizer in folders.items():
        tokenizer.save_pretrained(str(tmp_path / name))
    held = store.create("memory://same-tokenizer", part_rows=256)
    asset = held.put_asset(tokenizer_files(tmp_path / "one"))
    with held.writer("tokens", recipe={"tokenizer": asset}) as writer:
        tokenizing(bert).write(writer, silent)
    check_same_tokenizer(held.refresh(), SimpleNamespace(folder=tmp_path / "one", name="one"))
    with pytest.raises(ModelError, match="tokenizer-mismatch"):
        check_same_tokenizer(held.refresh(), SimpleNamespace(folder=tmp_path / "two", name="two"))
