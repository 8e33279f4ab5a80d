"""Losses of a dictionary, one a file."""
