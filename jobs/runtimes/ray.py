"""``ray``: workers are actors, on this machine or a cluster. The only door to Ray, imported when first used.

Actors wrap the plain worker class and write their own rows; small records come back. What to do when is decided in
``schedule.py``; this file only asks and tells. Starting a local Ray takes about five seconds and once per `Ray`.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from ingest.contract import Worker
from jobs.errors import JobError, RefusedError
from jobs.runtimes.crew import RayCrew
from jobs.runtimes.post import first_line
from jobs.runtimes.room import Ask, room
from jobs.runtimes.schedule import Schedule
from jobs.runtimes.work import parts_failed, work

OBJECT_STORE_BYTES = 100_000_000
"""Plans and records only; Ray's least is 75 MB."""
CONNECT_SECONDS = 5.0
CROWD = 4
"""Threads a CPU that a local Ray starts at most: beyond it workers only take each other's time and memory."""
# Ray's head speaks gRPC: whoever does not answer these bytes with a frame of settings does not.
_HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_HTTP2_SETTINGS = bytes([4])
FOLDER_PREFIX = "actlake-"
# A socket's path holds 107 characters. Ray adds /session_<date>_<time>_<us>_<pid>/sockets/plasma_store (64 with a pid
# of seven digits), we add /actlake-<pid>-<random> (25).
_BASE_PATH = 107 - 64 - 25


@dataclass(kw_only=True)
class Ray:
    """Places workers as Ray actors.

    Use it in a ``with`` block, or call ``close``: a Ray it started ends with it.

    Parameters
    ----------
    address
        ``host:port`` of a cluster's head, or ``auto``; None starts a local Ray, which ends with this object.
    workers
        Workers at a time; None: as many as there is room for, and not more than parts.
    threads
        Threads of a worker, and the CPUs it asks for; None: as many as torch uses here, so that the same values
        come out bit for bit as with ``in_process``.
    gpus
        GPUs a worker asks for.
    resources
        Named resources a worker asks for; refused at once where no node offers them.

    Raises
    ------
    JobError
        ``ray-unreachable``, ``ray-failed``.
    RefusedError
        ``resource-missing``: no node has room for a worker; says what they offer.
    """

    elsewhere: ClassVar[bool] = True
    address: str | None = None
    workers: int | None = None
    threads: int | None = None
    gpus: float = 0
    resources: Mapping[str, float] = field(default_factory=dict)
    _temporary: str | None = field(default=None, init=False)
    _ours: bool = field(default=False, init=False)
    _crew: RayCrew | None = field(default=None, init=False)

    def map(
        self, make_worker: Callable[[], Worker], parts: Sequence[int]
    ) -> Iterator[tuple[int, Any]]:
        """Yield (part, what its worker returned) as parts are done.

        Raises
        ------
        JobError
            ``parts-failed`` at the end: parts that failed three times, with the last failure of each, while the others
            were done. ``workers-fail``: nothing succeeds any more. ``no-workers``: none came up in two minutes.
        """
        if not parts:
            return
        ask, fit = self.start()
        count = min(fit, self.workers or len(parts), len(parts))
        crew = self._crew_of(ask)
        schedule = Schedule(parts)
        try:
            crew.begin(make_worker, count)
            yield from work(schedule, crew, count)
        finally:
            crew.end()
        crew.close()
        if schedule.given_up:
            raise parts_failed(schedule.given_up)

    def close(self) -> None:
        """End the workers, and the Ray that was started here; one that was joined goes on."""
        if self._crew is not None:
            self._crew.dismiss()
            self._crew = None
        if self._ours:
            import ray

            ray.shutdown()
            self._ours = False
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None

    def __enter__(self) -> Self:
        """Refuse what cannot be had before any work; a plain local Ray starts when it gets its first parts."""
        if self.address is not None or self.resources or self.gpus:
            try:
                self.start()
            except BaseException:
                self.close()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> tuple[Ask, int]:
        """Start or join where that is still to do; return what a worker asks for and how many fit."""
        threads = self.threads or _threads_here()
        set_environment(local=self.address is None)
        with _signals_kept():
            import ray

            if not ray.is_initialized():
                if self.address is not None:
                    _join(self.address)
                else:
                    _check_crowd(threads * (self.workers or 1))
                    self._temporary = _start_local(max(_cpus(), threads * (self.workers or 1)))
                self._ours = True
        ask = Ask(cpus=threads, gpus=self.gpus, named=dict(self.resources))
        return ask, self._room(ask)

    def _crew_of(self, ask: Ask) -> RayCrew:
        """Return the crew of the job before where it fits, else a new one."""
        if self._crew is not None and self._crew.ask != ask:
            self._crew.dismiss()
            self._crew = None
        if self._crew is None:
            import ray

            self._crew = RayCrew(ray, ask)
        return self._crew

    def _room(self, ask: Ask) -> int:
        """Return how many workers fit; raise where none does."""
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        found = room(ask, nodes)
        if found < (self.workers or 1):
            offered = "; ".join(_offer(node) for node in nodes)
            raise RefusedError(
                f"{self.workers or 1} workers were asked for, each with {ask}; there is room for {found}. The nodes of "
                f"{self.address or 'the Ray started here'} offer: {offered}. No part was begun. Ask for what "
                "they offer, or start nodes that offer it (ray start --resources=…).",
                kind="resource-missing",
            )
        return found


