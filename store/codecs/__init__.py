"""Codecs of dense columns, one per file; each is a frozen class named in ``group.json``."""

from store.codecs.contract import CODECS, Codec

__all__ = ["CODECS", "Codec"]
