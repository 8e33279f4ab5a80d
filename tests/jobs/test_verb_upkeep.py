"""``gc``, ``drop``, ``retire``, ``tombstone``, ``purge`` and ``doctor`` from the front door."""

import json

import pytest

import store
from jobs import cli
from jobs.errors import UsageError
from jobs.verbs.upkeep import numbers, seconds
from store.testing.small import fill, tokens_store


@pytest.fixture
def made(tmp_path):
    return fill(tokens_store(tmp_path / "s"), "acts", {"y": "int32"})


def run(capsys, *words):
    code = cli.main([*map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_group_is_dropped_and_its_bytes_freed(made, capsys):
    code, found = run(capsys, "drop", made.url, "acts", "--reason", "a try")
    assert (code, found["dropped"]) == (0, "acts")
    assert "acts" not in made.refresh().groups
    assert run(capsys, "gc", made.url)[1]["objects"] == 0
    code, found = run(capsys, "gc", made.url, "--older-than", "0", "--dry-run")
    assert (code, found["dry_run"]) == (0, True)
    assert found["objects"] > 0
    assert run(capsys, "gc", made.url, "--older-than", "0")[1]["objects"] == found["objects"]
    assert store.verify(made.refresh()).ok


def test_parts_are_retired(made, capsys):
    code, found = run(capsys, "retire", made.url, "--parts", "0-1", "--reason", "old")
    assert (code, found["retired"]) == (0, [0, 1])
    assert 0 not in made.refresh().view.parts("acts")


def test_documents_are_removed_and_purged(made, capsys):
    rows = len(made.row_ids())
    code, found = run(capsys, "tombstone", made.url, "--documents", "1,3", "--reason", "asked to")
    assert (code, found["documents"]) == (0, [1, 3])
    left = len(made.refresh().row_ids())
    code, found = run(capsys, "purge", made.url, "--reason", "asked to")
    assert code == 0
    assert sum(part["rows"] for part in found["parts"]) == rows - left > 0
    assert found["left"] == []
    assert run(capsys, "verify", made.url)[0] == 0
    again = run(capsys, "tombstone", made.url, "--documents", "1,1", "--reason", "again")
    assert again == (
        0,
        {"url": made.url, "tombstone": made.live().view.tombstones[0], "documents": [1]},
    )
    assert cli.main(["tombstone", made.url, "--documents", "1", "--reason", "again"]) == 0
    assert "1 document of" in (said := capsys.readouterr().out)
    assert "removed already" in said
    code, found = run(capsys, "tombstone", made.url, "--documents", "999", "--reason", "again")
    assert (code, found["error"]["kind"]) == (1, "document-missing")


def test_a_storage_is_examined(tmp_path, capsys):
    code, found = run(capsys, "doctor", tmp_path / "new")
    assert (code, found["ok"]) == (0, True)
    assert cli.main(["doctor", str(tmp_path / "new")]) == 0
    assert "ok  created once" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_words_are_read_and_others_refused():
    assert [seconds(text) for text in ("0", "90s", "30m", "12h", "7d", "1.5d")] == [
        0, 90, 1800, 43_200, 604_800, 129_600,
    ]  # fmt: skip
    assert numbers("3,7") == [3, 7]
    assert numbers("0-2, 9") == [0, 1, 2, 9]
    with pytest.raises(UsageError, match="100,000,000 parts"):
        numbers("0-99999999")
    for bad in ("", "week", "-1", "7w"):
        with pytest.raises(UsageError, match="older-than"):
            seconds(bad)
    for bad in ("", "a", "3-1", "1-", "-2"):
        with pytest.raises(UsageError, match="parts"):
            numbers(bad)
