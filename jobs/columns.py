"""Columns of a store by name, set or pattern: ``blocks.{1,3}.resid_post``, ``blocks.*.mlp.in``, ``acts:embed``."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence

from jobs.errors import JobError
from store import Store

_SET = re.compile(r"\{([^{}]*)\}")


def columns_of(store: Store, names: Sequence[str]) -> list[str]:
    """Return the dense columns that names stand for, each as it is addressed, in the order of the names.

    Sets and patterns give their columns in order of the numbers in them. A name without either is returned as it is.

    Raises
    ------
    JobError
        ``no-column``: a pattern fits none.
    """
    found: list[str] = []
    for name in names:
        for one in _sets(name):
            found += _fitting(store, one) if "*" in one else [one]
    return list(dict.fromkeys(found))


def _sets(name: str) -> list[str]:
    """Return a name for each member of its first set, and so on."""
    match = _SET.search(name)
    if match is None:
        return [name]
    members = [
        name[: match.start()] + word.strip() + name[match.end() :] for word in match[1].split(",")
    ]
    return [one for member in members for one in _sets(member)]


def _fitting(store: Store, pattern: str) -> list[str]:
    known = list(store.sites)
    bare = {address.rpartition(":")[2] for address in known}
    pool = known if ":" in pattern else sorted(bare)
    found = sorted(fnmatch.filter(pool, pattern), key=_numbers_first)
    if not found:
        raise JobError(
            f"no dense column of {store.url} fits {pattern!r}; there are {', '.join(known) or 'none'}. Nothing was "
            "started. Name one of them.",
            kind="no-column",
        )
    return found


def _numbers_first(name: str) -> list[tuple[int, str]]:
    """Return what sorts block 10 behind block 9."""
    return [(int(word), "") if word.isdigit() else (-1, word) for word in name.split(".")]
