"""SIGKILL the driver, a worker or a whole Ray node at random moments of an ingest: rerun, same digest.

Two nodes with a worker each beside a head without; once each here, twenty times by hand: ``pytest -m loops``.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import store
from jobs.runtimes.ray import set_environment

SITES = "blocks.{0,1}.resid_post,blocks.1.mlp.post"
LIMIT_SECONDS = 200


def _words(url: Path, corpus: Path, model: Path, *more: str) -> list[str]:
    words = [sys.executable, "-m", "jobs.cli", "ingest", "--model", model, "--corpus", corpus]
    words += ["--out", url, "--sites", SITES, "--context", "32", "--part-rows", "256"]
    words += ["--batch", "1", "--dtype", "bfloat16", "--threads", "1", "--json", *more]
    return [str(word) for word in words]


class Nodes:
    """A head that does no work and two nodes that do."""

    def __init__(self, cluster) -> None:
        self.cluster = cluster
        self.address = cluster.address
        self.working = [self._add(), self._add()]

    def _add(self):
        return self.cluster.add_node(num_cpus=1, object_store_memory=80_000_000)

    def kill_one(self, rng: random.Random) -> None:
        """Kill all processes of a node; another takes its place for the next round."""
        self.cluster.remove_node(self.working.pop(rng.randrange(2)), allow_graceful=False)

    def fill_up(self) -> None:
        while len(self.working) < 2:
            self.working.append(self._add())

    def workers(self) -> list[int]:
        """Processes of actors on our nodes."""
        raylets = {node.all_processes["raylet"][0].process.pid for node in self.working}
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if parent in raylets and b"_Actor" in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
        return found


@pytest.fixture(scope="module")
def nodes():
    set_environment(local=True)
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "object_store_memory": 80_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield Nodes(cluster)
    cluster.shutdown()


@pytest.fixture(scope="module")
def whole(tmp_path_factory, corpus, model):
    url = tmp_path_factory.mktemp("whole") / "s"
    subprocess.run(_words(url, corpus, model), check=True, capture_output=True)
    return store.open(url).digest()


def _begun(process, url: Path, parts: int, seconds: float) -> None:
    """Wait until some parts are committed, and a little longer."""
    while process.poll() is None and len(list(url.glob("groups/acts/commits/*/*"))) < parts:
        time.sleep(0.002)
    time.sleep(seconds)


def _end(process) -> str:
    _, err = process.communicate(timeout=LIMIT_SECONDS)
    return err[-3000:]


def _kill(kind: str, process, nodes: Nodes, rng: random.Random) -> bool:
    """Kill something; return whether the run was still going on."""
    going = process.poll() is None
    if kind == "driver":
        process.send_signal(signal.SIGKILL)
    elif kind == "node":
        nodes.kill_one(rng)
    elif pids := nodes.workers():
        with contextlib.suppress(ProcessLookupError):
            os.kill(rng.choice(pids), signal.SIGKILL)
    return going


def _round(kind: str, number: int, nodes: Nodes, url: Path, corpus, model, want: str) -> bool:
    rng = random.Random(f"{kind} {number}")
    nodes.fill_up()
    words = _words(url, corpus, model, "--ray", nodes.address)
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    _begun(process, url, rng.randrange(12), rng.uniform(0, 0.05))
    going = _kill(kind, process, nodes, rng)
    err = _end(process)
    if kind != "driver":  # the driver gets over the death of anybody else
        assert process.returncode == 0, err
    report = store.verify(store.open(url)) if (url / "store.json").exists() else None
    assert report is None or report.ok, report.problems
    again = subprocess.run(words, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout + again.stderr[-3000:]
    assert store.open(url).coverage["acts"].sealed
    report = store.verify(store.open(url))
    assert report.ok, report.problems
    assert report.digest == want
    return going


KINDS = ("driver", "worker", "node")


@pytest.mark.cluster
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS)
def test_one_kill_leaves_the_same_store(nodes, tmp_path, corpus, model, whole, kind):
    _round(kind, 0, nodes, tmp_path / "s", corpus, model, whole)


@pytest.mark.loops
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", KINDS)
def test_twenty_kills_leave_the_same_store(nodes, tmp_path, corpus, model, whole, kind, capsys):
    rounds = int(os.environ.get("ACTLAKE_KILLS", "20"))
    went = [
        _round(kind, number, nodes, tmp_path / f"s{number}", corpus, model, whole)
        for number in range(rounds)
    ]
    with capsys.disabled():
        sys.stdout.write(f"\n{kind}: {rounds} kills, {sum(went)} while the run was going on\n")
    assert 2 * sum(went) >= rounds
