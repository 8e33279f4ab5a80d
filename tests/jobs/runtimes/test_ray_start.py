"""Ray's start: signals end it cleanly, folders fit and do not gather."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from jobs.errors import RefusedError
from jobs.runtimes import ray as door

LONGEST = "/session_2026-11-28_11-34-33_170237_1234567/sockets/plasma_store"


def test_a_socket_in_the_longest_folder_taken_fits_its_path():
    folder = f"/{door.FOLDER_PREFIX}1234567-" + "x" * 8
    assert door._BASE_PATH + len(folder) + len(LONGEST) <= 107
    assert len("/tmp") <= door._BASE_PATH


def test_folders_of_the_dead_are_removed_and_others_kept(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    gone = tmp_path / f"{door.FOLDER_PREFIX}{int(ended.stdout)}-abc"
    mine = tmp_path / f"{door.FOLDER_PREFIX}{os.getpid()}-abc"
    others = tmp_path / f"{door.FOLDER_PREFIX}demo-x"
    for folder in (gone, mine, others):
        (folder / "session").mkdir(parents=True)
    door._remove_left_folders(tmp_path)
    assert [folder.exists() for folder in (gone, mine, others)] == [False, True, True]


def test_workers_that_would_crowd_a_machine_out_are_refused():
    with pytest.raises(RefusedError, match=r"resource-missing.*fewer --workers"):
        door._check_crowd(door.CROWD * door._cpus() + 1)
    door._check_crowd(door.CROWD * door._cpus())


def _noted():
    got = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, _: got.append(n))
    return got


@pytest.fixture
def got():
    """Signals our own handlers were given."""
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    yield _noted()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["INT", "TERM"])
def test_a_signal_that_comes_meanwhile_is_given_to_its_handler_afterwards(got, number):
    def start():
        with door._signals_kept():
            signal.raise_signal(number)
            assert got == []

    with pytest.raises(KeyboardInterrupt):
        start()
    assert got == [number]


def test_the_exit_ray_makes_of_sigterm_counts_as_the_signal(got):
    def start():
        with door._signals_kept():
            raise SystemExit(15)

    with pytest.raises(KeyboardInterrupt):
        start()
    assert got == [signal.SIGTERM]


SCRIPT = """
import signal, sys
from jobs.interrupts import Interrupts
from jobs.runtimes.ray import Ray

class Worker:
    def run(self, part): return part
    def close(self): pass

interrupts = Interrupts()
try:
    with interrupts.installed(), Ray(workers=1, threads=1) as runtime:
        print("starting", flush=True)
        list(runtime.map(Worker, range(100000)))
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.cluster
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["INT", "TERM"])
@pytest.mark.parametrize("after", [0.0, 0.5, 2.0])
def test_a_signal_while_ray_starts_ends_the_run_and_leaves_no_folder(tmp_path, number, after):
    base = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))  # short enough for sockets
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(base)},
    )  # fmt: skip
    assert process.stdout.readline() == "starting\n"
    until = time.monotonic() + 60
    while not list(base.glob(f"{door.FOLDER_PREFIX}*")) and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(after)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err[-2000:]
    assert "Traceback" not in err
    assert not list(base.glob(f"{door.FOLDER_PREFIX}*"))
    base.rmdir()
