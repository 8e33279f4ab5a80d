"""Results and their run cards: what a verb found, and everything needed to find it again.

A result is one folder ``DIR/results/<verb>-<hash8>/``, named by the hash of its config, so the same
question always lands in the same place: asking again resumes it, or finds it done. Results never
lie in a store. Files are replaced whole (temporary file, fsync, rename, fsync of the folder): a
crash leaves the old file or the new one.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import secrets
import time
import weakref
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.errors import JobError
from jobs.machine import PeakMemory, hardware, revision, versions
from jobs.run_card import DONE, INTERRUPTED, RunCard, canonical_json, config_hash
from store.errors import ActlakeError, ConflictError, CorruptError, InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class Result:
    """One result folder: its card, tables, tensors and log.

    Made by :meth:`create` (to write) or :meth:`open` (to read). As a context manager it ends the
    run: ``done`` on a normal exit, ``interrupted`` on Ctrl-C, ``failed: <kind>`` on an error, which
    goes on.

    Attributes
    ----------
    path
        The folder.
    card
        The run card as last written.
    """

    def __init__(self, path: Path, card: RunCard, *, lock: int | None = None) -> None:
        self.path = path
        self.card = card
        self._started = time.monotonic()
        self._memory = PeakMemory()
        self._release = weakref.finalize(self, os.close, lock) if lock is not None else None
        if lock is not None:
            self._memory.start()
            weakref.finalize(self, self._memory.halt)

    @classmethod
    def create(
        cls,
        directory: str | Path,
        verb: str,
        config: Mapping[str, Any],
        *,
        store: str | None = None,
        pin: str | None = None,
        digest: str | None = None,
        seed: int | None = None,
    ) -> Result:
        """Begin ``directory/results/<verb>-<hash8>``, or take up the one that is there.

        A result that is ``done`` comes back read-only, with ``.done`` true: there is nothing left
        to do. One that was interrupted, failed or killed comes back as it stands, its files in
        place.

        Raises
        ------
        ConflictError
            ``other-config`` where the folder holds another config, ``other-pin`` where it was made
            from other rows, ``result-busy`` where another process is writing it.
        JobError
            ``not-permitted`` or ``disk-full``.
        """
        if not _NAME.fullmatch(verb):
            raise InvalidInputError(f"{verb!r} is no name for a verb. Nothing was written.")
        text = canonical_json(config)
        path = Path(directory) / "results" / f"{verb}-{config_hash(config)[:8]}"
        with _translated(path):
            path.mkdir(parents=True, exist_ok=True)
            lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _take(lock, path)
            held = cls.open(path).card if (path / "card.json").exists() else None
            if held is not None:
                _refuse_other(path, held, verb=verb, config=text, store=store, pin=pin)
        except BaseException:
            os.close(lock)
            raise
        if held is not None and held.outcome == DONE:
            os.close(lock)
            return cls(path, held)
        card = RunCard(
            verb=verb,
            config=json.loads(text),
            store=store,
            pin=pin,
            digest=digest,
            seed=seed,
            revision=revision(),
            versions=versions(),
            hardware=hardware(),
            started=held.started if held else datetime.now(UTC).isoformat(timespec="seconds"),
            wall_seconds=held.wall_seconds if held else 0.0,
            peak_bytes=held.peak_bytes if held else 0,
        )
        result = cls(path, card, lock=lock)
        for leftover in path.glob(".*.tmp"):
            leftover.unlink()
        result._write_card(card)
        return result

    @classmethod
    def open(cls, path: str | Path) -> Result:
        """Open a result to read it, whatever its outcome.

        Raises
        ------
        NotFoundError
            ``no-result`` where the folder has no card.
        CorruptError
            ``bad-card`` where the card cannot be read.
        """
        path = Path(path)
        try:
            record = json.loads((path / "card.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFoundError(
                f"{path} is no result: it has no card.json. Give the folder of one, "
                "DIR/results/<verb>-<hash>.",
                kind="no-result",
            ) from error
        except ValueError as error:
            raise CorruptError(
                f"{path / 'card.json'} is no JSON: {error}.", kind="bad-card"
            ) from error
        if not isinstance(record, dict):
            raise CorruptError(f"{path / 'card.json'} is no run card.", kind="bad-card")
        return cls(path, RunCard.from_json(record))

    @property
    def done(self) -> bool:
        """Whether the run ended well."""
        return self.card.outcome == DONE

    def tables(self) -> list[str]:
        """Return the names of the tables, sorted."""
        return sorted(file.stem for file in self.path.glob("*.parquet"))

    def write_table(self, name: str, columns: Mapping[str, np.ndarray | list[Any]]) -> None:
        """Write or replace a table; every column has the same length."""
        from store.tables import write_parquet

        self.write_file(f"{name}.parquet", write_parquet(columns))

    def table(self, name: str) -> dict[str, np.ndarray | list[Any]]:
        """Return a table's columns: arrays for numbers, lists for text.

        Raises
        ------
        NotFoundError
            ``no-table``, with the tables there are.
        """
        from store.tables import read_parquet

        return read_parquet(self.read_file(f"{name}.parquet"))

    def write_tensors(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Write or replace ``name.safetensors``."""
        from safetensors.numpy import save

        tensors = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
        self.write_file(f"{name}.safetensors", save(tensors))

    def tensors(self, name: str) -> dict[str, np.ndarray]:
        """Return the arrays of ``name.safetensors``; `NotFoundError` where there are none."""
        from safetensors.numpy import load

        return dict(load(self.read_file(f"{name}.safetensors")))

    def write_file(self, name: str, data: bytes) -> None:
        """Write or replace one file of the result, whole.

        Raises
        ------
        InvalidInputError
            ``read-only`` where the result was opened to read, ``bad-name`` where the name is none.
        JobError
            ``not-permitted`` or ``disk-full``; the file that was there stands.
        """
        self._check_open(name)
        _replace(self.path / name, data)

    def read_file(self, name: str) -> bytes:
        """Return one file of the result; `NotFoundError` lists those there are."""
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError as error:
            there = sorted(file.name for file in self.path.iterdir() if file.name[0] != ".")
            raise NotFoundError(
                f"result {self.path} has no {name}; it has {', '.join(there)}. Its outcome is "
                f"{self.card.outcome!r}: run {self.card.verb} again with the same flags to end it.",
                kind="no-table" if name.endswith(".parquet") else "no-file",
            ) from error

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line to ``log.jsonl``: the time and the record's JSON values."""
        self._check_open("log.jsonl")
        stamp = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = canonical_json({"time": stamp, **record}) + "\n"
        with _translated(self.path), (self.path / "log.jsonl").open("ab") as file:
            # A killed run may have left half a line; ours must not be glued to it.
            whole = file.tell() == 0 or _last_byte(self.path / "log.jsonl") == b"\n"
            file.write(line.encode() if whole else b"\n" + line.encode())

    def records(self) -> list[dict[str, Any]]:
        """Return the log's records; lines a crash cut short are left out."""
        try:
            lines = (self.path / "log.jsonl").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        return [record for line in lines.split("\n") if (record := _parsed(line)) is not None]

    def finish(self, outcome: str = DONE) -> RunCard:
        """End the run: write time, memory and outcome into the card and let go of the folder."""
        if self._release is None or not self._release.alive:
            return self.card
        card = dataclasses.replace(
            self.card,
            wall_seconds=round(self.card.wall_seconds + time.monotonic() - self._started, 3),
            peak_bytes=max(self.card.peak_bytes, self._memory.stop()),
            outcome=outcome,
        )
        try:
            self._write_card(card)
        finally:
            self._release()
        return self.card

    def __enter__(self) -> Result:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.finish()
        elif isinstance(error, ActlakeError):
            self.finish(f"failed: {error.kind}")
        elif isinstance(error, Exception):
            self.finish(f"failed: {type(error).__name__}")
        else:
            self.finish(INTERRUPTED)

    def _write_card(self, card: RunCard) -> None:
        text = canonical_json(card.to_json())
        _replace(self.path / "card.json", text.encode())
        self.card = RunCard.from_json(json.loads(text))  # the same here as for who opens it

    def _check_open(self, name: str) -> None:
        if self._release is None or not self._release.alive:
            raise InvalidInputError(
                f"result {self.path} is {self.card.outcome} and read-only, yet {name} was to "
                "be written. Nothing was written. Use Result.create to go on with it.",
                kind="read-only",
            )
        if not _NAME.fullmatch(name) or name == "card.json":
            raise InvalidInputError(
                f"{name!r} cannot be a file of a result. Nothing was written. Use letters, digits, "
                "'_', '-' and '.'.",
                kind="bad-name",
            )


