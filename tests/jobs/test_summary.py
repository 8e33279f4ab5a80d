"""What a store holds, said in JSON and in words."""

from __future__ import annotations

import json

import numpy as np
import pytest

import store
from jobs.summary import describe, summarize
from store import verify


def sequence(doc_id, rows, split):
    document = store.Document(doc_id=doc_id, name=f"d{doc_id}", sha256="0" * 64, split=split)
    return store.TokenSequence(token_ids=np.arange(rows), spans=[(document, 0, rows)], split=split)


@pytest.fixture
def held(tmp_path):
    made = store.create(tmp_path / "store", part_rows=256)
    with made.writer("tokens", recipe={"of": "tests"}) as writer:
        for doc_id, rows, split in ((0, 200, 0), (0, 100, 0), (1, 60, 1), (2, 150, 0)):
            writer.put([sequence(doc_id, rows, split)])
        writer.put([store.TokenSequence(token_ids=np.arange(40), split=2)])
        writer.seal()
    made = made.refresh()
    ids = made.row_ids()
    with made.writer(
        "acts", columns={"h": "bfloat16[4,8]", "loss": "float32"}, recipe={"of": "acts"}
    ) as writer:
        writer.put(
            ids, {"h": np.ones((len(ids), 4, 8), np.float32), "loss": np.ones(len(ids), np.float32)}
        )
    made = made.refresh()
    first = ids[ids < made.part_stride]
    with made.writer(
        "late", columns={"codes": "codes"}, recipe={"of": "late"}, masked=True
    ) as writer:
        none = store.Codes(
            row=first[:1], latent=np.ones(1, np.uint32), value=np.ones(1, np.float32)
        )
        writer.put(first[:3], {"codes": none})
    return made.refresh()


def test_splits_count_every_row_and_each_document_once(held):
    assert summarize(held)["splits"] == [
        {"split": "train", "documents": 2, "rows": 450},
        {"split": "val", "documents": 1, "rows": 60},
        {"split": "test", "documents": 0, "rows": 40},  # rows of no document are rows all the same
    ]


def test_groups_are_described_with_bytes_and_coverage(held):
    summary = summarize(held)
    groups = {group["name"]: group for group in summary["groups"]}
    assert list(groups) == ["tokens", "acts", "late"]
    acts, late = groups["acts"], groups["late"]
    assert (acts["rows"], acts["parts"], acts["of_parts"], acts["sealed"], acts["masked"]) == (
        550,
        3,
        3,
        True,
        False,
    )
    assert (late["rows"], late["parts"], late["of_parts"], late["sealed"], late["masked"]) == (
        3,
        1,
        3,
        False,
        True,
    )
    h, loss = acts["columns"]
    assert h == {
        "name": "h",
        "kind": "dense",
        "dtype": "bfloat16",
        "shape": [4, 8],
        "codec": "raw",
        "bytes": h["bytes"],
    }
    assert h["bytes"] >= 550 * 64
    assert (loss["kind"], loss["bytes"]) == ("scalar", 0)
    assert late["columns"][0]["dtype"] == "codes"
    on_disk = sum(f.stat().st_size for f in held_files(held, "acts"))
    assert acts["bytes"] <= on_disk
    assert acts["recipe"] == {"of": "acts"}
    assert summary["pin"] == held.pin_id()
    assert json.loads(json.dumps(summary)) == summary


def held_files(held, group):
    from pathlib import Path

    return [
        f
        for f in (Path(held.url.removeprefix("file://")) / "groups" / group / "parts").rglob("*")
        if f.is_file()
    ]


def test_a_verification_is_told_of(held):
    report = verify(held)
    summary = summarize(held, report=report)
    assert summary["digest"] == report.digest == held.digest()
    assert summary["verify"] == {
        "ok": True, "checked_bytes": report.checked_bytes, "problems": [], "orphans": 0,
    }  # fmt: skip


def test_words_name_everything(held):
    text = describe(summarize(held))
    for word in (
        "train",
        "450 rows",
        "group acts: 550 rows in 3 of 3 parts, sealed",
        "bfloat16",
        "4×8",
    ):
        assert word in text
    assert "group late: 3 rows in 1 of 3 parts, open" in text


def test_an_empty_store_is_described():
    empty = store.create("memory://summary-empty", part_rows=256)
    summary = summarize(empty)
    assert (summary["groups"], summary["splits"], summary["pin"]) == ([], [], None)
    assert empty.id in describe(summary)
    empty.writer("tokens", recipe={})
    assert [split["rows"] for split in summarize(empty.refresh())["splits"]] == [0, 0, 0]
