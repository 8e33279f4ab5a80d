"""What every test gets: fixed seeds, hypothesis profiles, and no sleeping and no cluster unless marked.

Profiles: ``dev`` (few examples, new ones each time), ``ci`` (derandomised; taken where the variable CI is
set, as .ci/run does), ``nightly`` (many; ``pytest --hypothesis-profile nightly``).
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import random
import signal
import sys
import time
from pathlib import Path

# Tests compute little and start processes: threads that spin for one another cost more than they give,
# several times over where a core is taken. Set before torch is imported, and inherited by those processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from store.testing import servers

TESTS = Path(__file__).parent
_numbers = itertools.count()
OURS = ("store", "ingest", "jobs")

# Deadlines measure the machine, not the code; two cores shared with other work break any of them.
_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("dev", max_examples=25, **_COMMON)
settings.register_profile("ci", max_examples=50, derandomize=True, database=None, **_COMMON)
settings.register_profile("nightly", max_examples=2000, **_COMMON)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

MAY_SLEEP = ("slow", "cluster", "peers", "loops")
MAY_START_RAY = ("cluster",)


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Whoever is started in the background by a shell ignores it, and so would every process a test starts and interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seeded():
    """Fix the global generators: ours use none, libraries under test may."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture
def rng():
    """A generator of its own for each test, the same on every run."""
    return np.random.default_rng(0)


def _marked(request, names):
    return any(request.node.get_closest_marker(name) for name in names)


@pytest.fixture(autouse=True)
def _no_sleep(request, monkeypatch):
    """Refuse ``time.sleep`` to our code and tests; a library's own waiting is its own affair."""
    if _marked(request, MAY_SLEEP):
        return
    sleep = time.sleep

    def refuse(seconds):
        caller = sys._getframe(1)
        name = str(caller.f_globals.get("__name__", ""))
        if name.split(".")[0] in OURS or TESTS in Path(caller.f_code.co_filename).parents:
            msg = f"{name}:{caller.f_lineno} sleeps {seconds} s in a test without marker 'slow'"
            raise AssertionError(msg)
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", refuse)


@pytest.fixture(autouse=True)
def _no_cluster(request, monkeypatch):
    """Refuse Ray's start to tests without marker ``cluster``, and notice it where it came about."""
    if _marked(request, MAY_START_RAY):
        yield
        return

    def refuse(*_arguments, **_options):
        msg = f"{request.node.nodeid} starts Ray without marker 'cluster'"
        raise AssertionError(msg)

    if "ray" in sys.modules:
        monkeypatch.setattr(sys.modules["ray"], "init", refuse)
    yield
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        sys.modules["ray"].shutdown()
        refuse()


def _bucket(scheme, service):
    """Run a service with a bucket while a session of tests needs it; skip where it is not installed."""
    fsspec = pytest.importorskip("fsspec")
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as running:
        try:
            environment = running.enter_context(service)
        except servers.MissingError as error:
            pytest.skip(f"{scheme}:// is untested here: {error}")
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
        with contextlib.suppress(FileExistsError):  # s3 keeps its own for the whole process
            fsspec.filesystem(scheme, skip_instance_cache=True).mkdir(servers.BUCKET)
        yield environment


@pytest.fixture(scope="session")
def s3_server():
    """The address of an S3 server in this process, with a bucket called ``bucket``."""
    for environment in _bucket("s3", servers.s3()):
        yield environment["AWS_ENDPOINT_URL"].removeprefix("http://")


@pytest.fixture(scope="session")
def gs_server():
    """A Google Cloud Storage server with a bucket."""
    yield from _bucket("gs", servers.gs())


@pytest.fixture(scope="session")
def az_server(tmp_path_factory):
    """An Azure Blob server with a bucket (a container)."""
    yield from _bucket("az", servers.az(tmp_path_factory.mktemp("azure")))


@pytest.fixture
def s3_url(s3_server):
    """Where an empty store may be made in the bucket."""
    return f"s3://bucket/store-{next(_numbers)}"


@pytest.fixture(params=["s3", "gs", "az"])
def bucket_url(request):
    """Where an empty store may be made in a bucket of every kind of service."""
    request.getfixturevalue(f"{request.param}_server")
    return f"{request.param}://bucket/store-{next(_numbers)}"


@pytest.fixture(scope="session")
def oracle():
    """A function that loads a module of tests/oracles by name."""

    def load(name):
        path = TESTS / "oracles" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"oracle_{name}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
