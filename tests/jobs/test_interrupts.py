"""Ctrl-C and SIGTERM, sent for real to a process of their own."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from jobs.interrupts import Interrupts

SIGNALS = (signal.SIGINT, signal.SIGTERM)
each_signal = pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)

HEAD = """
import os, signal, sys
from jobs.interrupts import Interrupts
number = signal.Signals(int(sys.argv[1]))
def hit():
    os.kill(os.getpid(), number)
    for _ in range(10_000):
        pass
def say(word):
    print(word, flush=True)
"""

AT_ONCE = """
with Interrupts().installed():
    try:
        hit()
        say("went on")
    except KeyboardInterrupt:
        say("interrupted")
"""
DEFERRED = """
with Interrupts().installed() as interrupts:
    with interrupts.deferred():
        for step in range(5):
            if step == 2:
                hit()
            say(step)
            if interrupts.asked():
                say("asked")
                raise KeyboardInterrupt
"""
UNHEARD = """
with Interrupts().installed() as interrupts:
    try:
        with interrupts.deferred():
            hit()
            say("ended without looking")
        say("went on")
    except KeyboardInterrupt:
        say("interrupted")
"""
TWICE = """
with Interrupts().installed() as interrupts:
    try:
        with interrupts.deferred():
            hit()
            say("asked" if interrupts.asked() else "missed")
            hit()
            say("went on")
    except KeyboardInterrupt:
        say("interrupted")
"""
ERROR_WINS = """
with Interrupts().installed() as interrupts:
    try:
        with interrupts.deferred():
            hit()
            raise ValueError("its own")
    except ValueError:
        say("its own error")
"""
IGNORED = """
signal.signal(number, signal.SIG_IGN)
with Interrupts().installed():
    hit()
    say("went on")
assert signal.getsignal(number) is signal.SIG_IGN
"""
AFTER = """
with Interrupts().installed():
    pass
try:
    hit()
    say("went on")
except KeyboardInterrupt:
    say("python's own")
"""


def run(script, number, **options):
    return subprocess.run(
        [sys.executable, "-c", HEAD + script, str(int(number))],
        capture_output=True, text=True, timeout=120, check=False, **options,
    )  # fmt: skip


@each_signal
@pytest.mark.parametrize(
    ("script", "lines"),
    [
        (AT_ONCE, ["interrupted"]),
        (DEFERRED, ["0", "1", "2", "asked"]),
        (UNHEARD, ["ended without looking", "interrupted"]),
        (TWICE, ["asked", "interrupted"]),
        (ERROR_WINS, ["its own error"]),
        (IGNORED, ["went on"]),
    ],
    ids=[
        "at once",
        "after the step",
        "at the end of the loop",
        "a second one",
        "the loop's error",
        "ignored",
    ],
)
def test_a_signal_ends_work_where_it_should(number, script, lines):
    done = run(script, number)
    assert done.stdout.split("\n")[:-1] == lines, done.stderr
    if script == DEFERRED:
        assert "KeyboardInterrupt" in done.stderr
    else:
        assert done.returncode == 0, done.stderr


def test_handlers_are_put_back():
    assert run(AFTER, signal.SIGINT).stdout == "python's own\n"
    assert run(AFTER, signal.SIGTERM).returncode == -signal.SIGTERM


def test_handlers_are_put_back_here_too():
    before = [signal.getsignal(number) for number in SIGNALS]

    def work():
        with Interrupts().installed() as interrupts:
            assert not interrupts.asked()
            assert [signal.getsignal(number) for number in SIGNALS] != before
            raise ValueError("work")

    with pytest.raises(ValueError, match="work"):
        work()
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_thread_changes_nothing():
    before = [signal.getsignal(number) for number in SIGNALS]
    seen = []

    def work():
        with Interrupts().installed() as interrupts, interrupts.deferred():
            seen.append([signal.getsignal(number) for number in SIGNALS])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


@each_signal
def test_the_front_door_exits_with_130(number):
    script = (
        "import sys\n"
        "import jobs.cli as cli\n"
        "def wait(config, context):\n"
        "    print('ready', flush=True)\n"
        "    sys.stdin.readline()\n"
        "cli.VERBS = {'tables': (cli.VERBS['tables'][0], wait)}\n"
        "sys.exit(cli.main(['tables', 'nowhere']))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(timeout=30) == 130
        assert "interrupted: what was committed stands" in process.stderr.read()
