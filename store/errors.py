"""The error tree: one base for the whole product, and the store's branch of it.

Errors are grouped by what a caller does next. Each carries a ``kind``: a code that is never renamed, that
programs may match on and that survives pickling across workers. A message answers five questions: what was
asked, what was found, where, what state things are in now, what to do.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

# A message quotes names and bytes of a store, and lands in a terminal.
_CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class ActlakeError(Exception):
    """Every error the product raises on purpose.

    Parameters
    ----------
    message
        What was asked, what was found (value and unit), where, the state now, what to do.
    kind
        Code of this very case; the class's own code where none is given.
    where
        Small JSON values that name the place (group, part, column, chunk, path).
    """

    kind: str = "failed"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, kind: str | None = None, **where: Any) -> None:
        message = _CONTROL.sub(lambda found: repr(found[0])[1:-1], message)
        super().__init__(message)
        self.message = message
        self.where = where
        if kind is not None:
            self.kind = kind

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.kind, self.where)

    def to_json(self) -> dict[str, Any]:
        """Return ``{kind, message, where}`` for programs."""
        return {"kind": self.kind, "message": self.message, "where": dict(self.where)}


def _rebuild(cls: type[ActlakeError], message: str, kind: str, where: dict[str, Any]) -> Any:
    return cls(message, kind=kind, **where)


class StoreError(ActlakeError):
    """Something about a store; catch this to catch all of them."""

    kind = "store-error"


class NotFoundError(StoreError, KeyError):
    """The named store, group, column, part, pin or asset does not exist. Ask for another."""

    kind = "not-found"
    __str__ = ActlakeError.__str__


class ConflictError(StoreError):
    """Somebody else's record is there already and says something different. Choose another name."""

    kind = "conflict"


class InvalidInputError(StoreError, ValueError):
    """The caller's values do not fit the store. Mend the call; nothing was written."""

    kind = "invalid-input"


class CorruptError(StoreError):
    """Stored bytes are missing, short, foreign or damaged. Nothing read from them was returned."""

    kind = "corrupt"


class UnsupportedVersionError(StoreError):
    """The store was written by a newer format. Upgrade; nothing was changed."""

    kind = "unsupported-version"


class UnavailableError(StoreError):
    """The storage did not answer. The only error worth retrying."""

    kind = "unavailable"