def finished(directory: str | Path, verb: str, config: Mapping[str, Any]) -> bool:
    """Return whether `Result.create` would find a result that is done; nothing is written."""
    path = Path(directory) / "results" / f"{verb}-{config_hash(config)[:8]}"
    return (path / "card.json").exists() and Result.open(path).done


def _refuse_other(
    path: Path, held: RunCard, *, verb: str, config: str, store: str | None, pin: str | None
) -> None:
    if held.verb != verb or canonical_json(held.config) != config:
        raise ConflictError(
            f"result {path} was made by {held.verb!r} with another config. Nothing was written. "
            "Choose another output directory, or move that result away.",
            kind="other-config",
        )
    asked = {"store": store, "pin": pin}
    for what, new in asked.items():
        old = getattr(held, what)
        if old is not None and new is not None and old != new:
            raise ConflictError(
                f"result {path} was made from {what} {old}, asked for {what} {new}. Nothing was "
                "written. Choose another output directory, or move that result away.",
                kind="other-pin",
            )


def _take(lock: int, path: Path) -> None:
    import fcntl  # POSIX only, as all writers are

    with _translated(path):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConflictError(
                f"another process is writing result {path}. Nothing was written. Wait for its end.",
                kind="result-busy",
            ) from error


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in _FULL
        raise JobError(
            f"{path} cannot be written: {error.strerror or error}. What was there before stands. "
            + ("Free some space and run again." if full else "Choose another directory."),
            kind="disk-full" if full else "not-permitted",
        ) from error


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with _translated(path):
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
