"""Sparsifiers: which latents a batch keeps, one a file."""
