"""What a run ran on: hardware, library versions, code revision, peak memory.

Everything here is provenance for run cards: facts about this machine and process that never change
a result. Reads ``/proc`` where there is one and says ``None`` where there is none; imports nothing
heavy.
"""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import threading
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

LIBRARIES = (
    "numpy", "torch", "transformers", "pyarrow", "polars", "zarr", "ray", "safetensors",
)  # fmt: skip

_PROC = Path("/proc")


def hardware() -> dict[str, str | int | None]:
    """Return ``{cpu, cores, memory_bytes, gpu}``; cores are those this process may use."""
    return {
        "cpu": _cpu_model(),
        "cores": _cores(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "gpu": _gpu_model(),
    }


def _cpu_model() -> str:
    for line in _lines(_PROC / "cpuinfo"):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpu_model() -> str | None:
    # The driver's own listing: asking torch would import it for verbs that never need it.
    for folder in sorted(_PROC.glob("driver/nvidia/gpus/*")):
        for line in _lines(folder / "information"):
            if line.startswith("Model:"):
                return line.partition(":")[2].strip()
    return None


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed libraries a result may depend on."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def revision() -> dict[str, str | None]:
    """Return ``{version, commit}``; the commit only where this very package lies in a checkout.

    The folder above the package must hold ``.git`` itself: an environment that happens to lie
    inside another project's checkout is not that project's code. A commit ends in ``-dirty`` where
    tracked files differ.
    """
    try:
        version: str | None = metadata.version("actlake")
    except metadata.PackageNotFoundError:
        version = None
    return {"version": version, "commit": _commit(Path(__file__).resolve().parents[1])}


def _commit(checkout: Path) -> str | None:
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


class PeakMemory:
    """Peak memory of this process and all its descendants, sampled from a daemon thread.

    Counts proportional set size (PSS), so pages shared between processes count once. A peak between
    two samples is missed. Where ``/proc`` has no ``smaps_rollup`` it falls back on the kernel's own
    high-water mark (RSS of this process plus that of its largest finished child).

    Parameters
    ----------
    interval_seconds
        Time between samples. One sample walks the page tables once: some milliseconds per GB.
    """

    def __init__(self, interval_seconds: float = 1.0) -> None:
        self.interval_seconds = interval_seconds
        self._peak_bytes = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def peak_bytes(self) -> int:
        """Largest sample so far; takes one more sample."""
        self._sample()
        return self._peak_bytes

    def start(self) -> PeakMemory:
        """Begin to sample."""
        self._sample()
        self._stop.clear()
        self._thread = threading.Thread(target=self._loop, name="peak-memory", daemon=True)
        self._thread.start()
        return self

    def halt(self) -> None:
        """Ask the thread to end, without waiting: safe from a finalizer."""
        self._stop.set()

    def stop(self) -> int:
        """End the thread and return the peak in bytes."""
        self.halt()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        return self.peak_bytes

    def __enter__(self) -> PeakMemory:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _loop(self) -> None:
        while not self._stop.wait(self.interval_seconds):
            self._sample()

    def _sample(self) -> None:
        self._peak_bytes = max(self._peak_bytes, memory_bytes())


def memory_bytes() -> int:
    """Return the PSS of this process and its descendants now, in bytes; see :class:`PeakMemory`."""
    own = _pss_bytes(os.getpid())
    if own is None:
        scale = 1 if sys.platform == "darwin" else 1024
        usages = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        return scale * sum(resource.getrusage(usage).ru_maxrss for usage in usages)
    return own + sum(_pss_bytes(pid) or 0 for pid in _descendants(os.getpid()))


def _pss_bytes(pid: int) -> int | None:
    for line in _lines(_PROC / str(pid) / "smaps_rollup"):
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return None


def _descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for stat in _PROC.glob("[0-9]*/stat"):
        text = "".join(_lines(stat))
        if text:  # "pid (name with any character) state ppid …"
            parent = int(text.rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found: list[int] = []
    frontier = [root]
    while frontier:
        below = children.get(frontier.pop(), [])
        found += below
        frontier += below
    return found


def _lines(path: Path) -> list[str]:
    # Processes come and go between listing and reading, and another user's are not ours to read.
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
