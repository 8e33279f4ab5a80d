"""``pretokenised``: ids from JSON Lines, and the lines that cannot be taken."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

import store
from ingest.config import HarvestConfig, TokensConfig
from ingest.contract import TokenSource, Vocabulary
from ingest.errors import SourceError
from ingest.models import toy
from ingest.run import ingest
from ingest.sources.pretokenised import Pretokenised
from jobs.runtimes.in_process import InProcess

WORDS = Vocabulary(tokens=320, special=(0,), bos=0)


def corpus(tmp_path, *lines):
    path = tmp_path / "ids.jsonl"
    path.write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    )
    return path


def said(path, **settings):
    return list(Pretokenised(paths=(str(path),), **settings).token_documents(WORDS))


def test_a_line_is_a_document(tmp_path):
    path = corpus(tmp_path, {"token_ids": [0, 5, 6]}, "", {"token_ids": []}, {"token_ids": [7]})
    one, two = said(path)
    assert (one.name, two.name) == ("ids.jsonl:1", "ids.jsonl:4")
    assert one.token_ids.dtype == np.int32
    assert (one.token_ids.tolist(), two.token_ids.tolist()) == ([0, 5, 6], [7])
    source = Pretokenised(paths=(str(path),))
    assert source.inputs() == {"ids.jsonl": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert isinstance(source, TokenSource)


def test_fields_may_be_named(tmp_path):
    path = corpus(tmp_path, {"input_ids": [3], "id": "a"}, {"input_ids": [4], "id": None})
    documents = said(path, ids_field="input_ids", name_field="id")
    assert [document.name for document in documents] == ["a", "ids.jsonl:2"]


@pytest.mark.parametrize(
    "line",
    ["[1, 2]", "{", {"ids": [1]}, {"token_ids": "1 2"}, {"token_ids": [1.5]}, {"token_ids": [True]},
     {"token_ids": [[1]]}, {"token_ids": [1 << 31]}, {"token_ids": None}],
    ids=str,
)  # fmt: skip
def test_a_line_without_ids_is_refused(tmp_path, line):
    path = corpus(tmp_path, {"token_ids": [1]}, line)
    with pytest.raises(SourceError, match=r"corpus-unreadable.*ids.jsonl:2"):
        said(path)


def test_no_ids_at_all_are_refused(tmp_path):
    with pytest.raises(SourceError, match="corpus-empty"):
        said(corpus(tmp_path, {"token_ids": []}))


def test_a_store_of_ready_ids(tmp_path):
    folder = toy.save("llama", tmp_path / "llama")
    path = corpus(tmp_path, {"token_ids": [0, *range(20, 40)]}, {"token_ids": [9, 8]})

    def made(name):
        return ingest(
            tmp_path / name,
            TokensConfig(source=Pretokenised(paths=(str(path),)), context=16),
            HarvestConfig(model=str(folder), sites=("blocks.1.attn.rot_k",), dtype="float32"),
            runtime=InProcess(),
        )

    assert made("s").rows == 23
    held = store.open(tmp_path / "s")
    assert held.arrow("tokens").column("token_id").to_pylist() == [0, *range(20, 40), 9, 8]
    assert held.arrow("sequences").column("rows").to_pylist() == [16, 5, 2]
    corpus(tmp_path, {"token_ids": [0, 400]})
    with pytest.raises(SourceError, match=r"bad-token-ids.*0 to 400"):
        made("t")
    assert not (tmp_path / "t").exists()
