"""Activation stores: one wide table of rows whose bytes outlive the process that wrote them."""

from store.coverage import Coverage
from store.errors import (
    ActlakeError,
    ConflictError,
    CorruptError,
    InvalidInputError,
    NotFoundError,
    StoreError,
    UnavailableError,
    UnsupportedVersionError,
)
from store.opening import create
from store.opening import open_store as open  # noqa: A004 - store.open is the field's word
from store.reader import Store
from store.tokens import Document, TokenSequence, TokensWriter
from store.values import Codes
from store.verify import Report, verify
from store.windows import Window, Windows
from store.writer import Writer

__all__ = [
    "ActlakeError",
    "Codes",
    "ConflictError",
    "CorruptError",
    "Coverage",
    "Document",
    "InvalidInputError",
    "NotFoundError",
    "Report",
    "Store",
    "StoreError",
    "TokenSequence",
    "TokensWriter",
    "UnavailableError",
    "UnsupportedVersionError",
    "Window",
    "Windows",
    "Writer",
    "create",
    "open",
    "verify",
]
