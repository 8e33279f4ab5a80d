"""Results and their run cards: what comes back, what is refused, what a crash leaves."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jobs.results
from jobs.errors import JobError
from jobs.machine import hardware, memory_bytes, revision, versions
from jobs.results import Result
from jobs.run_card import RunCard, canonical_json, config_hash
from store.errors import ConflictError, CorruptError, InvalidInputError, NotFoundError

CONFIG = {"variant": {"kind": "topk", "latents": 64, "k": 4}, "steps": 10, "lr": 3e-4, "seed": 7}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(value=json_values)
def test_canonical_json_comes_back_equal_and_is_a_function_of_the_value(value):
    text = canonical_json(value)
    assert json.loads(text) == value
    assert canonical_json(json.loads(text)) == text


def test_the_order_of_a_configs_keys_does_not_matter():
    assert config_hash({"a": 1, "b": 2}) == config_hash({"b": 2, "a": 1})
    assert config_hash({"a": 1, "b": 2}) != config_hash({"a": 1, "b": 2.5})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"x": Path("x")}, {1, 2}])
def test_a_value_without_json_form_is_refused(value):
    with pytest.raises(InvalidInputError, match="not-json"):
        canonical_json({"value": value})


def test_tables_tensors_files_and_log_come_back(tmp_path):
    result = Result.create(tmp_path, "train", CONFIG, store="s", pin="p", seed=7)
    assert result.path == tmp_path / "results" / f"train-{config_hash(CONFIG)[:8]}"
    step_R = np.arange(3, dtype=np.int64)
    result.write_table("curve", {"step": step_R, "fvu": step_R / 2, "name": ["a", "<b>", "ü"]})
    result.write_tensors("moments", {"mean": np.ones(4, dtype=np.float32)[::2]})
    result.write_file("dictionary.json", b"{}")
    result.log({"step": 1})
    result.log({"step": 2})
    result.finish()

    again = Result.open(result.path)
    assert again.tables() == ["curve"]
    table = again.table("curve")
    np.testing.assert_array_equal(table["step"], step_R)
    assert table["step"].dtype == np.int64
    np.testing.assert_array_equal(table["fvu"], [0, 0.5, 1])
    assert list(table["name"]) == ["a", "<b>", "ü"]
    np.testing.assert_array_equal(again.tensors("moments")["mean"], np.ones(2, np.float32))
    assert again.read_file("dictionary.json") == b"{}"
    assert [record["step"] for record in again.records()] == [1, 2]


def test_the_card_says_what_ran_where_and_for_how_long(tmp_path):
    with Result.create(tmp_path, "eval", CONFIG, store="s", pin="p", digest="d", seed=7) as result:
        assert Result.open(result.path).card.outcome == "running"
    card = Result.open(result.path).card
    assert (card.verb, card.store, card.pin, card.digest, card.seed) == ("eval", "s", "p", "d", 7)
    assert card.config == CONFIG
    assert card.outcome == "done"
    assert card.wall_seconds >= 0
    assert card.peak_bytes > 1_000_000
    assert card.versions["numpy"] == np.__version__
    assert card.revision["version"]
    assert card.started.endswith("+00:00")
    assert RunCard.from_json(json.loads(json.dumps(card.to_json()))) == card
    assert (result.path / "card.json").read_text() == canonical_json(card.to_json())


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (JobError("no", kind="diverged"), "failed: diverged"),
        (ZeroDivisionError(), "failed: ZeroDivisionError"),
        (KeyboardInterrupt(), "interrupted"),
        (SystemExit(130), "interrupted"),
    ],
    ids=["ours", "foreign", "ctrl-c", "exit"],
)
def test_the_outcome_names_how_a_run_ended(tmp_path, error, outcome):
    with (
        pytest.raises(type(error)),
        Result.create(tmp_path, "train", CONFIG) as result,
    ):
        raise error
    assert Result.open(result.path).card.outcome == outcome


def test_an_unfinished_result_is_resumed_with_its_files_and_its_time(tmp_path):
    first = Result.create(tmp_path, "train", CONFIG)
    first.write_file("checkpoint.bin", b"17")
    first.finish("interrupted")
    second = Result.create(tmp_path, "train", dict(reversed(CONFIG.items())))
    assert second.path == first.path
    assert second.read_file("checkpoint.bin") == b"17"
    assert second.card.outcome == "running"
    assert second.card.started == first.card.started
    assert second.finish().wall_seconds >= first.card.wall_seconds


def test_a_done_result_is_found_and_not_written_again(tmp_path):
    with Result.create(tmp_path, "train", CONFIG) as first:
        first.write_file("x.bin", b"1")
    again = Result.create(tmp_path, "train", CONFIG)
    assert again.done
    with pytest.raises(InvalidInputError, match="read-only"):
        again.write_file("x.bin", b"2")
    with again:
        pass
    assert again.card == first.card
    assert again.read_file("x.bin") == b"1"


def test_another_config_in_the_same_folder_is_refused(tmp_path):
    with Result.create(tmp_path, "train", CONFIG) as result:
        pass
    card = json.loads((result.path / "card.json").read_text())
    card["config"]["steps"] = 11
    (result.path / "card.json").write_text(json.dumps(card))
    before = (result.path / "card.json").read_bytes()
    with pytest.raises(ConflictError, match="other-config"):
        Result.create(tmp_path, "train", CONFIG)
    assert (result.path / "card.json").read_bytes() == before


@pytest.mark.parametrize("other", [{"pin": "q"}, {"store": "t"}], ids=["pin", "store"])
def test_other_rows_are_refused(tmp_path, other):
    rows = {"store": "s", "pin": "p"}
    Result.create(tmp_path, "eval", CONFIG, **rows).finish()
    with pytest.raises(ConflictError, match="other-pin"):
        Result.create(tmp_path, "eval", CONFIG, **{**rows, **other})


def test_two_writers_of_one_result_are_refused(tmp_path):
    first = Result.create(tmp_path, "eval", CONFIG)
    with pytest.raises(ConflictError, match="result-busy"):
        Result.create(tmp_path, "eval", CONFIG)
    first.finish("interrupted")
    Result.create(tmp_path, "eval", CONFIG).finish()


# Processes are plain scripts: under import mode importlib a child could not import this file.
WRITE_UNTIL_KILLED = """
import sys
from jobs.results import Result
result = Result.create(sys.argv[1], "train", {config!r})
value = 0
while True:
    result.write_file("state.bin", value.to_bytes(4, "little") * 20_000)
    result.log({{"value": value}})
    value += 1
    if value == 3:
        print("ready", flush=True)
