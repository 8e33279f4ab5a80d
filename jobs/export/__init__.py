"""Stores in other tools' formats, one per file."""
