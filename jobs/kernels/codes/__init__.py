"""Sparse codes: which way of multiplying by one is the fastest where, measured and then looked up."""
