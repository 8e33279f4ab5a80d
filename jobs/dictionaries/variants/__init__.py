"""Kinds of dictionary, one a file, each a composition of pieces."""
