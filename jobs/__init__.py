"""Rows become results: dictionaries, features, reports, and the front door."""
