"""Encoders: rows to pre-activations, one a file."""