# -- starting and joining ------------------------------------------------------------------------------


def set_environment(*, local: bool) -> None:
    """Tell Ray what it reads when it is imported and hands on to its processes; what is set already stays.

    Parameters
    ----------
    local
        A Ray of our own: its authentication gets a token that needs no file, since the home folder may be read-only.
        A cluster's token is its own affair.
    """
    os.environ.setdefault("RAY_worker_niceness", "0")  # its own choice is 15
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "8")  # tries to connect, a second each
    if local and "ray" not in sys.modules:
        mode = os.environ.setdefault("RAY_AUTH_MODE", "token")
        if mode == "token" and not _has_token():
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Keep our own way of ending, and end only behind what is inside.

    Ray takes SIGTERM over, in Python when imported and below it when started, and does not survive an exception in the
    midst of its start: a signal is noted meanwhile and given to its handler afterwards. Ray's own handler of SIGTERM
    raises ``SystemExit``; that counts as the signal, too.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    ours = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in ours.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, lambda number, _frame: came.append(number))
    try:
        yield
    except SystemExit:
        came.append(signal.SIGTERM)
    finally:
        for number, handler in ours.items():
            if handler is not None:  # None: set outside Python, which cannot put it back
                signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])
        raise KeyboardInterrupt  # where the handler only takes note: nothing was started


def _start_local(cpus: int) -> str:
    """Start a Ray of our own on this machine and return its folder."""
    import ray

    base = tempfile.gettempdir()
    base = base if len(base) <= _BASE_PATH else "/tmp"
    _remove_left_folders(Path(base))
    folder = tempfile.mkdtemp(prefix=f"{FOLDER_PREFIX}{os.getpid()}-", dir=base)
    try:
        ray.init(
            address="local",
            num_cpus=cpus,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            configure_logging=False,
            logging_level="error",
            log_to_driver=False,
            _temp_dir=folder,
        )
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
        raise JobError(
            f"Ray could not be started in {folder}: {first_line(error)}. No part was begun. Free memory, disk and "
            "/dev/shm, or use --runtime in_process.",
            kind="ray-failed",
        ) from error
    except BaseException:  # Ray's handler of SIGTERM raises SystemExit
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def _remove_left_folders(base: Path) -> None:
    """Remove what drivers left that were killed, so that none of it gathers."""
    for folder in base.glob(f"{FOLDER_PREFIX}*-*"):
        pid = folder.name.removeprefix(FOLDER_PREFIX).partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            shutil.rmtree(folder, ignore_errors=True)


def _has_token() -> bool:
    """Whether a token is there already, in the environment or where Ray keeps it."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return True
    path = os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")
    return os.access(os.path.expanduser(path), os.R_OK)  # noqa: PTH111


def _join(address: str) -> None:
    """Join a cluster, or say soon that it cannot be reached: Ray itself would wait two minutes."""
    import ray

    if address != "auto":
        _check_answers(address)
    try:
        ray.init(
            address=address, configure_logging=False, logging_level="error", log_to_driver=False
        )
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        ray.shutdown()
        raise _unreachable(address, first_line(error)) from error


def _check_answers(address: str) -> None:
    host, found, port = address.rpartition(":")
    if not found or not port.isdigit() or "/" in host:
        raise JobError(
            f"{address!r} is no address of a Ray cluster. Nothing was started. Say HOST:PORT of its head "
            "(usually port 6379), or auto on one of its nodes; ray:// is not for this.",
            kind="ray-unreachable",
        )
    try:
        plain = host.removeprefix("[").removesuffix("]")  # as IPv6 is written
        with socket.create_connection((plain, int(port)), timeout=CONNECT_SECONDS) as line:
            if os.environ.get("RAY_USE_TLS", "0") in {"0", "false"}:
                line.sendall(_HTTP2_HELLO)
                if line.recv(9)[3:4] != _HTTP2_SETTINGS:
                    raise _unreachable(address, "something else than Ray answers there")
    except (OSError, OverflowError) as error:
        raise _unreachable(address, first_line(error)) from error


def _unreachable(address: str, why: str) -> JobError:
    return JobError(
        f"no Ray cluster answers at {address}: {why}. No part was begun. Check the address, that `ray status` works on "
        "this machine (the driver runs on a node of the cluster), its token (RAY_AUTH_MODE=token) and that all nodes "
        "have the same Ray.",
        kind="ray-unreachable",
    )


def _check_crowd(threads: int) -> None:
    """Raise ``resource-missing`` where workers would crowd this machine out."""
    if threads > CROWD * _cpus():
        raise RefusedError(
            f"workers with {threads} threads together were asked for on a machine of {_cpus()} CPUs; at most {CROWD} a "
            "CPU are started. No part was begun. Ask for fewer --workers or --threads, or join a cluster (--ray).",
            kind="resource-missing",
        )


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _threads_here() -> int:
    import torch

    return int(torch.get_num_threads())


def _offer(node: Mapping[str, float]) -> str:
    shown = {k: v for k, v in node.items() if not k.startswith("node:") and "memory" not in k}
    return ", ".join(f"{name} {amount:g}" for name, amount in sorted(shown.items())) or "nothing"