"""

HELD = """
import time
import numpy
from jobs.machine import PeakMemory, memory_bytes
with PeakMemory(interval_seconds=0.005) as memory:
    before = memory_bytes()
    block = numpy.ones(40_000_000, dtype=numpy.uint8)
    deadline = time.monotonic() + 60
    while memory._peak_bytes < before + 30_000_000 and time.monotonic() < deadline:
        time.sleep(0.01)
    held = memory._peak_bytes
    del block
    after = memory_bytes()
print(before, held, after, memory.peak_bytes)
"""

HOLD = """
import signal
import numpy
block = numpy.ones(60_000_000, dtype=numpy.uint8)
print("ready", flush=True)
signal.pause()
"""


@contextmanager
def child(code, *arguments):
    """Run a script, wait until it says that it is ready, and kill it in the end."""
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("moment_seconds", [0.0, 0.011, 0.037])
def test_a_killed_writer_leaves_whole_files_and_a_readable_log(tmp_path, moment_seconds):
    with child(WRITE_UNTIL_KILLED.format(config=CONFIG), str(tmp_path)):
        threading.Event().wait(moment_seconds)
    result = Result.create(tmp_path, "train", CONFIG)  # the dead writer holds nothing
    state = result.read_file("state.bin")
    assert len(state) == 80_000
    assert len(set(np.frombuffer(state, np.int32).tolist())) == 1
    assert not list(result.path.glob(".*.tmp"))
    values = [record["value"] for record in result.records()]
    assert values == list(range(len(values)))
    assert len(values) >= 2
    result.finish()


def test_half_a_log_line_is_left_out_and_not_glued_to_the_next(tmp_path):
    result = Result.create(tmp_path, "train", CONFIG)
    result.log({"step": 1})
    with (result.path / "log.jsonl").open("ab") as file:
        file.write(b'{"step": 2, "ti')
    result.log({"step": 3})
    assert [record["step"] for record in result.records()] == [1, 3]
    result.finish()


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    result = Result.create(tmp_path, "train", CONFIG)
    result.write_file("x.bin", b"old")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(jobs.results.os, "fsync", full)
        with pytest.raises(JobError, match=r"disk-full: .*x\.bin.*Free some space"):
            result.write_file("x.bin", b"new")
    assert result.read_file("x.bin") == b"old"
    assert not list(result.path.glob(".*.tmp"))
    result.finish()


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "results").write_text("a file")
    with pytest.raises(JobError, match="not-permitted"):
        Result.create(tmp_path, "train", CONFIG)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "card.json"])
def test_names_that_leave_the_folder_are_refused(tmp_path, name):
    result = Result.create(tmp_path, "train", CONFIG)
    with pytest.raises(InvalidInputError, match="bad-name"):
        result.write_file(name, b"")
    result.finish()


def test_a_missing_table_lists_what_is_there(tmp_path):
    result = Result.create(tmp_path, "train", CONFIG)
    with pytest.raises(NotFoundError, match=r"no-table: .*no curve\.parquet; it has card\.json"):
        result.table("curve")
    result.finish()


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (None, NotFoundError),
        ("{", CorruptError),
        ("[]", CorruptError),
        ('{"v": 1}', CorruptError),
        ('{"v": 99}', CorruptError),
    ],
    ids=["no-card", "no-json", "no-object", "no-keys", "newer"],
)
def test_what_is_no_result_is_said_so(tmp_path, text, error):
    if text is not None:
        (tmp_path / "card.json").write_text(text)
    with pytest.raises(error):
        Result.open(tmp_path)


def test_the_machine_is_described():
    machine = hardware()
    assert machine["cpu"]
    assert machine["cores"] >= 1
    assert machine["memory_bytes"] > 2**28
    assert "python" in versions()
    assert set(revision()) == {"version", "commit"}


def test_peak_memory_sees_what_was_held_and_given_back():
    # A process of its own: beside other tests, memory that they let go would hide the block.
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True)
    before, held, after, peak = map(int, done.stdout.split())
    assert held >= before + 30_000_000
    assert after < held
    assert peak >= held


def test_peak_memory_counts_children():
    before = memory_bytes()
    with child(HOLD):
        assert memory_bytes() >= before + 60_000_000
