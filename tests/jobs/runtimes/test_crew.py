"""What is said of a worker that is gone: the cause, not ids and addresses."""

import pytest

from jobs.runtimes.crew import death

KILLED = """The actor died unexpectedly before finishing this task.
\tclass_name: _Actor
\tactor_id: 0da5d4b2e1c1f0aa1f4d2b6701000000
\tpid: 4242
\tnamespace: 84a67c73-7f0c-4a53-9a0e-5f8c3e1c2b1a
\tip: 192.0.2.2
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker
unexpectedly exits with a connection error code 2. End of file. There are some potential root causes. (1) The process
is killed by SIGKILL by OOM killer due to high memory usage. (2) ray stop --force is called."""
MONITOR = """Task was killed due to the node running low on memory.
Memory on the node (IP: 192.0.2.2, ID: 11) where the task (actor ID: 22) was running was 22.9GB / 23.5GB (0.975),
which exceeds the memory usage threshold of 0.95."""


def test_a_killed_worker_is_told_by_what_happened():
    said = death(RuntimeError(KILLED), memory=False)
    assert said.kind == "worker-died"
    assert said.line.startswith("Worker unexpectedly exits with a connection error code 2.")
    assert "smaller --batch or fewer --workers" in said.line
    assert "0da5d4" not in said.line
    assert "\n" not in said.line


def test_rays_own_watch_over_memory_is_told_as_that():
    said = death(RuntimeError(MONITOR), memory=True)
    assert said.kind == "out-of-memory"
    assert "smaller --batch" in said.line


@pytest.mark.parametrize("text", ["", "something else happened"])
def test_what_is_not_known_is_told_as_it_is(text):
    said = death(RuntimeError(text), memory=False)
    assert said.line == text
