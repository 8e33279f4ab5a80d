"""Offloads what a training step saves for its backward: to storage while the step goes on, and back before it is needed.

A context around forward and backward. What autograd saves is kept once, whatever views of it are saved (*deduplication*); threads
write it by way of a store's own storage, checksum included, and its memory is let go. The backward asks for tensors in
about the opposite order, so the ones before are fetched while one is used; a tensor that is asked for before it was written is
handed back from memory, and need not be written any more (*forwarding*). What the step waited for is counted.

On CPUs, glibc may keep freed memory for later unless ``MALLOC_MMAP_THRESHOLD_`` (65536, say) is set for the process.

Parameters are never offloaded, nor anything small. Gradients do not change by a bit: what comes back is what was saved.

Source: Wu et al., SSDTrain (arXiv 2408.10013), section 3; deviations: ordinary files in place of direct transfers between GPU and
disk, and everything above a size is offloaded unless it is forwarded, without a plan of how much.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from ingest.errors import IngestError
from store import ActlakeError
from store.checksum import crc32c
from store.storage import Storage
from store.urls import open_storage

_AHEAD = 4  # tensors fetched before they are asked for


@dataclass(kw_only=True, slots=True)
class OffloadReport:
    """What became of what a step saved; bytes, and seconds in which the step stood still."""

    saved_bytes: int = 0
    """Of all tensors that autograd saved and that are large enough, each time it did."""
    deduplicated_bytes: int = 0
    """Of those, what was held already."""
    kept_bytes: int = 0
    """Of parameters among them."""
    written_bytes: int = 0
    read_bytes: int = 0
    forwarded_bytes: int = 0
    """Asked for before they were written, or while they were."""
    waited_to_save_seconds: float = 0.0
    """Until there was room for what is not written yet."""
    waited_to_load_seconds: float = 0.0
    """Until a tensor was back."""

    @property
    def exposed_seconds(self) -> float:
        """Seconds in which the step waited for storage."""
        return self.waited_to_save_seconds + self.waited_to_load_seconds


@dataclass(slots=True, eq=False)
class _Slot:
    """The bytes of one storage of a tensor."""

    number: int
    size: int
    device: torch.device
    bytes_: Tensor | None
    """``uint8[size]`` while they are in memory."""
    written: bool = False
    crc: int = 0
    source: tuple[Tensor, int] | None = None
    """The tensor and its version when it was saved, while its bytes are those in memory."""
    forwarded: bool = False
    """Asked for while it was in memory: it is needed now, and is not written any more."""
    fetch: Future[Tensor] | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def key(self) -> str:
        return f"slot-{self.number:06}"


@dataclass(slots=True, eq=False)
class _Place:
    """A tensor that was saved: a view of a slot's bytes."""

    slot: _Slot
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int

    def view(self, bytes_: Tensor) -> Tensor:
        whole = torch.empty(0, dtype=self.dtype, device=bytes_.device)
        return whole.set_(bytes_.untyped_storage(), self.offset, self.shape, self.stride)


