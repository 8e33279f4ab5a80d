"""Parts that failed wherever they were tried: recorded in the store with their documents, and told in one error."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

from ingest.errors import IngestError
from store import Store
from store.layout import failed_key
from store.records import make_record
from store.tables import column

PARTS_FAILED = "parts-failed"
_NAMED_PARTS = 5
_NAMED_DOCUMENTS = 3


def parts_failed(store: Store, group: str, failures: Mapping[str, str], url: str) -> IngestError:
    """Record why parts failed and return the error that tells it.

    A ``failed`` record marks no part as unusable: the next run tries it again.

    Parameters
    ----------
    failures
        Part (as text) → kind and first line of its last error.
    """
    documents = {part: documents_of(store, int(part)) for part in failures}
    for part, why in failures.items():
        said = f"{why} (documents: {_listed(documents[part])})"
        body = {"group": group, "part": int(part), "attempt": secrets.token_hex(8), "error": said}
        data, _ = make_record("failed", store.id, body)
        store.view.storage.create(failed_key(group, int(part), str(body["attempt"])), data)
    lines = [
        f"part {part}: {why}; documents {_listed(documents[part])}"
        for part, why in list(failures.items())[:_NAMED_PARTS]
    ]
    more = len(failures) - len(lines)
    lines += [f"… and {more} more"] if more else []
    return IngestError(
        f"{len(failures)} part{'s' * (len(failures) != 1)} of group {group!r} of {url} failed wherever tried:\n  "
        + "\n  ".join(lines)
        + "\nAll other parts are committed, the group is not sealed. Mend the cause and run the same again: only "
        f"what failed is left. `actlake status {url}` lists them.",
        kind=PARTS_FAILED,
        parts=dict(failures),
        documents=documents,
    )


def documents_of(store: Store, part: int) -> list[str]:
    """Return the names of the documents that have rows in a part of the tokens."""
    held = store.view.table(store.view.commit("tokens", part), "documents.parquet")
    return [str(name) for name in column(held, "name")]


def _listed(names: Sequence[str]) -> str:
    said = ", ".join(names[:_NAMED_DOCUMENTS])
    more = len(names) - _NAMED_DOCUMENTS
    return f"{said} and {more} more" if more > 0 else said or "none"
