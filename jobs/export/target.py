"""A folder that appears whole or not at all.

It is made beside its final name, under a hidden one that is the same every time, and renamed when all is in it. An export
that was killed leaves the hidden folder; the next one into the same target removes it. A lock on it, which dies with its
process, tells what a dead export left from what another one is making.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.errors import JobError


@contextmanager
def target(out: Path) -> Iterator[Path]:
    """Yield an empty folder that is at ``out`` when the block is left without an error, and gone otherwise.

    Raises
    ------
    JobError
        ``out-taken``: something is there; ``out-busy``: another export makes it; ``not-written``: the file system does
        not let it be made.
    """
    out = Path(os.path.abspath(out))  # noqa: PTH100 - resolve() follows links
    hidden = out.parent / f".{out.name}.unfinished"
    try:
        _check_free(out)
        with _locked(hidden, out):
            try:
                _empty(hidden)
                inside = hidden / "whole"
                inside.mkdir()
                yield inside
                _check_free(out)
                inside.rename(out)
            finally:
                shutil.rmtree(hidden, ignore_errors=True)
    except OSError as error:
        raise JobError(
            f"{out} could not be written ({error.strerror or error}). It was not made, and what was begun is removed. "
            "Free space, or choose a folder you may write to, and run the same command again.",
            kind="not-written",
        ) from error


def _check_free(out: Path) -> None:
    if os.path.lexists(out) and (out.is_symlink() or not out.is_dir() or any(out.iterdir())):
        raise JobError(
            f"{out} is there and holds something. Nothing was written. Name a folder that is new or empty.",
            kind="out-taken",
        )


@contextmanager
def _locked(hidden: Path, out: Path) -> Iterator[None]:
    held = _lock(hidden, out)
    try:
        while not _is_still(held, hidden):  # whoever held it before removed it when it was done
            os.close(held)
            held = _lock(hidden, out)
        yield
    finally:
        os.close(held)


def _lock(hidden: Path, out: Path) -> int:
    hidden.mkdir(parents=True, exist_ok=True)
    held = os.open(hidden, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException as error:
        os.close(held)
        if not isinstance(error, BlockingIOError):
            raise
        raise JobError(
            f"another export is writing {out} right now (it holds {hidden}). Nothing was written. Wait for it, or "
            "name another folder.",
            kind="out-busy",
        ) from error
    return held


def _is_still(held: int, folder: Path) -> bool:
    """Return whether an open folder is the one that has the name now."""
    try:
        return os.path.samestat(os.fstat(held), folder.stat())
    except FileNotFoundError:
        return False


def _empty(folder: Path) -> None:
    for left in folder.iterdir():
        with contextlib.suppress(NotADirectoryError):
            shutil.rmtree(left)
            continue
        left.unlink()