class Offload:
    """Keeps what autograd saves in files.

    Parameters
    ----------
    folder
        Of a fast disk; a folder of its own is made below it, and removed again.
    least_bytes
        Smaller tensors stay in memory.
    pending_bytes
        Memory for what is not written yet; a step that saves faster waits.
    writers
        Threads that write.

    Examples
    --------
    >>> import tempfile
    >>> net = torch.nn.Linear(256, 256)
    >>> x = torch.randn(64, 256, requires_grad=True)
    >>> with tempfile.TemporaryDirectory() as scratch, Offload(scratch, least_bytes=1).saving(net) as report:
    ...     net(x).relu().sum().backward()
    >>> report.saved_bytes > 0
    True
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        least_bytes: int = 1 << 20,
        pending_bytes: int = 256 << 20,
        writers: int = 2,
    ) -> None:
        self._folder = Path(folder)
        self._least, self._most = least_bytes, pending_bytes
        self._writers = writers

    @contextmanager
    def saving(self, *models: nn.Module) -> Iterator[OffloadReport]:
        """Offload what is saved inside; the backward belongs inside, too.

        Parameters
        ----------
        models
            Modules whose parameters are saved for the backward and stay where they are.

        Raises
        ------
        IngestError
            ``offload-failed``: the disk did not take or give back what was saved; gradients of that step are incomplete.
        """
        home = self._folder / f"offload-{uuid4().hex}"
        parameters = [p for model in models for p in model.parameters()]
        step = _Step(open_storage(str(home)), parameters, self._least, self._most, self._writers)
        try:
            with torch.autograd.graph.saved_tensors_hooks(step.pack, step.unpack):
                yield step.report
        finally:
            step.close()
            with suppress(OSError):
                home.rmdir()


class _Step:
    """One step's tensors."""

    def __init__(
        self,
        storage: Storage,
        parameters: list[Any],
        least: int,
        most: int,
        writers: int,
    ) -> None:
        self.report = OffloadReport()
        self._storage = storage
        self._least, self._most = least, most
        self._fixed = {one.untyped_storage().data_ptr() for one in parameters}
        self._held: dict[tuple[int, int, int], tuple[StorageWeakRef, _Slot]] = {}
        self._slots: list[_Slot] = []
        self._pending = 0
        self._room = threading.Condition()
        self._failed: BaseException | None = None
        self._closed = False
        self._writing = ThreadPoolExecutor(writers, "offload-write")
        self._reading = ThreadPoolExecutor(1, "offload-read")

    # -- forward ----------------------------------------------------------------------------------------

    def pack(self, tensor: Tensor) -> Tensor | _Place:
        """Return what autograd keeps in place of a tensor."""
        plain = tensor.layout == torch.strided and type(tensor) in {Tensor, nn.Parameter}
        storage = tensor.untyped_storage() if plain else None
        if storage is None or storage.nbytes() < self._least:
            return tensor
        self.report.saved_bytes += tensor.nbytes
        if storage.data_ptr() in self._fixed:
            self.report.kept_bytes += tensor.nbytes
            return tensor
        key = (storage.data_ptr(), storage.nbytes(), tensor._version)
        held = self._held.get(key)
        if held is not None and not held[0].expired():  # type: ignore[no-untyped-call]
            slot = held[1]
            self.report.deduplicated_bytes += tensor.nbytes
        else:
            slot = self._new(tensor, storage)
            self._held[key] = (StorageWeakRef(storage), slot)  # type: ignore[no-untyped-call]
        return _Place(
            slot, tensor.dtype, tensor.shape, tuple(tensor.stride()), int(tensor.storage_offset())
        )

    def _new(self, tensor: Tensor, storage: Any) -> _Slot:
        self._raise()
        size = storage.nbytes()
        whole = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(
            storage, 0, (size,), (1,)
        )
        source = tensor.detach(), tensor._version
        slot = _Slot(len(self._slots), size, tensor.device, whole, source=source)
        began = time.perf_counter()
        with self._room:
            while self._pending and self._pending + size > self._most and self._failed is None:
                self._room.wait()
            self._pending += size
        self.report.waited_to_save_seconds += time.perf_counter() - began
        self._slots.append(slot)
        self._writing.submit(self._write, slot)
        return slot

    def _write(self, slot: _Slot) -> None:
        try:
            with slot.lock:
                held = None if slot.forwarded else slot.bytes_
            if held is not None and self._failed is None and not self._closed:
                self._write_bytes(slot, held)
        except BaseException as error:  # noqa: BLE001 - of a thread: told by whoever waits
            self._failed = error
        finally:
            with self._room:
                self._pending -= slot.size
                self._room.notify_all()

    def _write_bytes(self, slot: _Slot, held: Tensor) -> None:
        data = held.cpu().numpy()
        stream = self._storage.stream(slot.key)
        stream.write(data)
        done = stream.finish()
        with slot.lock:
            _check_unchanged(slot)
            slot.crc, slot.written = done.crc32c, True
            if not slot.forwarded:
                slot.bytes_ = slot.source = None
        self.report.written_bytes += done.size

    # -- backward ---------------------------------------------------------------------------------------

    def unpack(self, saved: Tensor | _Place) -> Tensor:
        """Return a tensor that was saved, bit for bit."""
        if not isinstance(saved, _Place):
            return saved
        self._raise()
        slot = saved.slot
        with slot.lock:
            held = slot.bytes_
            if held is not None:
                _check_unchanged(slot)
                if not slot.forwarded:
                    self.report.forwarded_bytes += slot.size
                slot.forwarded = True
        if held is None:
            held = self._loaded(slot)
        self._ahead(slot.number)
        return saved.view(held)

    def _loaded(self, slot: _Slot) -> Tensor:
        began = time.perf_counter()
        try:
            return self._begin(slot).result()
        except (ActlakeError, OSError, RuntimeError, CancelledError) as error:
            self._failed = error
            self._raise()
            raise
        finally:
            self.report.waited_to_load_seconds += time.perf_counter() - began

    def _begin(self, slot: _Slot) -> Future[Tensor]:
        with slot.lock:
            if slot.fetch is None:
                slot.fetch = self._reading.submit(self._read, slot)
            return slot.fetch

    def _ahead(self, number: int) -> None:
        """Fetch the tensors that were saved just before, and let go of those behind."""
        for slot in self._slots[max(0, number - _AHEAD) : number]:
            if slot.written:
                self._begin(slot)
        for slot in self._slots[number + _AHEAD + 1 : number + 2 * _AHEAD + 1]:
            slot.fetch = None  # what is asked for again is fetched again

    def _read(self, slot: _Slot) -> Tensor:
        bytes_ = torch.empty(slot.size, dtype=torch.uint8)
        self._storage.read_into(slot.key, [(0, bytes_.numpy())])
        if crc32c(bytes_.numpy()) != slot.crc:
            raise IngestError(
                f"a tensor of {slot.size:,} bytes that was offloaded came back changed from {self._storage.url}. Gradients of "
                "this step are incomplete. Leave the step out, and look at the disk.",
                kind="offload-failed",
            )
        self.report.read_bytes += slot.size
        return bytes_.to(slot.device)

    # -- the end ----------------------------------------------------------------------------------------

    def _raise(self) -> None:
        if self._closed:
            raise IngestError(
                "a backward asked for what was offloaded after its context had ended. Its gradients are incomplete. Call "
                "backward inside `with Offload(…).saving(…)`.",
                kind="offload-failed",
            )
        if self._failed is None:
            return
        if isinstance(self._failed, ActlakeError) and self._failed.kind == "offload-failed":
            raise self._failed
        raise IngestError(
            f"what a step saved could not be offloaded to {self._storage.url}: {self._failed}. Gradients of this step are "
            "incomplete. Give Offload a folder with room, or train without it.",
            kind="offload-failed",
        ) from self._failed

    def close(self) -> None:
        """Stop the threads and remove the files."""
        self._closed = True
        self._writing.shutdown(wait=True, cancel_futures=True)
        self._reading.shutdown(wait=True, cancel_futures=True)
        self._storage.delete([slot.key for slot in self._slots if slot.written])
        self._held.clear()


def _check_unchanged(slot: _Slot) -> None:
    """Raise where a tensor whose bytes are in memory is not what it was when it was saved; autograd would, too."""
    if slot.source is not None and slot.source[0]._version != slot.source[1]:
        raise IngestError(
            f"a tensor of {slot.size:,} bytes was changed in place after it had been saved for the backward. Gradients of this "
            "step are incomplete. Do not change it, as without offloading.",
            kind="offload-failed",
        )
