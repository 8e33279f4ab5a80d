"""Errors of the jobs layer."""

from __future__ import annotations

from store.errors import ActlakeError


class JobError(ActlakeError):
    """A job could not be done."""

    kind = "job-error"


class UsageError(JobError):
    """The command's words are off. Nothing was started."""

    kind = "usage"
    exit_code = 2


class RefusedError(JobError):
    """A plan or budget forbids the run. Nothing was started."""

    kind = "refused"
    exit_code = 3


class DivergedError(JobError):
    """Training met a value that is not finite. The rows are named; the last checkpoint stands."""

    kind = "diverged"
