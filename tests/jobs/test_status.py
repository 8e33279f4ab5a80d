"""Status from another terminal: counts from commits, pace from what they tell."""

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

import store
from jobs import cli
from jobs.status import QUIET_SECONDS, describe, status

NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)
PARTS = 6


@pytest.fixture
def opened(tmp_path):
    made = store.create(tmp_path / "s", part_rows=256)
    with made.writer("tokens", recipe={}) as writer:
        for _ in range(PARTS):
            writer.put([store.TokenSequence(token_ids=np.arange(200))])
            writer.flush()
        writer.seal()
    return made.refresh()


def _commit(opened, parts, ends, *, seconds="2.0", waits="0.5"):
    """Commit parts of a group as workers do; ``ends`` are seconds before NOW."""
    for part, ago in zip(parts, ends, strict=True):
        told = {
            "finished": (NOW - timedelta(seconds=ago)).isoformat(timespec="milliseconds"),
            "seconds": seconds,
            "store_seconds": waits,
        }
        writer = opened.writer("acts", columns={"h": "float32"}, recipe={}, provenance=told)
        rows = opened.row_ids(slice(part * 200, part * 200 + 200))
        writer.put(rows, {"h": np.zeros(200, np.float32)})


def _acts(opened):
    [group] = [g for g in status(opened, now=NOW)["groups"] if g["name"] == "acts"]
    return group


def test_a_group_that_is_worked_on(opened):
    _commit(opened, [0, 1, 2], [24, 14, 4])
    group = _acts(opened)
    assert (group["parts"], group["of_parts"], group["left"]) == (3, 6, 3)
    assert (group["rows"], group["of_rows"]) == (600, 1200)
    assert group["state"] == "working"
    assert group["rows_per_second"] == pytest.approx(400 / 20)
    assert group["store_share"] == pytest.approx(0.25)
    assert group["seconds_left"] == pytest.approx(600 / 20)
    said = describe(status(opened, now=NOW))
    assert "3 of 6 parts, 600 of 1,200 rows, working, 0 failed, 3 left, 20 rows/s" in said
    assert "25% of the workers' time waiting for the store, 30 s left" in said


def test_a_pause_is_not_part_of_the_rate(opened):
    _commit(opened, [0, 1, 2, 3], [90_000, 89_990, 14, 4])
    assert _acts(opened)["rows_per_second"] == pytest.approx(200 / 10)


def test_a_group_nobody_works_on(opened):
    _commit(opened, [0, 1], [QUIET_SECONDS + 20, QUIET_SECONDS + 10])
    group = _acts(opened)
    assert group["state"] == "idle"
    assert group["seconds_left"] is None


def test_one_commit_has_no_rate(opened):
    _commit(opened, [0], [3])
    assert _acts(opened)["rows_per_second"] is None


def test_a_complete_group(opened):
    _commit(opened, range(PARTS), range(60, 0, -10))
    assert opened.seal("acts")
    group = _acts(opened)
    assert (group["state"], group["left"], group["seconds_left"]) == ("complete", 0, None)


def test_failed_parts_are_named_until_they_are_done(opened):
    from store.layout import failed_key
    from store.records import make_record

    _commit(opened, [0], [3])
    for part, attempt in ((0, "a" * 16), (4, "b" * 16)):
        body = {"group": "acts", "part": part, "attempt": attempt, "error": "OSError: fire"}
        data, _ = make_record("failed", opened.id, body)
        opened.view.storage.create(failed_key("acts", part, attempt), data)
    group = _acts(opened)
    assert group["failed"] == [{"part": 4, "error": "OSError: fire"}]
    assert (group["parts"], group["left"], group["state"]) == (1, 4, "working")
    assert "part 4 failed: OSError: fire" in describe(status(opened, now=NOW))


def test_groups_of_other_programs_tell_counts_only(opened):
    with opened.writer("mine", columns={"h": "float32"}, recipe={}) as writer:
        writer.put(opened.row_ids(slice(0, 200)), {"h": np.zeros(200, np.float32)})
    [group] = [g for g in status(opened)["groups"] if g["name"] == "mine"]
    assert (group["parts"], group["state"], group["rows_per_second"]) == (1, "idle", None)


def test_a_run_that_ended_with_failed_parts_is_not_called_working(opened):
    from store.layout import failed_key
    from store.records import make_record

    _commit(opened, range(PARTS - 1), range(50, 0, -10))
    body = {"group": "acts", "part": PARTS - 1, "attempt": "a" * 16, "error": "OSError: fire"}
    data, _ = make_record("failed", opened.id, body)
    opened.view.storage.create(failed_key("acts", PARTS - 1, "a" * 16), data)
    group = _acts(opened)
    assert (group["left"], group["state"], group["seconds_left"]) == (0, "idle", None)
    assert "1 failed, 0 left" in describe(status(opened, now=NOW))


def test_the_time_left_is_not_told_while_nothing_comes(opened):
    _commit(opened, [0, 1, 2], [42, 40, 38])
    group = _acts(opened)
    assert group["state"] == "working"
    assert group["seconds_left"] is None


@pytest.mark.parametrize(
    "told",
    [
        {"finished": "2026-11-28"},
        {"finished": "soon", "seconds": "1", "store_seconds": "0"},
        {"finished": "2026-11-28T12:00:00", "seconds": "1", "store_seconds": "0"},
        {"finished": "2026-11-28T12:00:00+00:00", "seconds": "long", "store_seconds": "0"},
    ],
    ids=["nothing else", "no time", "no zone", "no number"],
)
def test_provenance_of_other_programs_is_not_taken_for_ours(opened, told):
    columns = {"h": "float32"}
    with opened.writer("mine", columns=columns, recipe={}, provenance=told) as writer:
        writer.put(opened.row_ids(slice(0, 200)), {"h": np.zeros(200, np.float32)})
    [group] = [g for g in status(opened)["groups"] if g["name"] == "mine"]
    assert (group["parts"], group["rows_per_second"], group["last"]) == (1, None, None)


def test_tokens_that_still_grow_promise_no_end(tmp_path):
    made = store.create(tmp_path / "s", part_rows=256)
    writer = made.writer("tokens", recipe={})
    writer.put([store.TokenSequence(token_ids=np.arange(9))])
    writer.flush()
    found = status(made)
    assert not found["tokens_sealed"]
    assert "totals may grow" in describe(found)


def test_a_store_of_nothing(tmp_path):
    found = status(store.create(tmp_path / "s", part_rows=256))
    assert found["groups"] == []
    assert "nothing is committed yet" in describe(found)


def test_the_verb_answers_in_json_and_text(opened, capsys):
    _commit(opened, [0, 1], [20, 10])
    assert cli.main(["status", opened.url, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [group["name"] for group in found["groups"]] == ["tokens", "acts"]
    assert cli.main(["status", opened.url]) == 0
    assert "2 of 6 parts" in capsys.readouterr().out
    assert cli.main(["status", opened.url + "-not", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["kind"] == "store-missing"
