"""Run cards: everything needed to tell what a result is and to make it again.

A card is one canonical JSON record. Its science is the verb, the config, the seed and the pin; the
rest (revision, versions, hardware, time, memory) is provenance and never decides where a result
lies.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from store.errors import CorruptError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

CARD_VERSION = 1
RUNNING, DONE, INTERRUPTED = "running", "done", "interrupted"


def canonical_json(value: Any) -> str:
    """Return ``value`` as JSON with sorted keys and no spaces; equal values give equal text.

    Unlike a store's records it keeps truth values and floats as they are, so that a config comes
    back equal.

    Raises
    ------
    InvalidInputError
        ``not-json`` where a value has no JSON form; NaN and infinities have none.
    """
    try:
        return json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"a value has no canonical JSON form: {error}. Nothing was written.", kind="not-json"
        ) from error


def config_hash(config: Mapping[str, Any]) -> str:
    """Return the sha256 of the config's canonical JSON, as 64 hex digits."""
    return hashlib.sha256(canonical_json(config).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class RunCard:
    """Everything needed to tell what a result is and to make it again; ``card.json`` holds it."""

    verb: str
    """The command that made it: ``train``."""
    config: Mapping[str, Any]
    """The frozen config, as JSON values."""
    store: str | None = None
    """Id of the store that was read."""
    pin: str | None = None
    """Pin of the rows that were read."""
    digest: str | None = None
    """Logical digest of that pin, where it was computed."""
    seed: int | None = None
    """Root of the seed tree."""
    revision: Mapping[str, str | None]
    """``{version, commit}`` of the code."""
    versions: Mapping[str, str]
    """Versions of Python and libraries."""
    hardware: Mapping[str, str | int | None]
    """``{cpu, cores, memory_bytes, gpu}``."""
    started: str
    """First start, UTC, ISO 8601."""
    wall_seconds: float = 0.0
    """Time spent, over all resumes."""
    peak_bytes: int = 0
    """Largest memory of the process and its children, over all resumes."""
    outcome: str = RUNNING
    """``running``, ``done``, ``interrupted`` or ``failed: <kind>``."""

    def to_json(self) -> dict[str, Any]:
        """Return the card as JSON values; ``from_json`` undoes it."""
        return {"v": CARD_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> RunCard:
        """Build the card that ``to_json`` described.

        Raises
        ------
        CorruptError
            ``bad-card`` where keys are missing or unknown, or the version is another.
        """
        fields = dict(record)
        version = fields.pop("v", None)
        known = {field.name for field in dataclasses.fields(cls)}
        if version != CARD_VERSION or set(fields) != known:
            raise CorruptError(
                f"a run card of version {CARD_VERSION} was expected, found version {version!r} "
                f"with keys {', '.join(sorted(fields))}. Nothing was changed.",
                kind="bad-card",
            )
        return cls(**fields)
