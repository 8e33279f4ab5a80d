"""A local Ray: workers get what was promised, die and are replaced, and what cannot be had is refused at once."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from jobs.errors import JobError, RefusedError
from jobs.runtimes.ray import Ray
from store.errors import InvalidInputError

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def ray_of_two():
    """Two workers of one thread each on a Ray of our own; started once, as a run of several jobs does."""
    with Ray(workers=2, threads=1) as runtime:
        yield runtime


def _facts():
    class Facts:
        def run(self, part):
            import torch

            time.sleep(0.05)
            return {
                "pid": os.getpid(),
                "nice": os.nice(0),
                "threads": torch.get_num_threads(),
                "omp": os.environ.get("OMP_NUM_THREADS"),
            }

        def close(self):
            pass

    return Facts()


def _meeting(folder, workers):
    """Facts of workers that wait for one another, so that none does all parts before the other is up."""
    folder.mkdir()

    def make():
        facts = _facts()

        class Meets:
            def run(self, part):
                (folder / str(os.getpid())).touch()
                until = time.monotonic() + 100
                while len(list(folder.iterdir())) < workers and time.monotonic() < until:
                    time.sleep(0.01)
                return facts.run(part)

            def close(self):
                pass

        return Meets()

    return make


def test_workers_get_their_threads_and_normal_priority(ray_of_two, tmp_path):
    found = dict(ray_of_two.map(_meeting(tmp_path / "a", 2), range(12)))
    assert sorted(found) == list(range(12))
    told = list(found.values())
    assert {facts["nice"] for facts in told} == {os.nice(0)} == {0}
    assert {(facts["threads"], facts["omp"]) for facts in told} == {(1, "1")}
    pids = {facts["pid"] for facts in told}
    assert len(pids) == 2
    again = {f["pid"] for _, f in ray_of_two.map(_meeting(tmp_path / "b", 2), range(12))}
    assert again == pids, "the next job should find the processes of the one before"


def test_no_part_no_worker(ray_of_two):
    assert list(ray_of_two.map(lambda: 1 / 0, [])) == []


def _dies_at(part, folder, times):
    class Dies:
        def run(self, at):
            if at == part:
                tries = len(list(folder.iterdir()))
                (folder / f"try-{tries}").touch()
                if tries < times:
                    os.kill(os.getpid(), signal.SIGKILL)
            return at

        def close(self):
            pass

    return Dies


def test_a_killed_worker_is_replaced_and_its_part_done_elsewhere(ray_of_two, tmp_path):
    found = dict(ray_of_two.map(_dies_at(3, tmp_path, 2), range(10)))
    assert found == {part: part for part in range(10)}
    assert len(list(tmp_path.iterdir())) == 3


def test_a_part_that_kills_every_worker_is_named_at_the_end(ray_of_two, tmp_path):
    done = []
    with pytest.raises(JobError, match=r"parts-failed.*part 3: worker-died") as caught:
        done.extend(part for part, _ in ray_of_two.map(_dies_at(3, tmp_path, 99), range(10)))
    assert sorted(done) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert set(caught.value.where["parts"]) == {"3"}
    # Where an answer to the part before is lost with its worker, that part is blamed for the death.
    assert 3 <= len(list(tmp_path.iterdir())) <= 5


def _raising(error):
    class Raises:
        def run(self, part):
            raise error

        def close(self):
            pass

    return Raises


def test_bad_input_is_raised_as_it_is_and_at_once(ray_of_two):
    error = InvalidInputError("column h is 5 wide", kind="width-mismatch", column="h")
    with pytest.raises(InvalidInputError, match="5 wide") as caught:
        list(ray_of_two.map(_raising(error), range(100)))
    assert caught.value.kind == "width-mismatch"
    assert caught.value.where == {"column": "h"}


def test_no_memory_is_said_in_words(ray_of_two):
    with pytest.raises(JobError, match=r"out-of-memory.*smaller --batch"):
        list(ray_of_two.map(_raising(MemoryError("9 TB")), [1, 2]))


def test_a_factory_that_holds_a_model_is_refused(ray_of_two):
    weights = b"x" * (65 << 20)
    with pytest.raises(JobError, match="worker-too-large"):
        list(ray_of_two.map(lambda: weights, [1]))


ABSENT = {
    "a named resource": ({"resources": {"gpu_node": 1}}, "gpu_node 1"),
    "a GPU": ({"gpus": 9}, "GPU 9"),
    "threads": ({"threads": 99}, "CPU 99"),
    "workers": ({"workers": 99}, "99 workers"),
}


@pytest.mark.parametrize(("asked", "says"), ABSENT.values(), ids=list(ABSENT))
def test_what_no_node_offers_is_refused_at_once(ray_of_two, asked, says):
    assert dict(ray_of_two.map(_facts, [0]))
    began = time.monotonic()
    with pytest.raises(RefusedError, match=rf"resource-missing.*{says}.*offer: CPU 2") as caught:
        list(Ray(**{"threads": 1, **asked}).map(_facts, [1, 2]))
    with pytest.raises(RefusedError, match="resource-missing"):
        Ray(**{"address": "auto", "threads": 1, **asked}).__enter__()
    assert time.monotonic() - began < 5
    assert caught.value.exit_code == 3


def test_leaving_early_ends_the_workers_in_hand(ray_of_two):
    results = ray_of_two.map(_facts, range(1000))
    next(results)
    began = time.monotonic()
    results.close()
    assert time.monotonic() - began < 20
    assert len(dict(ray_of_two.map(_facts, range(5)))) == 5


JOIN = """
import os, sys
from jobs.runtimes.ray import Ray

class Worker:
    def run(self, part): return os.getppid()
    def close(self): pass

with Ray(address=sys.argv[1], threads=1) as runtime:
    print("parts", sorted(part for part, _ in runtime.map(Worker, range(4))))
"""


def _join(address, **environment):
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", JOIN, address],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, **environment},
    )
    return done, time.monotonic() - began


def test_a_cluster_is_joined_by_its_address_and_goes_on(ray_of_two):
    import ray

    assert dict(ray_of_two.map(_facts, [0]))
    ray_of_two._crew.dismiss()  # its workers hold all there is
    address = ray.get_runtime_context().gcs_address
    done, _ = _join(address)
    assert "parts [0, 1, 2, 3]" in done.stdout, done.stderr
    assert len(dict(ray_of_two.map(_facts, range(3)))) == 3


def _say_mail(server):
    with server.accept()[0] as line:
        line.sendall(b"220 mail server ready\r\n")
        line.recv(100)


@pytest.mark.parametrize("kind", ["silent", "closed", "talks", "nonsense", "client"])
def test_an_address_no_ray_answers_at_is_said_soon(kind):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if kind == "closed":
            server.close()
        if kind == "talks":
            threading.Thread(target=_say_mail, args=[server]).start()
        plain = {"nonsense": "head", "client": "ray://127.0.0.1:10001"}
        done, took = _join(plain.get(kind, f"127.0.0.1:{port}"))
    assert done.returncode == 1
    assert "ray-unreachable" in done.stderr
    assert took < 40  # the promise is 20 s; python and torch start on a busy machine too
