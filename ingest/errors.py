"""Errors of the ingest layer."""

from __future__ import annotations

from store.errors import ActlakeError


class IngestError(ActlakeError):
    """Something went wrong between a corpus and the rows of a store."""

    kind = "ingest-error"


class ModelError(IngestError):
    """The model or its tokenizer is missing, broken or of an unsupported family."""

    kind = "model-error"


class SiteError(IngestError):
    """A site the model does not have was asked for. Choose one of the listed ones."""

    kind = "unknown-site"


class OverBudgetError(IngestError):
    """The plan asks for more than this machine has. Nothing was started."""

    kind = "over-budget"
    exit_code = 3


class SourceError(IngestError):
    """The corpus is missing, empty or unreadable. Mend the input; nothing was written."""

    kind = "bad-corpus"


def first_line(error: BaseException) -> str:
    """Return what an exception says first, or its name where it says nothing; without a full stop."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    # Some end their first line with a colon and say what is wrong in the next.
    said = f"{lines[0]} {lines[1].strip()}" if lines[0].endswith(":") and lines[1:] else lines[0]
    return said.rstrip(".")
